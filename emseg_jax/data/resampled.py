"""A volume at another voxel size, resampled as it is read.

Voxel i of the result lies at (i + 0.5)·f - 0.5 of the stored ones, f being stored voxels per voxel,
and beyond the ends the last voxel goes on. Images are interpolated linearly; where the result is
coarser, over a triangle as wide as its voxels, so that nothing finer comes back as a pattern.
Labels take the nearest voxel.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from emseg_jax.data.volume import Place, Volume, VoxelSize, number
from emseg_jax.errors import DataError

__all__ = ['Resampled', 'back', 'factors', 'resample']

CLOSE = 0.01  # sizes that differ less, relatively, are the same
Factors = tuple[float, float, float]


def factors(volume: Volume, voxel_size_zyx: VoxelSize) -> Factors:
  """Stored voxels per voxel of the wished size, (z, y, x); 1 where they are as good as equal.

  Single sections have no z, so it is 1 for them.

  Raises:
    DataError: the volume's own size is not known.
  """
  known = volume.voxel_size_zyx or (None, None, None)
  found = []
  for axis, own, wished in zip('zyx', known, voxel_size_zyx, strict=True):
    if wished is None or (axis == 'z' and not volume.axes.startswith('Z')):
      found.append(1.0)
      continue
    if own is None:
      raise DataError(
        f'{volume.path}: its voxel size along {axis} is not known, so it cannot be brought to '
        f'{wished:g} nm; give it in reading.voxel_size'
      )
    ratio = wished / own
    found.append(ratio if abs(ratio - 1) > CLOSE else 1.0)
  return found[0], found[1], found[2]


def resample(volume: Volume, voxel_size_zyx: VoxelSize, *, labels: bool) -> Volume:
  """The volume itself where it has this voxel size, otherwise resampled.

  Args:
    volume: of known voxel size.
    voxel_size_zyx: nm; None leaves an axis as it is.
    labels: nearest voxel instead of interpolation.

  Raises:
    DataError: the volume's own size is not known.
  """
  found = factors(volume, voxel_size_zyx)
  return volume if found == (1.0, 1.0, 1.0) else Resampled(volume, found, labels=labels)


def back(sections: Iterable[np.ndarray], volume: Volume, original: Volume) -> Iterator[np.ndarray]:
  """Brings sections that were made from a resampled volume to the voxels of the original.

  Args:
    sections: [Y, X], one per section of `volume`, in order; of each voxel the nearest is taken.
    volume: what `resample` made of `original`.
    original: the volume as it is stored.
  """
  if volume is original:
    yield from sections
    return
  rest = enumerate(sections)
  number, section = next(rest)
  for index in range(len(original)):
    ends = (len(volume), *section.shape)
    shape = (len(original), *original.section_shape(index))
    # The voxel in which the middle of voxel i of n lies, of m: floor((i + 0.5)·m / n).
    z, *yx = ((2 * np.arange(n) + 1) * m // (2 * n) for n, m in zip(shape, ends, strict=True))
    while number < z[index]:
      number, section = next(rest)
    yield section[np.ix_(*yx)]


class Resampled(Volume):
  """See above. `kind`, `axes`, type and files are those of the volume beneath."""

  cheap_boxes = True

  def __init__(self, volume: Volume, factors: Factors, *, labels: bool) -> None:
    self._volume, self._factors, self._labels = volume, factors, labels
    self.path, self.kind, self.axes = volume.path, volume.kind, volume.axes
    self.dtype, self.channels, self.files = volume.dtype, volume.channels, volume.files
    self.voxel_size_zyx = tuple(
      None if own is None else own * f
      for own, f in zip(volume.voxel_size_zyx or (None,) * 3, factors, strict=True)
    )
    depth = _count(len(volume), factors[0])
    same = factors[0] == 1
    self.names = volume.names if same else number(volume.names[0].partition('[')[0], depth)

  def section_shape(self, index: int) -> tuple[int, int]:
    y, x = self._volume.section_shape(index if self._factors[0] == 1 else 0)
    return _count(y, self._factors[1]), _count(x, self._factors[2])

  def _read(self, index: int) -> np.ndarray:
    return self.box((index, 0, 0), (index + 1, *self.section_shape(index)))[0]

  def box(self, start: Place, stop: Place) -> np.ndarray:
    self._check_box(start, stop)
    one = self._factors[0] == 1
    ends = (len(self._volume), *self._volume.section_shape(start[0] if one else 0))
    taps = [
      _nearest(a, b, n, f) if self._labels else _weights(a, b, n, f)
      for a, b, n, f in zip(start, stop, ends, self._factors, strict=True)
    ]
    low, high = zip(*((int(t[0].min()), int(t[0].max()) + 1) for t in taps), strict=True)
    block = self._volume.box(low, high)
    if self._labels:
      return block[np.ix_(*(t[0][:, 0] - a for t, a in zip(taps, low, strict=True)))]
    result = block.astype(np.float32)
    for axis, ((places, weights), a) in enumerate(zip(taps, low, strict=True)):
      result = _blend(result, places - a, weights, axis)
    if self.dtype.kind in 'iu':
      info = np.iinfo(self.dtype)
      result = np.clip(np.round(result), info.min, info.max)
    return result.astype(self.dtype)


def _count(length: int, factor: float) -> int:
  return max(1, round(length / factor))


def _nearest(start: int, stop: int, length: int, factor: float) -> tuple[np.ndarray, None]:
  """Stored voxels [n, 1] of voxels start to stop - 1."""
  centre = (np.arange(start, stop) + 0.5) * factor
  return np.clip(np.floor(centre).astype(int), 0, length - 1)[:, None], None


def _weights(start: int, stop: int, length: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
  """Stored voxels [n, taps] and their weights [n, taps], which sum to 1."""
  centre = (np.arange(start, stop) + 0.5) * factor - 0.5
  reach = max(1.0, factor)
  first = np.ceil(centre - reach).astype(int)
  places = first[:, None] + np.arange(int(2 * reach) + 1)
  weights = np.maximum(0.0, 1 - np.abs(places - centre[:, None]) / reach)
  weights /= weights.sum(axis=1, keepdims=True)
  return np.clip(places, 0, length - 1), weights.astype(np.float32)


def _blend(block: np.ndarray, places: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
  """Weighted sums along one axis."""
  shape = [1] * block.ndim
  shape[axis] = -1
  parts = (
    block.take(places[:, k], axis) * weights[:, k].reshape(shape) for k in range(places.shape[1])
  )
  return sum(parts)
