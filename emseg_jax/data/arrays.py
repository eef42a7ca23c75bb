"""Arrays in files as volumes: which stored axis is which, and boxes cut out of them.

A `Layout` says how a stored array becomes [Z, Y, X] or [Z, Y, X, 3]; a `StoredVolume` reads boxes
through it, so that a section of a huge file costs that section only. Axes are named in the order
in which the library of the format lists them, slowest first for MRC, HDF5 and Zarr, X first for
N5, precomputed and NIfTI.
"""

import bz2
import dataclasses
import gzip
import math
import os
from collections.abc import Callable, Sequence
from typing import IO, Protocol

import numpy as np

from emseg_jax.config import Reading
from emseg_jax.data.units import known_size
from emseg_jax.data.volume import Kind, Place, Volume, VoxelSize, check_memory, decoding, number
from emseg_jax.errors import DataError

__all__ = [
  'Held',
  'Layout',
  'Mapped',
  'Stored',
  'StoredVolume',
  'check_chunk',
  'check_type',
  'find_layout',
  'locate',
  'open_packed',
]

PACKED_STEP = 2**24  # bytes decompressed at once
LARGEST_CHUNK = 2**31  # bytes, the limit of Blosc


@dataclasses.dataclass(frozen=True)
class Layout:
  """How the axes of an array lie: `axes` names them, `channel` is taken out of axis C.

  Without a channel, C is the last axis and holds RGB, or there is none. Axes other than these have
  length 1.
  """

  axes: str
  shape: tuple[int, ...]
  channel: int | None

  @property
  def zyx(self) -> Place:
    lengths = dict(zip(self.axes, self.shape, strict=True))
    return lengths.get('Z', 1), lengths['Y'], lengths['X']

  @property
  def colour(self) -> bool:
    return 'C' in self.axes and self.channel is None

  def index(self, start: Place, stop: Place) -> tuple[slice, ...]:
    """The part of the stored array that holds a box."""
    box = {a: slice(i, j) for a, i, j in zip('ZYX', start, stop, strict=True)}
    channel = slice(None) if self.channel is None else slice(self.channel, self.channel + 1)
    return tuple(box.get(a, channel if a == 'C' else slice(0, 1)) for a in self.axes)

  def arrange(self, array: np.ndarray) -> np.ndarray:
    """What `index` cut out, as [z, y, x] or [z, y, x, 3]."""
    wanted = [a for a in 'ZYX' if a in self.axes] + ['C'] * self.colour
    rest = [a for a in self.axes if a not in wanted]
    array = array.transpose([self.axes.index(a) for a in rest + wanted])
    return array.reshape(*(() if 'Z' in wanted else (1,)), *array.shape[len(rest) :])


def find_layout(
  axes: str | None, shape: tuple[int, ...], reading: Reading, where: str, *, plain: str = 'ZYX'
) -> Layout:
  """Decides which axis is which.

  `reading.axes` comes first, then what the file says. Without both, three axes are taken as `plain`
  and two as its last two, or first two if it begins with X; more are not guessed.

  Args:
    axes: as the file says; None if it does not.
    shape: of the stored array.
    reading: axes and channel, where given.
    where: for messages.
    plain: order of three axes in this format.

  Raises:
    DataError: axes that are unknown, do not fit the shape, or are more than a volume has.
  """
  names = reading.axes or axes
  lengths = ' x '.join(str(n) for n in shape)
  if names is None and len(shape) in (2, 3):
    names = plain if len(shape) == 3 else plain.replace('Z', '')
  if names is None:
    raise DataError(
      f'{where}: is {lengths} and does not name its {len(shape)} axes; set reading.axes, for '
      "example to 'CZYX'"
    )
  if len(names) != len(shape):
    raise DataError(
      f'{where}: is {lengths}, {len(shape)} axes, but the axes {names} are {len(names)}; set '
      'reading.axes to one letter of Z Y X C T per axis'
    )
  if set(names) - set('ZYXCT') or len(set(names)) < len(names) or not {'Y', 'X'} <= set(names):
    raise DataError(
      f'{where}: has the axes {names}, but Y and X, and at most Z, C and T, are needed, each once; '
      'set reading.axes'
    )
  if 0 in shape:
    raise DataError(f'{where}: is empty, {lengths}')
  found = dict(zip(names, shape, strict=True))
  if found.get('T', 1) > 1:
    raise DataError(
      f'{where}: has {found["T"]} time points, but one is needed; save one, or name the axes by '
      'reading.axes if T is none'
    )
  return Layout(names, shape, _choose_channel(names, found.get('C', 1), reading.channel, where))


def _choose_channel(axes: str, count: int, channel: int | None, where: str) -> int | None:
  if channel is None and count == 3 and axes.endswith('C'):
    return None  # RGB
  if channel is None and count > 1:
    raise DataError(
      f'{where}: has {count} channels (axes {axes}); choose one with reading.channel, 0 to '
      f'{count - 1}'
    )
  if channel is not None and channel >= count:
    raise DataError(
      f'{where}: has {count} channels, reading.channel={channel} is beyond 0 to {count - 1}'
    )
  return channel or 0


def check_type(dtype: np.dtype, where: str) -> np.dtype:
  """The native form of a type of voxels. DataError if they are no real numbers."""
  if dtype.kind not in 'buif' or dtype.itemsize > 8:
    raise DataError(f'{where}: has voxels of type {dtype}, but integers or floats are needed')
  return dtype.newbyteorder('=')


def check_chunk(shape: Sequence[int], dtype: np.dtype, where: str) -> None:
  """Refuses chunks that no writer makes: readers allocate all of one, or abort. DataError."""
  size = math.prod(int(n) for n in shape) * dtype.itemsize
  if size > LARGEST_CHUNK:
    raise DataError(
      f'{where}: is stored in chunks of {" x ".join(str(n) for n in shape)} {dtype}, '
      f'{size / 1e9:.0f} GB each, but at most {LARGEST_CHUNK / 1e9:.0f} GB are read; is its header '
      'damaged?'
    )


# ---- where the numbers are ----------------------------------------------------------------------


class Stored(Protocol):
  """An array somewhere; threads and processes can share it."""

  def read(self, index: tuple[slice, ...]) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Held:
  """An array in memory: what had to be decompressed as a whole."""

  array: np.ndarray

  def read(self, index: tuple[slice, ...]) -> np.ndarray:
    return self.array[index]


@dataclasses.dataclass(frozen=True)
class Mapped:
  """An uncompressed array in a file: mapped into memory for each read, then released."""

  path: str
  dtype: np.dtype
  shape: tuple[int, ...]
  offset: int
  order: str = 'C'

  def __post_init__(self) -> None:
    end = self.offset + math.prod(self.shape) * self.dtype.itemsize
    there = os.path.getsize(self.path)
    if self.offset < 0 or end > there:
      raise DataError(
        f'{self.path}: its header announces {" x ".join(str(n) for n in self.shape)} {self.dtype}, '
        f'{end} bytes in all, but the file has {there}; it was cut short, or its header is damaged'
      )

  def read(self, index: tuple[slice, ...]) -> np.ndarray:
    mapped = np.memmap(self.path, self.dtype, 'r', self.offset, self.shape, self.order)
    return np.array(mapped[index])


def open_packed(path: str) -> IO[bytes]:
  """Opens a file, through gzip or bzip2 if its first bytes say so."""
  return _opener(path)(path, 'rb')


def locate(
  path: str, dtype: np.dtype, shape: tuple[int, ...], offset: int, *, order: str = 'C'
) -> Stored:
  """The array behind the header of a file: mapped, or decompressed if the file is packed.

  Raises:
    DataError: fewer bytes than the header announces, or what must be decompressed is larger than
      the memory of this machine.
  """
  if _opener(path) is open:
    return Mapped(path, dtype, shape, offset, order)
  check_memory(shape, dtype, path)
  array = np.empty(math.prod(shape), dtype)
  target = memoryview(array.view(np.uint8))
  filled = 0
  with open_packed(path) as file:
    file.seek(offset)
    while filled < len(target):
      count = file.readinto(target[filled : filled + PACKED_STEP])
      if not count:
        raise DataError(
          f'{path}: its header announces {len(target)} bytes of voxels, but {filled} are there; it '
          'was cut short, or its header is damaged'
        )
      filled += count
    file.read(PACKED_STEP)  # to the end, where the checksum is
  return Held(array.reshape(shape, order=order))


def _opener(path: str) -> Callable[..., IO[bytes]]:
  with open(path, 'rb') as file:
    magic = file.read(3)
  return gzip.open if magic[:2] == b'\x1f\x8b' else bz2.open if magic == b'BZh' else open


# ---- the volume ---------------------------------------------------------------------------------


class StoredVolume(Volume):
  """A stored array, read box by box."""

  cheap_boxes = True

  def __init__(
    self,
    path: str,
    stored: Stored,
    *,
    kind: Kind,
    layout: Layout,
    dtype: np.dtype,
    name: str,
    files: tuple[str, ...] = (),
    voxel_size_zyx: VoxelSize | None = None,
  ) -> None:
    self.path, self.kind, self.files, self._stored, self._layout = path, kind, files, stored, layout
    self.dtype = check_type(dtype, path)
    self.channels = 3 if layout.colour else 1
    self.axes = 'Z' * ('Z' in layout.axes) + 'YX' + 'C' * layout.colour
    self.names = number(name, layout.zyx[0]) if 'Z' in layout.axes else (name,)
    self.voxel_size_zyx = voxel_size_zyx and known_size(voxel_size_zyx)

  def section_shape(self, index: int) -> tuple[int, int]:
    del index
    return self._layout.zyx[1:]

  def _read(self, index: int) -> np.ndarray:
    return self._cut((index, 0, 0), (index + 1, *self._layout.zyx[1:]))[0]

  def box(self, start: Place, stop: Place) -> np.ndarray:
    self._check_box(start, stop)
    where = f'{self.path}: box {tuple(start)} to {tuple(stop)} (z y x)'
    extent = tuple(b - a for a, b in zip(start, stop, strict=True))
    check_memory((*extent, self.channels), self.dtype, where)
    with decoding(where):
      return self._finish(self._cut(start, stop), extent, where)

  def _ends(self, first: int, last: int) -> Place:
    del first, last
    return self._layout.zyx

  def _cut(self, start: Place, stop: Place) -> np.ndarray:
    return self._layout.arrange(self._stored.read(self._layout.index(start, stop)))
