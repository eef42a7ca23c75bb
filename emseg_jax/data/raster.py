"""PNG and JPEG files: what the header says, and the pixels."""

import dataclasses
import math
import os
import struct

import numpy as np

from emseg_jax.config import Reading
from emseg_jax.data.tiff import Palette
from emseg_jax.data.units import VoxelSize
from emseg_jax.errors import DataError

__all__ = ['RasterFile', 'open_jpeg', 'open_png']

# Bytes that one byte of a file can become: Deflate reaches 1032, JPEG without a coefficient 1024.
LARGEST_RATIO = 2**12
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types of the PNG standard


@dataclasses.dataclass(frozen=True)
class RasterFile:
  """One PNG or JPEG; holds no open file, so that threads and processes can share it."""

  path: str
  palette: Palette
  shape: tuple[int, int]
  dtype: np.dtype
  channels: int
  depth: int  # bits per sample
  colour_type: int | None  # of a PNG; None for JPEG
  channel: int | None  # the only one that is read; None: all
  voxel_size_zyx: VoxelSize | None  # as given: these formats know dots per inch only

  def __len__(self) -> int:
    return 1

  def read(self, index: int) -> np.ndarray:
    """The image: [Y, X], or [Y, X, 3]; an alpha channel is still there as the last one."""
    del index
    array = _read_jpeg(self.path) if self.colour_type is None else _read_png(self)
    return array if self.channel is None or array.ndim == 2 else array[..., self.channel]


def open_png(path: str, *, palette: Palette, reading: Reading) -> RasterFile:
  """Reads the header of a PNG. Raises DataError if there is none, or an impossible one."""
  with open(path, 'rb') as file:
    head = file.read(26)
  if len(head) < 26 or head[:8] != b'\x89PNG\r\n\x1a\n' or head[12:16] != b'IHDR':
    raise DataError(f'{path}: is not a PNG image in spite of its name, or was cut short')
  width, height, depth, colour_type = struct.unpack('>IIBB', head[16:26])
  colour = colour_type in (RGB, RGB_ALPHA) or (colour_type == PALETTE and palette == 'colour')
  bilevel = depth == 1 and colour_type == GREY
  dtype = np.dtype('u2' if depth == 16 else '?' if bilevel else 'u1')
  samples = {RGB: 3, GREY_ALPHA: 2, RGB_ALPHA: 4}.get(colour_type, 1)
  _check_size(path, (height, width), width * height * samples * depth // 8)
  channels = _count_channels(path, 3 if colour else 1, reading.channel)
  shape = (height, width)
  return RasterFile(
    path, palette, shape, dtype, channels, depth, colour_type, reading.channel, reading.voxel_size
  )


def open_jpeg(path: str, *, palette: Palette, reading: Reading) -> RasterFile:
  """Reads the header of a JPEG. Raises DataError if it is neither grey nor RGB."""
  # The class itself, not Image.open: that refuses images beyond 179 megapixels as an attack.
  from PIL import JpegImagePlugin

  with JpegImagePlugin.JpegImageFile(path) as image:
    if image.mode not in ('L', 'RGB'):
      raise DataError(f'{path}: has the colour model {image.mode}, but grey or RGB is needed')
    shape, samples = (image.height, image.width), len(image.getbands())
  _check_size(path, shape, math.prod(shape) * samples)
  channels = _count_channels(path, samples, reading.channel)
  return RasterFile(
    path, palette, shape, np.dtype('u1'), channels, 8, None, reading.channel, reading.voxel_size
  )


def _check_size(path: str, shape: tuple[int, int], size: int) -> None:
  """Refuses an image that is larger than anything that the file could hold, decoded."""
  there = os.path.getsize(path)
  if 0 in shape or size > LARGEST_RATIO * there:
    raise DataError(
      f'{path}: announces {shape[0]} x {shape[1]} pixels (y x), but the file has {there} bytes; it '
      'was cut short, or its header is damaged'
    )


def _count_channels(path: str, count: int, channel: int | None) -> int:
  if channel is not None and channel >= count:
    raise DataError(
      f'{path}: has {count} channels, reading.channel={channel} is beyond 0 to {count - 1}'
    )
  return count if channel is None else 1


def _read_jpeg(path: str) -> np.ndarray:
  from PIL import JpegImagePlugin

  with JpegImagePlugin.JpegImageFile(path) as image:
    return np.asarray(image)


def _read_png(file: RasterFile) -> np.ndarray:
  if file.depth == 16:  # Pillow turns 16-bit colour and alpha into 8-bit
    import imagecodecs

    with open(file.path, 'rb') as stream:
      return imagecodecs.png_decode(stream.read())
  from PIL import PngImagePlugin

  with PngImagePlugin.PngImageFile(file.path) as image:
    if file.colour_type == PALETTE and file.palette == 'colour':
      return np.asarray(image.convert('RGB'))
    array = np.asarray(image)
  if file.palette == 'index' and file.depth in (2, 4) and file.colour_type == GREY:
    # Pillow stretches 0..3 and 0..15 to 0..255; a label is the stored value.
    array = array // (255 // (2**file.depth - 1))
  return array
