"""Links between neighbouring voxels, read from maps of affinities, and the objects that they make.

A link joins a voxel and the next one along an axis. Its strength is the affinity of the two, by the
offsets that lead to a nearest voxel: that of +1 stands at the first of both, that of -1 at the
second; the mean where there are both. A box has the links of its voxels to the next ones.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from emseg_jax.postprocess import relief, stitch
from emseg_jax.postprocess.grid import Box, Grid, Place, Read

__all__ = ['Links', 'nearest']

Offset = tuple[int, ...]


def nearest(offset: Offset) -> bool:
  """Whether an offset leads to a voxel that shares a face."""
  return sum(map(abs, offset)) == 1


class Links:
  """The links of a volume.

  Args:
    maps: offset (y, x) or (z, y, x) -> its affinities, integers of which the largest stands for 1,
      or floats; those of offsets that are not nearest are left alone.
    shape: of the volume.
    dtype: of the maps.
  """

  def __init__(self, maps: Mapping[Offset, Read], shape: Place, dtype: np.dtype) -> None:
    self._shape, self._dtype = shape, dtype
    self.full = relief.full(dtype)
    self._reads: list[list[tuple[int, Read]]] = [[], [], []]
    for offset, read in maps.items():
      if nearest(offset):
        axis = next(a for a in range(-len(offset), 0) if offset[a])
        self._reads[axis].append((offset[axis], read))

  def within_sections(self) -> 'Links':
    """Without those along z."""
    found = Links({}, self._shape, self._dtype)
    found._reads[1:] = self._reads[1:]
    return found

  def along(self, axis: int, start: Place, stop: Place) -> np.ndarray:
    """The strength of each voxel's link to the next one along an axis; 0 at the volume's end."""
    found = [self._pairs(axis, step, read, start, stop) for step, read in self._reads[axis]]
    if not found:  # of sections
      return np.zeros([b - a for a, b in zip(start, stop, strict=True)], self._dtype)
    return found[0] if len(found) == 1 else sum(f.astype(np.float32) for f in found) / len(found)

  def _pairs(self, axis: int, step: int, read: Read, start: Place, stop: Place) -> np.ndarray:
    low, high = list(start), list(stop)
    low[axis] += step < 0  # there the second voxel has the affinity
    high[axis] = min(high[axis] + (step < 0), self._shape[axis] - (step > 0))
    size = [b - a for a, b in zip(start, stop, strict=True)]
    there = high[axis] - low[axis]
    if there <= 0:
      return np.zeros(size, self._dtype)
    behind = [(0, size[axis] - there if a == axis else 0) for a in range(3)]
    return np.pad(read(tuple(low), tuple(high)), behind)

  def strong(self, axis: int, start: Place, stop: Place, threshold: float) -> np.ndarray:
    """Whether a link is above the threshold."""
    return self.along(axis, start, stop) > threshold * self.full

  def ends(self, start: Place, stop: Place, measure: Callable[..., np.ndarray]) -> Iterator:
    """What `measure` (axis, start, stop) says of the links at both ends of every voxel of a box.

    Links from before the volume and behind it are 0.
    """
    for axis in (a for a in range(3) if self._reads[a]):
      low = list(start)
      low[axis] = max(low[axis] - 1, 0)
      values = np.moveaxis(measure(axis, tuple(low), stop), axis, 0)
      if start[axis] == 0:
        values = np.concatenate([np.zeros_like(values[:1]), values])
      yield np.moveaxis(values[1:], 0, axis)
      yield np.moveaxis(values[:-1], 0, axis)

  def linked(self, start: Place, stop: Place, threshold: float) -> np.ndarray:
    """Which voxels have a link above the threshold."""

    def measure(axis: int, low: Place, high: Place) -> np.ndarray:
      return self.strong(axis, low, high, threshold)

    found = np.zeros([b - a for a, b in zip(start, stop, strict=True)], bool)
    for end in self.ends(start, stop, measure):
      found |= end
    return found

  def label(self, start: Place, stop: Place, threshold: float) -> tuple[np.ndarray, int]:
    """The objects of a box by itself: voxels joined by links above the threshold, 1 to n, and n.

    A voxel without such a link, also out of the box, is background.
    """
    strong = [self.strong(axis, start, stop, threshold) for axis in range(3)]
    begins = np.ones(strong[2].shape, bool)
    begins[..., 1:] = ~strong[2][..., :-1]
    run = np.cumsum(begins.ravel()).reshape(begins.shape)  # of voxels linked along x
    pairs = [
      _changes(run[:-1][strong[0][:-1]], run[1:][strong[0][:-1]]),
      _changes(run[:, :-1][strong[1][:, :-1]], run[:, 1:][strong[1][:, :-1]]),
    ]
    owner = stitch.merge(int(run.flat[-1]), pairs)
    label = np.where(self.linked(start, stop, threshold), owner[run - 1] + 1, 0)
    there = np.bincount(label.ravel()) > 0
    there[0] = False
    number = np.where(there, np.cumsum(there), 0)
    return number[label], int(there.sum())

  def touching(self, box: Box, grid: Grid, ids: Read, threshold: float) -> np.ndarray:
    """Pairs of ids [n, 2] that a link above the threshold joins across the far faces of a block."""
    (start, stop), found = box, [np.zeros((0, 2), np.int64)]
    for axis in (a for a in range(3) if stop[a] < grid.shape[a]):
      near, far, behind = list(start), list(start), list(stop)
      near[axis], far[axis], behind[axis] = stop[axis] - 1, stop[axis], stop[axis] + 1
      joined = self.strong(axis, tuple(near), stop, threshold)
      both = ids(tuple(near), stop)[joined], ids(tuple(far), tuple(behind))[joined]
      found.append(np.unique(np.stack(both, axis=1).astype(np.int64), axis=0))
    return np.concatenate(found)


def _changes(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Pairs [n, 2] without those equal to the one before: runs that lie side by side."""
  pairs = np.stack([a, b], axis=1)
  new = np.ones(len(pairs), bool)
  new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
  return pairs[new]
