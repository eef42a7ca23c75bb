"""Colours of objects: neighbours differ, the same object is the same everywhere."""

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
from scipy import ndimage

from emseg_jax.report import objects


def tiles(rows, columns, *, side=6, gap=0):
  """A board of square objects, numbered from 1, `gap` pixels of background between them."""
  ids = np.zeros((rows * side, columns * side), np.int64)
  for row in range(rows):
    for column in range(columns):
      place = np.s_[row * side : (row + 1) * side - gap, column * side : (column + 1) * side - gap]
      ids[place] = 1 + row * columns + column
  return ids


def touching(ids, found, *, near):
  """Pairs of different objects at most so far apart along an axis that share a colour."""
  same = 0
  for axis in (0, 1):
    for distance in range(1, near + 1):
      a, b = (np.take(x, range(distance, ids.shape[axis]), axis) for x in (ids, found))
      c, d = (np.take(x, range(ids.shape[axis] - distance), axis) for x in (ids, found))
      same += np.count_nonzero((a != c) & (a > 0) & (c > 0) & (b == d))
  return same


def test_neighbours_differ_across_a_thin_line_of_background():
  for gap in (0, 1, 3):
    ids = tiles(8, 9, gap=gap)
    found = objects.colour_numbers(ids)
    assert touching(ids, found, near=4) == 0
    assert not found[ids == 0].any()
    assert set(np.unique(found[ids > 0])) == set(range(1, 10))  # all nine are used


def test_an_object_has_one_colour_wherever_it_is_and_whatever_its_number():
  ids = np.zeros((20, 20), np.int64)
  ids[:5], ids[15:], ids[8:10] = 2**40, 2**40, 7
  found = objects.colour_numbers(ids)
  assert len({*found[:5].ravel(), *found[15:].ravel()}) == 1
  assert found[9, 0] != found[0, 0]


def test_more_neighbours_than_colours_are_drawn_all_the_same():
  """Twelve objects side by side, each a pixel wide, around one: it has more than nine."""
  ids = np.repeat(np.arange(2, 14)[None], 3, axis=0)
  ids = np.concatenate([np.ones((1, 12), np.int64), ids])
  found = objects.colour_numbers(ids)
  assert ((found >= 1) & (found <= 9)).all()
  assert touching(ids, found, near=1) == 0


def test_nothing_stays_nothing():
  assert not objects.colour_numbers(np.zeros((5, 7), np.int32)).any()


@hypothesis.given(
  hypothesis.extra.numpy.arrays(np.int64, (24, 31), elements=st.integers(0, 1)), st.integers(0, 9)
)
def test_pieces_of_random_masks_differ_from_those_that_they_touch(mask, seed):
  """A mask cut into cells around random points: a plane map, for which nine colours are enough."""
  points = np.random.default_rng(seed).integers(0, 24, (12, 2))
  seeds = np.ones(mask.shape, bool)
  seeds[tuple(points.T)] = False
  nearest = ndimage.distance_transform_edt(seeds, return_distances=False, return_indices=True)
  ids = (nearest[0] * 31 + nearest[1] + 1) * mask
  found = objects.colour_numbers(ids)
  assert touching(ids, found, near=1) == 0
  assert ((found > 0) == (ids > 0)).all()
