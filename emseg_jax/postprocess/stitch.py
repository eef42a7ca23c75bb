"""What belongs together across the faces of blocks."""

import itertools
from collections.abc import Iterable

import numpy as np
from scipy import sparse

from emseg_jax.postprocess.grid import Box, Grid, Read

__all__ = ['merge', 'touching']


def touching(box: Box, grid: Grid, read: Read, joined: np.ndarray) -> np.ndarray:
  """Pairs of ids that touch each other across the far faces of a block.

  Args:
    box: the block.
    grid: all blocks.
    read: ids, 0 is background.
    joined: [3, 3, 3] bool, which neighbours a voxel is joined to.

  Returns:
    [pairs, 2] int64, few of them repeated.
  """
  found = [
    _across(box, axis, grid, read, joined)
    for axis in range(3)
    if joined.take(2, axis).any() and box[1][axis] < grid.shape[axis]
  ]
  return np.concatenate([np.zeros((0, 2), np.int64), *found])


def _across(box: Box, axis: int, grid: Grid, read: Read, joined: np.ndarray) -> np.ndarray:
  """Pairs across the far face of a block along `axis`.

  Two voxels of different blocks lie on both sides of a far face of one of them. Around the face one
  more voxel is read, for neighbours that share but an edge or a corner.
  """
  start, stop = map(list, box)
  start[axis], stop[axis] = stop[axis] - 1, stop[axis] + 1
  others = [i for i in range(3) if i != axis]
  margin = [(0, 0)] * 2
  for k, i in enumerate(others):
    low, high = max(start[i] - 1, 0), min(stop[i] + 1, grid.shape[i])
    margin[k] = (1 - (start[i] - low), 1 - (high - stop[i]))
    start[i], stop[i] = low, high
  near, far = np.moveaxis(read(tuple(start), tuple(stop)), axis, 0)
  near, far = np.pad(near, margin), np.pad(far, margin)
  core = near[1:-1, 1:-1]
  found = [np.zeros((0, 2), np.int64)]
  for i, k in itertools.product(range(3), repeat=2):
    if joined.take(2, axis)[i, k]:
      other = far[i : i + core.shape[0], k : k + core.shape[1]]
      both = (core > 0) & (other > 0)
      found.append(np.unique(np.stack([core[both], other[both]], axis=1).astype(np.int64), axis=0))
  return np.concatenate(found)


def merge(count: int, pairs: Iterable[np.ndarray]) -> np.ndarray:
  """Which ids are one, if those in a pair are.

  Args:
    count: ids are 1 to count.
    pairs: [n, 2] arrays.

  Returns:
    [count]: for each id the number of its group, 0 to groups - 1 in any order.
  """
  joined = np.concatenate([np.zeros((0, 2), np.int64), *pairs]) - 1
  graph = sparse.coo_array((np.ones(len(joined), bool), joined.T), (count, count))
  return sparse.csgraph.connected_components(graph, directed=False)[1].astype(np.int64)
