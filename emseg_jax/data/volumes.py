"""Opening what a path names: image files and folders here, arrays in files and stores elsewhere.

`open_volume` looks at headers only; pixels are decoded when they are asked for (`volume.Volume`).
Exceptions are packed MRC and NIfTI files, which are decompressed when opened.
"""

import os
import re
from pathlib import Path
from urllib import parse

import numpy as np

from emseg_jax.config import Reading
from emseg_jax.data import (
  containers,
  hdf5,
  mrc,
  nifti,
  raster,
  recognise,
  tiff,
)
from emseg_jax.data.recognise import TIFF_SUFFIXES
from emseg_jax.data.store import Store
from emseg_jax.data.tiff import Palette
from emseg_jax.data.volume import ArrayVolume, Volume, VoxelSize, decoding, number, stem
from emseg_jax.errors import DataError

__all__ = [
  'OPENERS',
  'READABLE',
  'TIFF_SUFFIXES',
  'ArrayVolume',
  'ImageFile',
  'ImageFolder',
  'Palette',
  'TiffStack',
  'Volume',
  'VoxelSize',
  'open_volume',
]

IMAGES = {'PNG': raster.open_png, 'JPEG': raster.open_jpeg, 'TIFF': tiff.open_tiff}
# Of images, which also come in folders.
OPENERS = {s: IMAGES[name] for s, name in recognise.FORMATS.items() if name in IMAGES}
READABLE = ', '.join(OPENERS)
ARRAYS = {'MRC': mrc.open_mrc, 'NIfTI': nifti.open_nifti}
AS_THE_FILE_SAYS = Reading()
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
    self.kind, self.axes, self.names = 'image', 'YX' + 'C' * (file.channels == 3), (stem(path),)


class TiffStack(_FileVolume):
  """A TIFF with several pages."""

  def __init__(self, path: str, file: tiff.TiffPages) -> None:
    super().__init__(path, file)
    self.kind, self.axes = 'stack', 'ZYX' + 'C' * (file.channels == 3)
    self.names = number(stem(path), len(file))


class ImageFolder(Volume):
  """Images of one folder in natural order (img2 before img10); one type, any sizes."""

  def __init__(self, path: str, *, palette: Palette, reading: Reading = AS_THE_FILE_SAYS) -> None:
    self.path, self.kind = path, 'folder'
    self.files = tuple(str(file) for file in _list_images(Path(path)))
    self.names = tuple(stem(file) for file in self.files)
    self._images = [_open_image(file, palette, reading) for file in self.files]
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


def open_volume(
  path: str | os.PathLike, *, palette: Palette = 'colour', reading: Reading = AS_THE_FILE_SAYS
) -> Volume:
  """Opens a volume without decoding pixels.

  Args:
    path: a PNG, JPEG, TIFF, MRC, HDF5 or NIfTI file, a folder of images, or a Zarr, N5 or
      precomputed folder or address (http, gs, s3). Behind ':/' the dataset of an HDF5 file, or the
      array of a folder: 'file.h5:/volumes/raw', 'store.zarr:/0'. 'precomputed://' and 'file://' in
      front are understood. Files are recognised by content, then by name.
    palette: 'colour' for images: palettes become RGB, and TIFFs in which white is zero are
      inverted; 'index' for labels: the stored values.
    reading: what the file does not say about itself, or says wrongly.

  Raises:
    DataError: nothing there, nothing readable, or images that do not belong together.
  """
  path = os.fspath(path)
  place, name = recognise.split_dataset(path.removeprefix('precomputed://'))
  if place.startswith('file://'):
    place = parse.unquote(place.removeprefix('file://'))
  with decoding(path):
    if '://' in place:
      return containers.open_container(path, Store(place.rstrip('/')), name, reading=reading)
    if os.path.isdir(place):
      return _open_folder(path, place, name, palette, reading)
    return _open_one(path, place, name, palette, reading)


def _open_folder(
  path: str, folder: str, name: str | None, palette: Palette, reading: Reading
) -> Volume:
  store = Store(folder.rstrip('/') or '/')
  # A group of N5 need not be described.
  inside = re.search(r'\.(zarr|n5)(/|$)', os.path.abspath(folder), flags=re.IGNORECASE)
  if inside or path.startswith('precomputed://') or containers.is_container(store):
    return containers.open_container(path, store, name, reading=reading)
  if name is not None:
    raise DataError(f'{folder}: is no Zarr, N5 or precomputed folder, so that {name} is not there')
  return ImageFolder(path, palette=palette, reading=reading)


def _open_one(path: str, file: str, name: str | None, palette: Palette, reading: Reading) -> Volume:
  kind = _recognise(file)
  if name is not None and kind != 'HDF5':
    raise DataError(f'{file}: is no HDF5 file, Zarr or N5 folder, so that {name} is not there')
  try:
    if kind in IMAGES:
      image = _open_image(file, palette, reading)
      return ImageFile(file, image) if len(image) == 1 else TiffStack(file, image)
    _check_unused(reading, file, signed=kind != 'MRC')
    with decoding(file):
      if kind == 'HDF5':
        return hdf5.open_hdf5(path, file, name, reading=reading)
      return ARRAYS[kind](file, reading=reading)
  except DataError as error:
    by_name = recognise.FORMATS.get(recognise.suffix(file), kind)
    if by_name == kind:
      raise
    raise DataError(f'{error} (it is named {by_name}, but its content is {kind})') from error


def _recognise(file: str) -> str:
  if not os.path.exists(file):
    raise DataError(f'{file}: no such file or folder (working folder: {os.getcwd()})')
  suffix = recognise.suffix(file)
  kind = recognise.content(file) or recognise.FORMATS.get(suffix)
  if kind is None:
    raise DataError(
      f'{file}: {suffix or "no extension"} is not readable, only {recognise.READABLE} are'
    )
  return kind


def _open_image(
  file: str, palette: Palette, reading: Reading
) -> tiff.TiffPages | raster.RasterFile:
  kind = _recognise(file)
  if kind not in IMAGES:
    raise DataError(f'{file}: is {kind}, but only images are read from a folder ({READABLE})')
  _check_unused(reading, file)
  if kind != 'TIFF' and reading.axes not in (None, 'YX', 'YXC'):
    raise DataError(f'{file}: is a single image, its axes are YX, not reading.axes={reading.axes}')
  with decoding(file):
    return IMAGES[kind](file, palette=palette, reading=reading)


def _check_unused(reading: Reading, file: str, *, signed: bool = True) -> None:
  """Refuses what would have no effect here."""
  if signed and reading.signed is not None:
    raise DataError(f'{file}: reading.signed={reading.signed} is for 8-bit MRC files only')
  if reading.level != 0:
    raise DataError(
      f'{file}: reading.level={reading.level} is not there; only OME-Zarr, N5 and precomputed have '
      'levels'
    )


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
    other = stems.setdefault(stem(image), image)
    if other != image:
      raise DataError(f'{folder}: {other.name} and {image.name} have the same name; remove one')
  return images


def _natural_key(name: str) -> list[int | str]:
  parts = re.split('([0-9]+)', name)  # text and digits take turns, so that like meets like
  return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _describe(image: tiff.TiffPages | raster.RasterFile) -> str:
  return f'{image.dtype} {"RGB" if image.channels == 3 else "grey"}'
