"""TIFF files: where the sections are, what they hold, and one section at a time.

Understood: plain, BigTIFF, ImageJ and OME files with any compression that tifffile decodes, one
section per page or (ImageJ beyond 4 GB) all sections behind one page; grey, RGB and palette colour.
Sections run along one axis, Z; of several channels one is chosen; files with time points are
refused.
"""

import dataclasses
import math
import struct
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np

from emseg_jax.config import Reading
from emseg_jax.data.units import VoxelSize, known_size, to_nanometres
from emseg_jax.errors import DataError

__all__ = ['Palette', 'TiffPages', 'open_tiff']

Palette = Literal['index', 'colour']
# No decoder makes more bytes of one byte of a file: Deflate reaches 1032, Zstandard 2**15.
LARGEST_RATIO = 2**16


@dataclasses.dataclass(frozen=True)
class TiffPages:
  """The sections of one TIFF file; holds no open file: threads and processes can share it."""

  path: str
  palette: Palette
  shape: tuple[int, int]
  dtype: np.dtype
  channels: int
  offsets: tuple[int, ...]  # where each section's page starts; or its pixels, if not `paged`
  paged: bool
  voxel_size_zyx: VoxelSize | None
  sample: int | None  # which of the numbers of a pixel is read; None: all

  def __len__(self) -> int:
    return len(self.offsets)

  def read(self, index: int) -> np.ndarray:
    """Section `index`: [Y, X], or [Y, X, 3]; an alpha channel is still there as the last one."""
    import tifffile

    with tifffile.TiffFile(self.path) as tif:
      if not self.paged:
        page = tif.pages.first
        form = self.shape if page.samplesperpixel == 1 else (*self.shape, page.samplesperpixel)
        tif.filehandle.seek(self.offsets[index])
        array = tif.filehandle.read_array(tif.byteorder + page.dtype.char, math.prod(form))
        return self._convert(array.reshape(form), page)
      tif.filehandle.seek(self.offsets[index])
      page = tifffile.TiffPage(tif, index=index)
      end = max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True)))
      if end > tif.filehandle.size:
        raise DataError(
          f'{self.path}: page {index} ends at byte {end}, but the file has '
          f'{tif.filehandle.size}; it was cut short, copy it again'
        )
      array = page.asarray()
      if page.axes == 'SYX':
        array = np.moveaxis(array, 0, -1)
      return self._convert(array, page)

  def _convert(self, array: np.ndarray, page: Any) -> np.ndarray:
    if self.sample is not None and array.ndim == 3:
      return array[..., self.sample]
    return _apply_photometric(array, page, self.palette)


def open_tiff(path: str, *, palette: Palette, reading: Reading) -> TiffPages:
  """Reads all page headers, no pixels.

  Raises:
    DataError: pages of different shape or type, time or channel axes, an unknown kind of colour,
      a broken file.
  """
  import tifffile

  with tifffile.TiffFile(path) as tif:
    pages = list(tif.pages)
    _check_chain(tif, path)
    _check_equal(pages, path)
    first = pages[0]
    _check_size(first, tif.filehandle.size, path)
    series = tif.series
    if len(series) > 1:
      if tif.is_ome:
        raise DataError(
          f'{path}: holds {len(series)} separate OME images, but one is needed; save one to a file'
        )
      axes, lengths = 'I' + first.axes, (len(pages), *first.shape)  # compressed in different ways
    else:
      axes, lengths = series[0].axes, series[0].shape
      pages = list(series[0].pages)
    if series[0].is_multifile or any(page is None for page in pages):
      raise DataError(
        f'{path}: some of its OME planes are in other files or missing; save the stack as one file'
      )
    planes = _choose_planes(axes, lengths, reading, path)
    # What the planes do not have to choose from must be in the pixels.
    sample = reading.channel if planes.ndim == 1 else None
    channels = _count_channels(first, path, palette, sample)
    offsets, paged = _find_sections(tif, pages, planes.size, path)
    if planes.ndim > 1:
      planes = planes[:, reading.channel]
    shape = dict(zip(first.axes, first.shape, strict=True))
    return TiffPages(
      path=path,
      palette=palette,
      shape=(shape['Y'], shape['X']),
      dtype=np.dtype('u1')
      if first.photometric.name == 'PALETTE' and palette == 'colour'
      else first.dtype.newbyteorder('='),
      channels=channels,
      offsets=tuple(offsets[i] for i in planes.tolist()),
      paged=paged,
      voxel_size_zyx=reading.voxel_size or _read_voxel_size(tif),
      sample=sample,
    )


def _choose_planes(axes: str, lengths: tuple[int, ...], reading: Reading, path: str) -> np.ndarray:
  """Numbers of the planes [Z], or [Z, C] if channels are planes of their own.

  `reading.axes` names the axes anew, those of length 1 may be left out.
  """
  named = [(a, n) for a, n in zip(axes, lengths, strict=True) if n > 1 or a in 'YX']
  found = ', '.join(f'{a}={n}' for a, n in zip(axes, lengths, strict=True))
  outer = [(a, n) for a, n in named if a not in 'YXS']
  if reading.axes is not None:
    names = reading.axes if outer else reading.axes.replace('Z', '')
    plain = ''.join('C' if a == 'S' else a for a, _ in named)
    if len(names) != len(named) or names[len(outer) :] != plain[len(outer) :]:
      raise DataError(
        f'{path}: has the axes {found}, which reading.axes={reading.axes} cannot name; it may give '
        f'other names to the first {len(outer)}, those of planes, with letters Z, C, T'
      )
    outer = [(a, n) for a, (_, n) in zip(names, outer, strict=False)]
  order = ''.join('Z' if a in 'ZIQ' else a for a, _ in outer)
  if order in ('', 'Z'):
    return np.arange(math.prod(n for _, n in outer))
  several = dict(outer).get('C', 1)
  if (
    order in ('C', 'ZC', 'CZ') and 'S' not in [a for a, _ in named] and reading.channel is not None
  ):
    if reading.channel >= several:
      raise DataError(
        f'{path}: has {several} channels, reading.channel={reading.channel} is beyond 0 to '
        f'{several - 1}'
      )
    planes = np.arange(math.prod(n for _, n in outer)).reshape([n for _, n in outer])
    return planes.T if order == 'CZ' else planes.reshape(-1, several)
  raise DataError(
    f'{path}: has the axes {found}, but only Z, Y, X (and RGB) are allowed; choose one of several '
    'channels with reading.channel, save one time point, or name the sections Z with reading.axes '
    '(in Fiji: Image > Properties, Slices)'
  )


def _check_chain(tif: Any, path: str) -> None:
  """Each page points to the next; tifffile just stops where a pointer leads out of the file."""
  tif.filehandle.seek(tif.pages.next_page_offset)
  pointer = tif.filehandle.read(tif.tiff.offsetsize)
  try:
    following = struct.unpack(tif.tiff.offsetformat, pointer)[0]
  except struct.error:
    following = -1
  if following != 0:
    raise DataError(
      f'{path}: damaged or cut short after page {len(tif.pages) - 1} of an unknown number; '
      'copy the file again'
    )


def _check_size(page: Any, file_bytes: int, path: str) -> None:
  """Refuses a page that is larger than anything that the file could hold, decoded."""
  if page.dtype is None:
    return
  pixels = max(math.prod(page.shape), math.prod(page.chunks))
  ratio = 8 if page.compression == 1 else LARGEST_RATIO  # 8 bits to a byte
  if not 0 < pixels * page.dtype.itemsize <= ratio * file_bytes:
    raise DataError(
      f'{path}: announces pages of {_describe(page)}, but the file has {file_bytes} bytes; it was '
      'cut short, or its header is damaged'
    )


def _check_equal(pages: list[Any], path: str) -> None:
  def kind(page: Any) -> tuple[Any, ...]:
    return page.shape, page.dtype, page.photometric, page.samplesperpixel

  for number, page in enumerate(pages):
    if kind(page) != kind(pages[0]):
      raise DataError(
        f'{path}: page {number} is {_describe(page)}, but page 0 is {_describe(pages[0])}; the '
        'pages of a stack must be alike: save pages of different kinds as a folder of images'
      )


def _describe(page: Any) -> str:
  size = ' x '.join(str(n) for n in page.shape)
  return f'{size} {page.dtype} {page.photometric.name.lower()}'


def _count_channels(page: Any, path: str, palette: Palette, sample: int | None) -> int:
  """Colour channels after reading, 1 or 3, without alpha; `sample` is the only one to be read."""
  kind = page.photometric.name
  alpha = len(page.extrasamples)
  colours = page.samplesperpixel - alpha
  if page.dtype is None or page.dtype.kind not in 'buif':
    raise DataError(f'{path}: has pixels of type {page.dtype}, but integers or floats are needed')
  if sample is not None:
    if sample >= page.samplesperpixel:
      raise DataError(
        f'{path}: has {page.samplesperpixel} channels, reading.channel={sample} is beyond 0 to '
        f'{page.samplesperpixel - 1}'
      )
    if page.samplesperpixel > 1:
      return 1
  if kind == 'PALETTE' and page.samplesperpixel == 1:
    return 3 if palette == 'colour' else 1
  if alpha <= 1 and kind in ('MINISBLACK', 'MINISWHITE') and colours == 1:
    return 1
  if alpha <= 1 and kind in ('RGB', 'YCBCR') and colours == 3:
    return 3
  raise DataError(
    f'{path}: has {page.samplesperpixel} channels ({kind.lower()}), but only grey, RGB and '
    'palette images are read; choose one channel with reading.channel'
  )


def _find_sections(
  tif: Any, pages: list[Any], count: int, path: str
) -> tuple[tuple[int, ...], bool]:
  if tif.is_imagej and len(pages) == 1:  # tifffile falls back to the page if planes are missing
    count = (tif.imagej_metadata or {}).get('images', count)
  if len(pages) == count and 'Z' not in pages[0].axes:
    return tuple(page.offset for page in pages), True
  start = tif.series[0].dataoffset
  lengths = [n for a, n in zip(pages[0].axes, pages[0].shape, strict=True) if a != 'Z']
  nbytes = math.prod(lengths) * pages[0].dtype.itemsize
  if len(pages) == 1 and start is not None and start + count * nbytes <= tif.filehandle.size:
    return tuple(start + i * nbytes for i in range(count)), False
  raise DataError(
    f'{path}: announces {count} sections, but {len(pages)} can be found; the file was cut short, '
    'or holds a compressed volume on one page: save it as an ordinary stack'
  )


def _apply_photometric(array: np.ndarray, page: Any, palette: Palette) -> np.ndarray:
  """Stored values to what a viewer shows; 'index' keeps them, since labels are stored values."""
  if palette == 'index':
    return array
  if page.photometric.name == 'PALETTE':
    return np.moveaxis(page.colormap >> 8, 0, -1).astype(np.uint8)[array]
  if page.photometric.name == 'MINISWHITE' and array.dtype.kind in 'bu':
    return ~array
  return array


# ---- voxel size ---------------------------------------------------------------------------------


def _read_voxel_size(tif: Any) -> VoxelSize | None:
  """(z, y, x) in nm from ImageJ or OME metadata.

  The resolution tags of a plain TIFF are dots per inch for a printer, so they are not trusted.
  """
  if tif.is_ome:
    size = _ome_voxel_size(tif.ome_metadata)
  elif tif.is_imagej:
    size = _imagej_voxel_size(tif)
  else:
    return None
  return known_size(size)


def _imagej_voxel_size(tif: Any) -> VoxelSize:
  metadata, tags = tif.imagej_metadata or {}, tif.pages.first.tags
  unit = to_nanometres(str(metadata.get('unit', '')))
  if unit is None:
    return None, None, None

  def pixel(name: str) -> float | None:
    numerator, denominator = tags[name].value if name in tags else (0, 1)
    return unit * denominator / numerator if numerator else None

  spacing = metadata.get('spacing')
  z = unit * spacing if isinstance(spacing, int | float) else None
  return z, pixel('YResolution'), pixel('XResolution')


def _ome_voxel_size(xml: str) -> VoxelSize:
  try:
    pixels = ElementTree.fromstring(xml).find('.//{*}Pixels')
  except ElementTree.ParseError:  # tifffile has ignored the broken header, too
    pixels = None

  def size(axis: str) -> float | None:
    text = None if pixels is None else pixels.get(f'PhysicalSize{axis}')
    unit = None if text is None else to_nanometres(pixels.get(f'PhysicalSize{axis}Unit', 'µm'))
    return None if unit is None else unit * float(text)

  return size('Z'), size('Y'), size('X')
