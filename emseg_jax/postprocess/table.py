"""The table of instances: size, centroid, bounding box, gathered block by block, written as CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emseg_jax.data.volume import VoxelSize
from emseg_jax.postprocess.grid import Place

__all__ = ['Statistics', 'measure']


def measure(start: Place, ids: np.ndarray) -> np.ndarray:
  """The part of instances that lies in a box.

  Args:
    start: of the box.
    ids: [z, y, x], 0 is background.

  Returns:
    int64 [instances, 11]: id, voxels, sums of z, y, x over them, start and stop of their box.
  """
  inside = np.nonzero(ids)
  found, which = np.unique(ids[inside], return_inverse=True)
  counts = np.bincount(which, minlength=len(found))
  sums, low, high = np.zeros((3, len(found), 3), np.int64)
  for axis, (first, places) in enumerate(zip(start, inside, strict=True)):
    sums[:, axis] = np.bincount(which, weights=places, minlength=len(found))
    sums[:, axis] += first * counts
    low[:, axis] = ids.shape[axis]
    np.minimum.at(low[:, axis], which, places)
    np.maximum.at(high[:, axis], which, places + 1)
  return np.column_stack([found.astype(np.int64), counts, sums, low + start, high + start])


class Statistics:
  """What is known of instances 1 to `count` of a volume.

  Args:
    count: how many there are.
    shape: of the volume.
    border: axes at whose ends the volume has a border.
  """

  def __init__(self, count: int, shape: Place, border: Sequence[int]) -> None:
    self._shape, self._border = shape, border
    self._sums = np.zeros((count, 3), np.int64)
    self.voxels = np.zeros(count, np.int64)
    self.start = np.full((count, 3), np.iinfo(np.int64).max)
    self.stop = np.zeros((count, 3), np.int64)

  @property
  def centroid(self) -> np.ndarray:
    """[count, 3] float64, voxels; the middle of the first voxel is 0."""
    return self._sums / self.voxels[:, None]

  @property
  def at_border(self) -> np.ndarray:
    """[count] bool, whether an instance touches the border of the volume."""
    found = np.zeros(len(self.voxels), bool)
    for axis in self._border:
      found |= (self.start[:, axis] == 0) | (self.stop[:, axis] == self._shape[axis])
    return found

  def add(self, rows: np.ndarray) -> None:
    """Takes in what `measure` found in a box."""
    ids, voxels, sums, start, stop = np.split(rows, (1, 2, 5, 8), axis=1)
    which = ids[:, 0] - 1
    self.voxels[which] += voxels[:, 0]
    self._sums[which] += sums
    self.start[which] = np.minimum(self.start[which], start)
    self.stop[which] = np.maximum(self.stop[which], stop)

  def write(self, path: Path, voxel_size_zyx: VoxelSize | None) -> None:
    """Writes one row per instance.

    Columns: id; voxels; volume_nm3, empty where the voxel size is unknown; centroid_z_nm, y, x, or
    centroid_z_voxels, y, x, where the middle of the first voxel of the volume is 0; start_z to
    stop_x, the bounding box in voxels, from start up to before stop; touches_border, yes or no.
    """
    size = voxel_size_zyx or (None,) * 3
    known = None not in size
    scale, unit = (np.array(size), 'nm') if known else (np.ones(3), 'voxels')
    with open(path, 'w', encoding='utf-8', newline='') as file:
      writer = csv.writer(file, lineterminator='\n')
      centroids = [f'centroid_{axis}_{unit}' for axis in 'zyx']
      box = [f'{end}_{axis}' for end in ('start', 'stop') for axis in 'zyx']
      writer.writerow(['id', 'voxels', 'volume_nm3', *centroids, *box, 'touches_border'])
      centroid, at_border = self.centroid * scale, self.at_border
      for row, voxels in enumerate(self.voxels):
        volume = f'{voxels * scale.prod():.10g}' if known else ''
        places = [f'{c:.10g}' for c in centroid[row]]
        touches = 'yes' if at_border[row] else 'no'
        numbers = (*self.start[row], *self.stop[row])
        writer.writerow([row + 1, voxels, volume, *places, *numbers, touches])
