"""Which format a file is in, by its first bytes and its name, and which dataset of it is meant."""

import contextlib
import os
import re
import zlib

from emseg_jax.data import arrays, hdf5, mrc

__all__ = ['FORMATS', 'READABLE', 'content', 'split_dataset', 'suffix']

TIFF_SUFFIXES = ('.tif', '.tiff', '.btf', '.tf8')
FORMATS = {
  '.png': 'PNG',
  '.jpg': 'JPEG',
  '.jpeg': 'JPEG',
  **dict.fromkeys(TIFF_SUFFIXES, 'TIFF'),
  **dict.fromkeys(('.mrc', '.map', '.rec', '.st', '.ali', '.ccp4'), 'MRC'),
  **dict.fromkeys(('.h5', '.hdf5', '.hdf', '.he5'), 'HDF5'),
  '.nii': 'NIfTI',
}
READABLE = f'{", ".join(FORMATS)} (MRC and NIfTI also as .gz and .bz2), .zarr, .n5, precomputed'

# Where a file says what it is. HDF5 may stand behind a block of 512 bytes, as in MATLAB.
MAGICS = (
  (0, b'\x89PNG\r\n\x1a\n', 'PNG'),
  (0, b'\xff\xd8\xff', 'JPEG'),
  (0, b'II*\0', 'TIFF'),
  (0, b'MM\0*', 'TIFF'),
  (0, b'II+\0', 'TIFF'),
  (0, b'MM\0+', 'TIFF'),
  (0, hdf5.MAGIC, 'HDF5'),
  (512, hdf5.MAGIC, 'HDF5'),
  (344, b'n+1\0', 'NIfTI'),
  (4, b'n+2\0', 'NIfTI'),
  (mrc.MAGIC_AT, mrc.MAGIC, 'MRC'),
)
PACKABLE = ('MRC', 'NIfTI')


def content(path: str) -> str | None:
  """The format that the first bytes of a file tell, through gzip and bzip2; None: they do not."""
  head = b''
  # The reader that the name stands for will say what is wrong.
  with contextlib.suppress(EOFError, zlib.error, OSError), arrays.open_packed(path) as file:
    head = file.read(520)
  packed = suffix(path) != os.path.splitext(path)[1].lower()
  for place, magic, name in MAGICS:
    if head[place : place + len(magic)] == magic and (name in PACKABLE or not packed):
      return name
  return None


def suffix(path: str) -> str:
  """'a.MRC.gz' -> '.mrc'."""
  return os.path.splitext(re.sub(r'\.(gz|bz2)$', '', path, flags=re.IGNORECASE))[1].lower()


def split_dataset(path: str) -> tuple[str, str | None]:
  """'file.h5:/raw' -> ('file.h5', '/raw'); None where no dataset is named."""
  found = re.fullmatch('(.+?):(/(?!/).*)', path)
  if found is None or os.path.exists(path):
    return path, None
  return found[1], found[2]
