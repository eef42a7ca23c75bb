"""MRC volumes (.mrc, .map, .rec, .st), as they are or packed with gzip or bzip2.

An uncompressed file is mapped into memory; a packed one is decompressed as a whole when opened,
since there is no way into its middle. The order of the axes is that of mapc, mapr and maps. The
sections of an image stack (ispg 0) count as those of one volume, because many programs write 0 for
volumes, too; a stack of several volumes (ispg 401 to 630) is refused.

Source: Cheng et al. 2015, MRC2014, and the notes of IMOD on its own fields.
"""

from typing import Any

import numpy as np

from emseg_jax.config import Reading
from emseg_jax.data import arrays
from emseg_jax.data.volume import Volume, VoxelSize, stem
from emseg_jax.errors import DataError

__all__ = ['MAGIC', 'MAGIC_AT', 'open_mrc']

MAGIC, MAGIC_AT = b'MAP', 208
HEADER_BYTES = 1024
# IMOD marks its files at byte 152; bit 0 of the word behind it says that mode 0 is signed.
IMOD_STAMP, IMOD_STAMP_AT = 1146047817, 152
READABLE_MODES = '0 (int8), 1 (int16), 2 (float32), 6 (uint16) and 12 (float16)'


def open_mrc(path: str, *, reading: Reading) -> Volume:
  """Reads the header; of a packed file all of it.

  Raises:
    DataError: no MRC file, one of another mode, or fewer voxels than the header announces.
  """
  with arrays.open_packed(path) as file:
    head = file.read(HEADER_BYTES)
  header = _parse(head, path)
  dtype = _voxel_type(header, head, reading, path)
  shape, axes = _shape(header, path)
  layout = arrays.find_layout(axes, shape, reading, path)
  offset = HEADER_BYTES + int(header['nsymbt'])
  return arrays.StoredVolume(
    path,
    arrays.locate(path, dtype, shape, offset),
    kind='mrc',
    layout=layout,
    dtype=dtype,
    name=stem(path),
    files=(path,),
    voxel_size_zyx=reading.voxel_size or _voxel_size(header),
  )


def _parse(head: bytes, path: str) -> Any:
  """The header as a record of the file's byte order."""
  from mrcfile import dtypes, utils

  if len(head) < HEADER_BYTES or head[MAGIC_AT : MAGIC_AT + 3] != MAGIC:
    raise DataError(f"{path}: is no MRC file, or cut short: 'MAP' is missing at byte {MAGIC_AT}")
  header = np.frombuffer(head, dtypes.HEADER_DTYPE)[0]
  try:
    order = utils.byte_order_from_machine_stamp(header['machst'])
  except ValueError:
    order = '<'
  # Some programs write a wrong stamp; the mode is a small number in the right order only.
  orders = (order, '<' if order == '>' else '>')
  for order in orders:
    header = np.frombuffer(head, dtypes.HEADER_DTYPE.newbyteorder(order))[0]
    if 0 <= header['mode'] < 2**16:
      break
  sizes = [int(header[name]) for name in ('nx', 'ny', 'nz')]
  if min(sizes) < 1 or header['nsymbt'] < 0:
    raise DataError(
      f'{path}: its header announces {" x ".join(str(n) for n in sizes)} voxels (x y z) behind '
      f'{header["nsymbt"]} bytes of notes; it is damaged'
    )
  return header


def _voxel_type(header: Any, head: bytes, reading: Reading, path: str) -> np.dtype:
  from mrcfile import utils

  order = header.dtype['mode'].byteorder
  mode = int(header['mode'])
  if mode != 0 and reading.signed is not None:
    raise DataError(
      f'{path}: reading.signed={reading.signed} is for 8-bit files, mode 0, this is mode {mode}'
    )
  if mode == 0:
    words = np.frombuffer(head, header.dtype['mode'], 2, IMOD_STAMP_AT)
    signed = reading.signed
    if signed is None:
      signed = bool(words[0] != IMOD_STAMP or words[1] & 1)
    return np.dtype('i1' if signed else 'u1')
  try:
    dtype = utils.dtype_from_mode(mode)
  except ValueError:
    dtype = None
  if dtype is None or dtype.kind == 'c':
    raise DataError(f'{path}: has the mode {mode}, but only {READABLE_MODES} are read')
  return dtype.newbyteorder(order)


def _shape(header: Any, path: str) -> tuple[tuple[int, ...], str]:
  """Lengths and names of the axes, slowest first."""
  from mrcfile import utils

  order = [int(header[name]) for name in ('maps', 'mapr', 'mapc')]
  # Old files leave them zero.
  axes = 'ZYX' if order == [0, 0, 0] else ''.join('?XYZ'[i] if 0 < i < 4 else '?' for i in order)
  shape = tuple(int(header[name]) for name in ('nz', 'ny', 'nx'))
  if '?' in axes or len(set(axes)) < 3:
    raise DataError(
      f'{path}: its header gives the axes as mapc, mapr, maps = {order[::-1]}, but 1, 2 and 3, in '
      'any order, are needed; it is damaged'
    )
  if not utils.spacegroup_is_volume_stack(header['ispg']):
    return shape, axes
  depth = int(header['mz'])
  if depth < 1 or shape[0] % depth:
    raise DataError(
      f'{path}: is a stack of volumes of {depth} sections each, but has {shape[0]} sections'
    )
  return (shape[0] // depth, depth, *shape[1:]), 'T' + axes


def _voxel_size(header: Any) -> VoxelSize:
  """(z, y, x) in nm; the header has the length of the cell in angstrom, 0 if unknown."""

  def size(axis: str) -> float | None:
    count = int(header[f'm{axis}'])
    length = float(header['cella'][axis])  # not numpy's, which warns of a damaged one
    # float32 holds 7 digits; without rounding, 4 nm would be 4.0000001.
    return float(f'{length / count / 10:.7g}') if count > 0 else None

  return size('z'), size('y'), size('x')
