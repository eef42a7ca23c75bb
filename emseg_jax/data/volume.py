"""What every volume offers, however it is stored: sections, boxes, and what is known about them.

A volume keeps no file open and never changes, so that any number of threads and processes may read
from it at once. Sections are [Y, X], or [Y, X, 3] for colour, in the file's type and native byte
order; they may be read-only.
"""

import abc
import contextlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from emseg_jax.data.units import VoxelSize
from emseg_jax.errors import DataError

__all__ = [
  'ArrayVolume',
  'Place',
  'Volume',
  'VoxelSize',
  'check_memory',
  'decoding',
  'number',
  'stem',
]

Kind = Literal[
  'image', 'folder', 'stack', 'memory', 'mrc', 'hdf5', 'zarr', 'n5', 'precomputed', 'nifti'
]
Place = tuple[int, int, int]

MOST_SECTIONS = 2**20


class Volume(abc.ABC):
  """A sequence of sections.

  Attributes:
    path: as the user gave it.
    kind: what it is on disk; 'memory' for arrays.
    axes: 'YX', 'ZYX' (sections of one volume, equal sizes) or 'NYX' (single images, sizes may
      differ), with 'C' behind it for colour.
    dtype: of the pixels, native byte order; bool for 1-bit images.
    channels: 1, or 3 for RGB. A constant alpha channel is dropped; a varying one is a DataError
      when its section is read, because the values under it may be meaningless.
    voxel_size_zyx: nm, None where unknown; None if nothing is known.
    names: one per section: the file's stem, 'stem[007]' in a stack.
    files: the files read: one per section in a folder, otherwise one; none for arrays and remote
      stores.
    offset_zyx: where its first voxel lies, if it is a part of a volume, voxels.
    cheap_boxes: a box of a huge section costs no more than that box.
  """

  path: str
  kind: Kind
  axes: str
  dtype: np.dtype
  channels: int
  voxel_size_zyx: VoxelSize | None = None
  names: tuple[str, ...]
  files: tuple[str, ...] = ()
  offset_zyx: Place = (0, 0, 0)
  cheap_boxes: bool = False

  def __len__(self) -> int:
    return len(self.names)

  @abc.abstractmethod
  def section_shape(self, index: int) -> tuple[int, int]:
    """(y, x) of a section, without decoding its pixels."""

  @abc.abstractmethod
  def _read(self, index: int) -> np.ndarray:
    """Pixels of a section, possibly with alpha, in any byte order; may raise anything."""

  def section(self, index: int) -> np.ndarray:
    """Section `index`, from 0: [Y, X] or [Y, X, 3].

    Raises:
      DataError: damaged or truncated pixels, NaN or infinite values, transparency that varies.
      IndexError: no such section.
    """
    if not 0 <= index < len(self):
      raise IndexError(f'{self.path}: section {index} of {len(self)}')
    one_each = self.kind in ('image', 'folder')
    where = self.files[index] if one_each else f'{self.path}: section {index}'
    check_memory((*self.section_shape(index), self.channels), self.dtype, where)
    with decoding(where):
      array = _drop_alpha(self._read(index), self.channels, where)
      return self._finish(array, self.section_shape(index), where)

  def box(self, start: Place, stop: Place) -> np.ndarray:
    """The voxels from `start` up to before `stop`, both (z, y, x): [z, y, x] or [z, y, x, 3].

    Raises:
      DataError: as `section`.
      IndexError: the box is empty or reaches beyond the volume.
    """
    self._check_box(start, stop)
    (first, *low), (last, *high) = start, stop
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return np.stack([self.section(i)[window] for i in range(first, last)])

  def _finish(self, array: np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
    shape = (*shape, *(3,) * (self.channels == 3))
    if array.shape != shape:
      raise DataError(
        f'{where}: its voxels are {array.shape}, but its header announces {shape}; it is damaged'
      )
    array = np.ascontiguousarray(array, dtype=self.dtype)
    if array.dtype.kind == 'f':
      bad = array.size - int(np.count_nonzero(np.isfinite(array)))
      if bad:
        raise DataError(
          f'{where}: {bad} of {array.size} values are NaN or infinite; replace them by numbers'
        )
    return array

  def _ends(self, first: int, last: int) -> Place:
    """How far boxes may reach: the size (z, y, x) that sections `first` to `last` - 1 share."""
    shapes = {self.section_shape(i) for i in range(max(first, 0), min(last, len(self)))}
    return (len(self), *map(min, zip(*shapes, strict=True))) if shapes else (len(self), 0, 0)

  def _check_box(self, start: Place, stop: Place) -> None:
    ends = self._ends(start[0], stop[0])
    if not all(0 <= a < b <= n for a, b, n in zip(start, stop, ends, strict=True)):
      raise IndexError(f'{self.path}: box {tuple(start)} to {tuple(stop)} of {ends} (z y x)')

  def __getitem__(self, index: Any) -> np.ndarray:
    """Reads like a numpy array: volume[3], volume[2:5], volume[2:5, :100, 50:60]."""
    z, *rest = index if isinstance(index, tuple) else (index,)
    if not isinstance(z, slice):
      return self.section(range(len(self))[z])[tuple(rest)]
    numbers = range(len(self))[z]
    if not numbers:
      raise IndexError(f'{self.path}: no sections in {z} of {len(self)}')
    shapes = {self.section_shape(i) for i in numbers}
    if len(shapes) > 1:
      raise DataError(
        f'{self.path}: sections {numbers[0]} to {numbers[-1]} cannot be one array, their sizes are '
        f'{sorted(shapes)}; read them one by one'
      )
    return np.stack([self.section(i)[tuple(rest)] for i in numbers])


class ArrayVolume(Volume):
  """Sections in memory: [Z, Y, X] or [Z, Y, X, 3]; with axes='NYX' unrelated images of one size."""

  def __init__(
    self,
    array: np.ndarray,
    *,
    name: str = 'memory',
    axes: Literal['ZYX', 'NYX'] = 'ZYX',
    voxel_size_zyx: VoxelSize | None = None,
  ) -> None:
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[-1] != 3) or 0 in array.shape:
      raise DataError(f'{name}: shape {array.shape} is neither [Z, Y, X] nor [Z, Y, X, 3]')
    self.path, self.kind, self.voxel_size_zyx = name, 'memory', voxel_size_zyx
    self.axes = axes + 'C' * (array.ndim - 3)
    self.dtype, self.channels = array.dtype.newbyteorder('='), 3 if array.ndim == 4 else 1
    self.names = number(name, len(array))
    self._array = array

  def section_shape(self, index: int) -> tuple[int, int]:
    del index
    return self._array.shape[1:3]

  def _read(self, index: int) -> np.ndarray:
    return self._array[index]


# ---- what readers share -------------------------------------------------------------------------


def stem(path: str | Path) -> str:
  """'folder/a.ome.tif' -> 'a', 'b.mrc.gz' -> 'b', 'c.nii.gz' -> 'c'."""
  name = re.sub(r'\.(gz|bz2)$', '', Path(path).name, flags=re.IGNORECASE)
  return Path(name).stem.removesuffix('.ome')


def number(name: str, count: int) -> tuple[str, ...]:
  """The names of `count` sections.

  Raises:
    DataError: so many that the header, or the order of the axes, must be wrong.
  """
  if count > MOST_SECTIONS:
    raise DataError(
      f'{name}: would have {count} sections, but at most {MOST_SECTIONS} are allowed; is its '
      'header damaged, or are its axes in another order (reading.axes)?'
    )
  return tuple(f'{name}[{i:03d}]' for i in range(count))


def check_memory(shape: tuple[int, ...], dtype: np.dtype, where: str) -> None:
  """Refuses what cannot be in memory, before anything is allocated.

  Raises:
    DataError: larger than the memory of this machine.
  """
  needed = math.prod(int(n) for n in shape) * dtype.itemsize
  there = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  if needed > there:
    raise DataError(
      f'{where}: is {" x ".join(str(n) for n in shape)} {dtype}, {needed / 1e9:.0f} GB, but this '
      f'machine has {there / 1e9:.0f} GB of memory; is the header damaged?'
    )


def _drop_alpha(array: np.ndarray, channels: int, where: str) -> np.ndarray:
  if array.ndim == 3 and array.shape[-1] == channels + 1:
    alpha = array[..., -1]
    if alpha.size and alpha.min() != alpha.max():
      raise DataError(
        f'{where}: its transparency varies from {alpha.min()} to {alpha.max()}; save the image '
        'without alpha channel, on the background it is meant to have'
      )
    array = array[..., :-1]
    return array[..., 0] if channels == 1 else array
  return array


@contextlib.contextmanager
def decoding(where: str) -> Iterator[None]:
  """Turns whatever a decoder raises on a broken file into one DataError."""
  try:
    yield
  except DataError:
    raise
  except Exception as error:
    if isinstance(error, OSError) and error.errno:  # from the system, not from a decoder
      raise DataError(f'{where}: cannot be read: {error.strerror}') from error
    reason = str(error) or type(error).__name__
    raise DataError(f'{where}: cannot be read, damaged or cut short? ({reason})') from error
