"""Image files as sequences of sections, read one at a time.

`open_volume` looks at headers only; pixels are decoded when a section is asked for. A volume keeps
no file open and never changes, so that any number of threads and processes may read from it at
once. Sections are [Y, X], or [Y, X, 3] for colour, in the file's type and native byte order; they
may be read-only.
"""

import abc
import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from emseg_jax.data import raster, tiff
from emseg_jax.data.tiff import Palette
from emseg_jax.errors import DataError

__all__ = ['ArrayVolume', 'ImageFile', 'ImageFolder', 'TiffStack', 'Volume', 'open_volume']

VoxelSize = tuple[float | None, float | None, float | None]

TIFF_SUFFIXES = ('.tif', '.tiff', '.btf', '.tf8')
OPENERS = {
  '.png': raster.open_png,
  '.jpg': raster.open_jpeg,
  '.jpeg': raster.open_jpeg,
  **dict.fromkeys(TIFF_SUFFIXES, tiff.open_tiff),
}
READABLE = ', '.join(OPENERS)
# What else is found in folders of images and cannot be meant as one.
NO_IMAGES = (
  '.json',
  '.txt',
  '.csv',
  '.tsv',
  '.md',
  '.xml',
  '.yaml',
  '.yml',
  '.log',
  '.html',
  '.db',
)


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
    files: the files read: one per section in a folder, otherwise one; none for arrays.
  """

  path: str
  kind: Literal['image', 'folder', 'stack', 'memory']
  axes: str
  dtype: np.dtype
  channels: int
  voxel_size_zyx: VoxelSize | None = None
  names: tuple[str, ...]
  files: tuple[str, ...] = ()

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
    with _decoding(where):
      array = _drop_alpha(self._read(index), self.channels, where)
      array = np.ascontiguousarray(array, dtype=self.dtype)
    if array.dtype.kind == 'f':
      bad = array.size - int(np.count_nonzero(np.isfinite(array)))
      if bad:
        raise DataError(
          f'{where}: {bad} of {array.size} values are NaN or infinite; replace them by numbers'
        )
    return array

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
    self.names = _number(name, len(array))
    self._array = array

  def section_shape(self, index: int) -> tuple[int, int]:
    del index
    return self._array.shape[1:3]

  def _read(self, index: int) -> np.ndarray:
    return self._array[index]


class _FileVolume(Volume):
  """Sections in one file."""

  def __init__(self, path: str, file: tiff.TiffPages | raster.RasterFile) -> None:
    self.path, self.files, self._file = path, (path,), file
    self.dtype, self.channels = file.dtype, file.channels
    self.voxel_size_zyx = file.voxel_size_zyx

  def section_shape(self, index: int) -> tuple[int, int]:
    del index
    return self._file.shape

  def _read(self, index: int) -> np.ndarray:
    return self._file.read(index)


class ImageFile(_FileVolume):
  """One image: PNG, JPEG, or TIFF with one page."""

  def __init__(self, path: str, file: tiff.TiffPages | raster.RasterFile) -> None:
    super().__init__(path, file)
    self.kind, self.axes, self.names = 'image', 'YX' + 'C' * (file.channels == 3), (_stem(path),)


class TiffStack(_FileVolume):
  """A TIFF with several pages."""

  def __init__(self, path: str, file: tiff.TiffPages) -> None:
    super().__init__(path, file)
    self.kind, self.axes = 'stack', 'ZYX' + 'C' * (file.channels == 3)
    self.names = _number(_stem(path), len(file))


class ImageFolder(Volume):
  """Images of one folder in natural order (img2 before img10); one type, any sizes."""

  def __init__(self, path: str, *, palette: Palette) -> None:
    self.path, self.kind = path, 'folder'
    self.files = tuple(str(file) for file in _list_images(Path(path)))
    self.names = tuple(_stem(file) for file in self.files)
    self._images = [_open_file(file, palette) for file in self.files]
    first = self._images[0]
    for file, image in zip(self.files, self._images, strict=True):
      if len(image) > 1:
        raise DataError(
          f'{file}: is a stack of {len(image)} pages in a folder of images; give the path of the '
          'stack itself, or one image per file'
        )
      if (image.dtype, image.channels) != (first.dtype, first.channels):
        raise DataError(
          f'{file}: is {_describe(image)}, but {self.files[0]} is {_describe(first)}; all images '
          'of a folder must be of one type'
        )
    self.dtype, self.channels = first.dtype, first.channels
    self.axes = 'NYX' + 'C' * (first.channels == 3)
    sizes = {image.voxel_size_zyx for image in self._images}
    self.voxel_size_zyx = sizes.pop() if len(sizes) == 1 else None

  def section_shape(self, index: int) -> tuple[int, int]:
    return self._images[index].shape

  def _read(self, index: int) -> np.ndarray:
    return self._images[index].read(0)


def open_volume(path: str | os.PathLike, *, palette: Palette = 'colour') -> Volume:
  """Opens an image, a folder of images or a TIFF stack without decoding pixels.

  Args:
    path: a PNG, JPEG or TIFF file, or a folder of them.
    palette: 'colour' for images: palettes become RGB, and TIFFs in which white is zero are
      inverted; 'index' for labels: the stored values.

  Raises:
    DataError: nothing there, nothing readable, or images that do not belong together.
  """
  path = os.fspath(path)
  if os.path.isdir(path):
    return ImageFolder(path, palette=palette)
  file = _open_file(path, palette)
  return ImageFile(path, file) if len(file) == 1 else TiffStack(path, file)


def _open_file(path: str, palette: Palette) -> tiff.TiffPages | raster.RasterFile:
  if not os.path.exists(path):
    raise DataError(f'{path}: no such file or folder (working folder: {os.getcwd()})')
  suffix = Path(path).suffix.lower()
  if suffix not in OPENERS:
    raise DataError(f'{path}: {suffix or "no extension"} is not readable, only {READABLE} are')
  with _decoding(path):
    return OPENERS[suffix](path, palette=palette)


def _list_images(folder: Path) -> list[Path]:
  try:
    entries = [e for e in folder.iterdir() if not e.name.startswith('.')]
  except OSError as error:
    raise DataError(f'{folder}: cannot be listed: {error.strerror}') from error
  images = [e for e in entries if not e.is_dir() and e.suffix.lower() not in NO_IMAGES]
  if not images:
    folders = sorted(e.name for e in entries if e.is_dir())
    hint = f'; did you mean one of its folders {", ".join(folders[:8])}?' if folders else ''
    raise DataError(f'{folder}: holds no images (readable: {READABLE}){hint}')
  images.sort(key=lambda e: (_natural_key(e.name), e.name))
  stems: dict[str, Path] = {}
  for image in images:
    other = stems.setdefault(_stem(image), image)
    if other != image:
      raise DataError(f'{folder}: {other.name} and {image.name} have the same name; remove one')
  return images


def _natural_key(name: str) -> list[int | str]:
  parts = re.split('([0-9]+)', name)  # text and digits take turns, so that like meets like
  return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _stem(path: str | Path) -> str:
  return Path(path).stem.removesuffix('.ome')


def _number(stem: str, count: int) -> tuple[str, ...]:
  return tuple(f'{stem}[{i:03d}]' for i in range(count))


def _describe(image: tiff.TiffPages | raster.RasterFile) -> str:
  return f'{image.dtype} {"RGB" if image.channels == 3 else "grey"}'


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
def _decoding(where: str) -> Iterator[None]:
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
