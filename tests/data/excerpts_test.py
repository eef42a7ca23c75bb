"""The share of large data from which statistics are taken."""

import numpy as np
import pytest

from emseg_jax.data import excerpts


def test_small_data_are_taken_whole():
  shapes = [(4, 5), (6, 3)]
  assert list(excerpts.windows(shapes)) == [(0, (0, 0), (4, 5)), (1, (0, 0), (6, 3))]
  assert list(excerpts.windows(shapes, most=38)) == list(excerpts.windows(shapes))


@pytest.mark.parametrize('shapes', [[(3000, 2000)] * 1000, [(100_000, 700)] * 3, [(300, 9000)]])
def test_large_data_are_represented_evenly_along_every_axis(shapes):
  found = list(excerpts.windows(shapes, most=10**6))
  assert len(found) == excerpts.COUNT
  sections = np.array([index for index, _, _ in found])
  share = np.bincount(sections * 4 // len(shapes), minlength=4)
  if len(shapes) > 3:
    np.testing.assert_array_equal(share, excerpts.COUNT // 4)
  for axis in (0, 1):
    starts = np.array([start[axis] for _, start, _ in found])
    sizes = np.array([size[axis] for _, _, size in found])
    room = np.array([shapes[i][axis] for i in sections]) - sizes
    assert (starts >= 0).all()
    assert (starts <= room).all()
    if room[0]:
      quarters = np.histogram(starts / room[0], bins=4, range=(0, 1))[0]
      assert abs(quarters - excerpts.COUNT / 4).max() < 0.1 * excerpts.COUNT
