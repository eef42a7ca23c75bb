"""What a volume is told by, so that work on it is not gone on with after it was changed."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from emseg_jax.data.volume import Volume

__all__ = ['describe', 'digest']

COUNT, SIDE = 64, 64  # of the squares that are looked at


def describe(volume: Volume) -> dict[str, Any]:
  """Path, size and type; of files also when they were changed. Reads no voxels."""
  stats = [Path(file).stat() for file in volume.files]
  return {
    'path': volume.path,
    'shape': [len(volume), *volume.section_shape(0)],
    'dtype': volume.dtype.name,
    'bytes': sum(s.st_size for s in stats),
    'changed': max((s.st_mtime_ns for s in stats), default=None),
  }


def digest(volume: Volume) -> str | None:
  """Of 64 squares of 64 x 64 voxels, evenly spread; None where a square costs a whole section.

  Folders of chunks do not show that one of them was written again, and remote volumes show nothing.

  Raises:
    DataError: voxels cannot be read.
  """
  if not volume.cheap_boxes:
    return None
  height, width = volume.section_shape(0)
  across = -(-width // SIDE)
  squares = -(-height // SIDE) * across
  found = hashlib.sha256()
  for number in np.unique(np.linspace(0, len(volume) * squares - 1, COUNT).astype(np.int64)):
    z, square = divmod(int(number), squares)
    y, x = (SIDE * n for n in divmod(square, across))
    stop = (z + 1, min(y + SIDE, height), min(x + SIDE, width))
    found.update(np.ascontiguousarray(volume.box((z, y, x), stop)))
  return found.hexdigest()
