"""Copies of an image: which there are, and that what is said of them comes back to its place."""

import jax.numpy as jnp
import numpy as np
import pytest

from emseg_jax.symmetries import symmetries

IMAGE = np.arange(2 * 3 * 4 * 5 * 2, dtype=np.float32).reshape(2, 3, 4, 5, 2)
ALL = ('flips', 'rotations', 'views')


# Orders of the groups: 2^n mirrorings, 4 turns, the square's 8, times 2 for z; the cube's 48.
@pytest.mark.parametrize(
  ('names', 'flat', 'deep'),
  [
    ((), 1, 1),
    (('flips',), 4, 8),
    (('rotations',), 4, 4),
    (('flips', 'rotations'), 8, 16),
    (('views',), None, 3),
    (('flips', 'views'), None, 24),
    (ALL, None, 48),
  ],
)
def test_there_are_as_many_copies_as_the_group_has_elements(names, flat, deep):
  for image, count in ((IMAGE[:, 0], flat), (IMAGE, deep)):
    if count is None:
      continue
    found = symmetries(names, image.ndim - 2)
    copies = {
      (s.apply(jnp.asarray(image)).shape, s.apply(jnp.asarray(image)).tobytes()) for s in found
    }
    assert len(found) == len(copies) == count
    np.testing.assert_array_equal(found[0].apply(image), image)


def test_rotations_are_those_of_numpy():
  flat = IMAGE[:, 0]
  found = {np.asarray(s.apply(flat)).tobytes() for s in symmetries(('rotations',), 2)}
  assert found == {np.rot90(flat, k, axes=(1, 2)).tobytes() for k in range(4)}
  found = {np.asarray(s.apply(IMAGE)).tobytes() for s in symmetries(('rotations',), 3)}
  assert found == {np.rot90(IMAGE, k, axes=(2, 3)).tobytes() for k in range(4)}


def test_views_look_along_every_axis():
  found = [np.asarray(s.apply(IMAGE)) for s in symmetries(('views',), 3)]
  expected = [IMAGE, np.swapaxes(IMAGE, 1, 2), np.swapaxes(IMAGE, 1, 3)]
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('symmetry', symmetries(ALL, 3))
def test_a_copy_is_brought_back(symmetry):
  np.testing.assert_array_equal(symmetry.undo(symmetry.apply(IMAGE)), IMAGE)


@pytest.mark.parametrize('names', [('flips',), ('rotations',), ('flips', 'rotations')])
def test_the_mean_over_copies_does_not_change_when_the_image_is_turned(names):
  """True of any network, of this one too: it looks at the voxel above and to the left."""

  def network(x):
    return 2 * jnp.roll(x, 1, axis=1) + jnp.roll(x, 1, axis=2) ** 2

  def mean(x):
    return sum(s.undo(network(s.apply(x))) for s in symmetries(names, 2))

  image = np.random.default_rng(0).normal(size=(1, 6, 6, 1)).astype(np.float32)
  for turn in symmetries(names, 2):
    np.testing.assert_allclose(
      turn.undo(mean(turn.apply(image))), mean(image), rtol=1e-4, atol=1e-5
    )
