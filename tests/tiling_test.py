"""Cover and blending: properties over many shapes, and known functions in place of networks."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from emseg_jax import errors, tiling

OPTIONS = {'overlap': 0.25, 'blend': 'gaussian', 'batch_size': 3, 'num_classes': 2}


def pointwise(tiles):
  """A network without context: two classes with logits x and -x."""
  return softmax(np.concatenate([tiles, -tiles], axis=-1), axis=-1)


def predict(apply_fn, image, *, tile, overlap, blend, **options):
  layout = tiling.lay_out(image.shape[:-1], tile, overlap=overlap, blend=blend)
  return tiling.predict_tiled(apply_fn, image, layout, **options)


def random_image(*shape):
  return np.random.default_rng(0).normal(size=(*shape, 1)).astype(np.float32)


@hypothesis.given(st.integers(1, 300), st.integers(1, 64), st.floats(0, 0.99))
@hypothesis.settings(max_examples=300, deadline=None)
def test_tiles_cover_every_voxel_overlap_enough_and_none_could_be_spared(size, tile, overlap):
  (origins,) = tiling.plan((size,), (tile,), overlap)
  if size <= tile:
    assert origins == (0,)
    return
  assert origins[0] == 0
  assert origins[-1] == size - tile
  steps = np.diff(origins)
  stride = max(tile - round(overlap * tile), 1)
  assert 1 <= steps.min() <= steps.max() <= stride <= tile
  assert steps.max() - steps.min() <= 1  # spread evenly
  assert tile + (len(origins) - 2) * stride < size  # one tile fewer does not reach the end


def test_plan_of_a_known_image():
  # 512 in tiles of 256 that overlap by a quarter: stride 192, 256 / 192 rounded up = 2 gaps
  assert tiling.plan((512, 200), (256, 256), 0.25) == ((0, 128, 256), (0,))
  assert tiling.plan((512,), (256,), 0.0) == ((0, 256),)
  assert tiling.plan((10, 12, 9), (8, 8, 8), 0.5) == ((0, 2), (0, 4), (0, 1))


def test_impossible_plans_are_refused():
  for shape, tile, overlap in [((8, 8), (4,), 0.0), ((0, 8), (4, 4), 0.0), ((8,), (4,), 1.0)]:
    with pytest.raises(ValueError, match='must'):
      tiling.plan(shape, tile, overlap)


@pytest.mark.parametrize('tile', [(16, 16), (8, 5), (1, 1), (6, 8, 4), (64, 64, 64)])
def test_windows_are_positive_symmetric_and_highest_in_the_middle(tile):
  window = tiling.window(tile, 'gaussian')
  assert window.shape == tile
  assert window.dtype == np.float32
  assert np.exp(-8.0 * len(tile)) <= window.min() <= window.max() <= 1  # corners at 4 sigma
  np.testing.assert_allclose(window, np.flip(window))
  assert window[tuple(n // 2 for n in tile)] == window.max()
  np.testing.assert_array_equal(tiling.window(tile, 'uniform'), np.ones(tile))


def test_gaussian_window_has_a_sigma_of_an_eighth_of_the_tile():
  window = tiling.window((33,), 'gaussian')
  np.testing.assert_allclose(
    window[16] / window[16 + 4], np.exp(0.5 * (4 / (33 / 8)) ** 2), rtol=1e-5
  )


@hypothesis.given(
  shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
  tile=st.tuples(st.integers(1, 16), st.integers(1, 16)),
  overlap=st.floats(0, 0.75),
  blend=st.sampled_from(['gaussian', 'uniform']),
  batch_size=st.integers(1, 5),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_a_network_without_context_gives_the_same_in_tiles(shape, tile, overlap, blend, batch_size):
  image = random_image(*shape)
  shapes = set()

  def apply_fn(tiles):
    shapes.add((tiles.shape, tiles.dtype))
    return pointwise(tiles)

  probabilities = predict(
    apply_fn,
    image,
    tile=tile,
    overlap=overlap,
    blend=blend,
    batch_size=batch_size,
    num_classes=2,
  )
  assert probabilities.shape == (*shape, 2)
  assert probabilities.dtype == np.float32
  np.testing.assert_allclose(probabilities, pointwise(image), atol=1e-6)
  assert shapes == {((batch_size, *tile, 1), np.dtype(np.float32))}  # one program


def test_volumes_and_several_channels_are_tiled_alike():
  volume = np.random.default_rng(0).normal(size=(5, 17, 9, 3)).astype(np.float32)
  result = predict(
    lambda tiles: softmax(tiles, axis=-1), volume, tile=(4, 8, 16), **{**OPTIONS, 'num_classes': 3}
  )
  np.testing.assert_allclose(result, softmax(volume, axis=-1), atol=1e-6)


def test_a_jitted_network_runs_ahead_and_is_fetched_in_order():
  calls = 0

  @jax.jit
  def network(tiles):
    nonlocal calls
    calls += 1  # counts traces, that is compilations
    return jax.nn.softmax(jnp.concatenate([tiles, -tiles], axis=-1), axis=-1)

  image = random_image(50, 40)
  result = predict(network, image, tile=(16, 16), **OPTIONS)
  np.testing.assert_allclose(result, pointwise(image), atol=1e-6)
  assert calls == 1


def test_each_batch_is_started_before_the_one_before_is_fetched():
  events = []

  class Later:
    """A result that notes when it is asked for, as a JAX array would wait then."""

    def __init__(self, number, values):
      self.number, self.values = number, values

    def __array__(self, dtype=None, copy=None):
      events.append(('fetch', self.number))
      return np.asarray(self.values, dtype)

  def apply_fn(tiles):
    number = sum(kind == 'start' for kind, _ in events)
    events.append(('start', number))
    return Later(number, pointwise(tiles))

  options = {**OPTIONS, 'overlap': 0.0, 'batch_size': 1}
  predict(apply_fn, random_image(12, 4), tile=(4, 4), **options)
  started, fetched = [('start', i) for i in range(3)], [('fetch', i) for i in range(3)]
  assert events == [started[0], started[1], fetched[0], started[2], fetched[1], fetched[2]]


def test_overlapping_tiles_are_averaged_with_the_weights_of_the_window():
  # Two tiles of 6 at 0 and 4: the first says 1, the second 0; they share voxels 4 and 5.
  def apply_fn(tiles):
    return np.ones_like(tiles) * np.array([1.0, 0.0]).reshape(2, 1, 1, 1)

  options = {'overlap': 0.2, 'batch_size': 2, 'num_classes': 1}
  image = np.zeros((10, 1, 1), np.float32)
  result = predict(apply_fn, image, tile=(6, 1), blend='gaussian', **options)
  w = np.exp(-((np.arange(6) - 2.5) ** 2) / (2 * (6 / 8) ** 2))
  shared = w[4:] / (w[4:] + w[:2])
  np.testing.assert_allclose(result[:, 0, 0], [1] * 4 + list(shared) + [0] * 4, rtol=1e-4)
  result = predict(apply_fn, image, tile=(6, 1), blend='uniform', **options)
  np.testing.assert_allclose(result[:, 0, 0], [1] * 4 + [0.5] * 2 + [0] * 4)


def test_an_image_smaller_than_the_tile_is_mirrored_up_to_it():
  seen = []

  def apply_fn(tiles):
    seen.append(tiles)
    return pointwise(tiles)

  image = np.arange(3, dtype=np.float32).reshape(1, 3, 1)
  options = {**OPTIONS, 'batch_size': 1}
  assert predict(apply_fn, image, tile=(2, 7), **options).shape == (1, 3, 2)
  row = [0, 1, 2, 2, 1, 0, 0]
  np.testing.assert_array_equal(seen[0][0, :, :, 0], [row, row])


def test_what_fills_the_last_batch_has_no_influence():
  def apply_fn(tiles):
    empty = ~np.any(tiles, axis=(1, 2, 3), keepdims=True)
    return np.where(empty, np.nan, pointwise(tiles))

  image = random_image(20, 20)  # 4 tiles in batches of 3
  result = predict(apply_fn, image, tile=(12, 12), **OPTIONS)
  np.testing.assert_allclose(result, pointwise(image), atol=1e-6)


def test_a_stop_is_obeyed_before_the_next_batch():
  calls = []

  def apply_fn(tiles):
    calls.append(1)
    return pointwise(tiles)

  with pytest.raises(errors.Interrupted):
    predict(
      apply_fn,
      random_image(40, 40),
      tile=(8, 8),
      should_stop=lambda: len(calls) == 2,
      **OPTIONS,
    )
  assert len(calls) == 2


def test_a_network_with_another_number_of_classes_is_refused():
  with pytest.raises(ValueError, match='expected'):
    predict(pointwise, random_image(9, 9), tile=(8, 8), **{**OPTIONS, 'num_classes': 3})


def box_mean(image, step, reach):
  """A network with a divisor and a limited view: the mean over cells, then over a box of cells.

  Like real ones it pads with zeros, at the far end up to the divisor.
  """
  n = image.shape[-2]
  padded = np.pad(image[..., 0], [(0, 0)] * (image.ndim - 2) + [(0, -n % step)])
  cells = padded.reshape(*padded.shape[:-1], -1, step).mean(-1)
  wide = np.pad(cells, [(0, 0)] * (cells.ndim - 1) + [(reach, reach)])
  total = sum(wide[..., k : k + cells.shape[-1]] * (k + 1) for k in range(2 * reach + 1))
  value = np.repeat(total, step, axis=-1)[..., :n] + image[..., 0] / 8
  return np.stack([value, -value], axis=-1)


@hypothesis.given(
  size=st.integers(1, 90),
  tile=st.integers(1, 60),
  step=st.integers(1, 5),
  reach=st.integers(0, 3),
  batch_size=st.integers(1, 3),
)
@hypothesis.settings(max_examples=200, deadline=None)
def test_exact_tiles_give_the_whole_image_or_are_refused(size, tile, step, reach, batch_size):
  image = np.random.default_rng(0).normal(size=(1, size, 1)).astype(np.float32)
  field = (2 * reach + 1) * step
  options = {'overlap': 0.0, 'divisor': (1, step), 'receptive_field': (1, field)}
  margin = tiling.halo(field, step)
  assert reach * step + step - 1 <= margin  # the first voxel of a cell sees that far to the right
  needed = min(2 * margin + step, -(-size // step) * step)
  if -(-tile // step) * step < needed:
    with pytest.raises(errors.ConfigError, match='too small for predict'):
      tiling.lay_out((1, size), (1, tile), blend='exact', **options)
    return
  layout = tiling.lay_out((1, size), (1, tile), blend='exact', **options)
  assert all(origin % step == 0 for origin in layout.origins[1])

  def apply_fn(tiles):
    return np.stack([box_mean(row, step, reach) for row in tiles])

  found = tiling.predict_tiled(apply_fn, image, layout, batch_size=batch_size, num_classes=2)
  np.testing.assert_allclose(found, box_mean(image, step, reach), atol=1e-4)


def test_a_margin_reaches_as_far_as_a_voxel_sees():
  # Pointwise; a 3 x 3 kernel; a U-Net of two levels: 18 voxels, and cells of 2.
  assert [tiling.halo(1, 1), tiling.halo(3, 1), tiling.halo(18, 2)] == [0, 1, 10]
