"""Stochastic downsampling: which positions it keeps, the same for all images and channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emseg_jax.models import stochastic_downsampling

draw_indices = jax.jit(stochastic_downsampling.draw_indices, static_argnums=(1, 2))
stochastic_downsample = jax.jit(stochastic_downsampling.stochastic_downsample)


@pytest.mark.parametrize('cell', [2, 4, 6])
def test_every_cell_keeps_half_of_its_positions_in_order(cell):
  kept = np.asarray(draw_indices(jax.random.key(0), 1000, cell))
  assert kept.shape == (1000, cell // 2)
  assert (np.diff(kept, axis=1) > 0).all()
  assert kept.min() == 0
  assert kept.max() == cell - 1


def test_the_six_pairs_of_a_cell_of_four_are_equally_likely():
  draws = 60_000
  kept = np.asarray(draw_indices(jax.random.key(0), draws, 4))
  _, counts = np.unique(kept, axis=0, return_counts=True)
  assert len(counts) == 6
  expected = draws / 6
  # 20.5 is the 99.9 % quantile of chi-square with 5 degrees of freedom.
  assert np.sum((counts - expected) ** 2 / expected) < 20.5


def test_neighbouring_cells_are_drawn_independently():
  kept = np.asarray(draw_indices(jax.random.key(0), 60_000, 4))
  pairs = (4 * kept[:, 0] + kept[:, 1]).reshape(-1, 2)
  _, counts = np.unique(pairs, axis=0, return_counts=True)
  assert len(counts) == 36
  expected = len(pairs) / 36
  # 66.6 is the 99.9 % quantile of chi-square with 35 degrees of freedom.
  assert np.sum((counts - expected) ** 2 / expected) < 66.6


def _numbered(*shape):
  return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize('spatial', [(8, 12), (4, 8, 12)])
def test_a_grid_of_positions_is_kept_for_the_whole_batch_and_all_channels(spatial):
  x = _numbered(3, *spatial, 2)
  out = np.asarray(stochastic_downsample(x, jax.random.key(1)))
  assert out.shape == (3, *(size // 2 for size in spatial), 2)
  kept = np.unravel_index(out.astype(int), x.shape)
  for axis, size in enumerate(spatial, start=1):
    along = np.moveaxis(kept[axis], axis, -1).reshape(-1, size // 2)
    assert (along == along[0]).all()  # the same in each image, line and channel
    assert (np.diff(along[0]) > 0).all()
    np.testing.assert_array_equal(along[0] // 4, np.repeat(np.arange(size // 4), 2))  # its cell
  np.testing.assert_array_equal(kept[0], np.arange(3).reshape(3, *[1] * (x.ndim - 1)) + 0 * kept[0])
  np.testing.assert_array_equal(kept[-1], np.arange(2) + 0 * kept[-1])


def test_rows_and_columns_are_drawn_apart():
  x = _numbered(1, 64, 64, 1)
  out = np.asarray(stochastic_downsample(x, jax.random.key(0)))[0, :, :, 0].astype(int)
  assert (out[:, 0] // 64 != out[0] % 64).any()


def test_another_key_keeps_other_positions():
  x = _numbered(1, 64, 64, 1)
  first, same, other = (stochastic_downsample(x, jax.random.key(s)) for s in (0, 0, 1))
  np.testing.assert_array_equal(first, same)
  assert (first != other).any()


def test_without_a_key_the_even_positions_are_kept():
  x = _numbered(2, 6, 10, 3)  # multiples of 2, but not of 4
  np.testing.assert_array_equal(stochastic_downsample(x, None), x[:, ::2, ::2])
  x = _numbered(1, 2, 6, 4, 1)
  np.testing.assert_array_equal(stochastic_downsample(x, None), x[:, ::2, ::2, ::2])


def test_the_gradient_goes_to_the_kept_positions_only():
  weights, key = 1 + _numbered(1, 32, 32, 1), jax.random.key(0)

  @jax.jit
  @jax.grad
  def gradient(x):
    return jnp.sum(weights * stochastic_downsample(x, key))

  grad = np.asarray(gradient(_numbered(1, 64, 64, 1)))
  np.testing.assert_array_equal(stochastic_downsample(grad, key), weights)
  assert np.count_nonzero(grad) == 32 * 32
