"""Where the foreground of large volumes is: looked up once, box by box, and kept in a file.

Drawing random places until one has foreground reads a label per draw, which is dear where labels
are not in memory and hopeless where structures are rare.
"""

import hashlib
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emseg_jax.data import array_cache, blocks, labels
from emseg_jax.data.split import Split

__all__ = ['find', 'find_cells']

LOGGER = logging.getLogger(__name__)
VERSION = b'1'
SLAB_VOXELS = 2**26  # read at once


def find(
  split: Split, groups: Sequence[blocks.Group], cell: Sequence[int], *, cache: Path | None
) -> dict[blocks.Group, np.ndarray]:
  """The cells with foreground of each group whose labels are too large to be kept in memory.

  Args:
    split: where the labels are.
    groups: volumes, or single sections.
    cell: (z, y, x) of a cell; z = 1 for sections.
    cache: as in `find_cells`.

  Raises:
    DataError, OutputError: as `find_cells`.
  """
  found = {}
  for _, run in itertools.groupby(groups, lambda g: id(split.sections[g[0]].label_volume)):
    members = list(run)
    volume = split.sections[members[0][0]].label_volume
    if volume is None or not split.is_large(volume):
      continue
    # All sections of a volume at once.
    cells = find_cells(split, tuple(itertools.chain(*members)), cell, cache=cache)
    for rank, group in enumerate(members):
      own = cells[cells[:, 0] == rank] - (rank, 0, 0) if len(members) > 1 else cells
      found[group] = own
  return found


def find_cells(
  split: Split, group: blocks.Group, cell: Sequence[int], *, cache: Path | None
) -> np.ndarray:
  """Numbers of the cells of a grid that hold a voxel of another class than the first.

  Args:
    split: where the labels are.
    group: the sections of a volume.
    cell: (z, y, x) of a cell; the first begins at voxel 0.
    cache: folder of the results, by a digest of the split; None: looked up anew.

  Returns:
    int32 [n, 3], (z, y, x), in rising order.

  Raises:
    DataError: a label cannot be read, or the file in the cache is damaged.
    OutputError: the cache cannot be written.
  """
  if cache is None:
    return _look_up(split, group, cell)
  record = f'{split.fingerprint()}{group[0]}{len(group)}{tuple(cell)}'.encode()
  path = cache / f'foreground-{hashlib.sha256(VERSION + record).hexdigest()[:32]}.npy'
  return array_cache.load_or_compute(path, lambda: _look_up(split, group, cell))


def _look_up(split: Split, group: blocks.Group, cell: Sequence[int]) -> np.ndarray:
  shape = blocks.shape(split, group)
  path = split.sections[group[0]].label_volume.path
  LOGGER.info('%s: looking up where its foreground is, once.', path)
  # Boxes of whole cells, as many along x, then y, as fit.
  side = max(1, int((SLAB_VOXELS / cell[0]) ** 0.5))
  box = [cell[0], *(max(1, side // c) * c for c in cell[1:])]
  found = []
  starts = (range(0, n, b) for n, b in zip(shape, box, strict=True))
  for origin in itertools.product(*starts):
    label = split.label_block(group, origin, box)
    foreground = labels.foreground(label)
    for axis, width in enumerate(cell):
      edges = np.arange(0, foreground.shape[axis], width)
      foreground = np.logical_or.reduceat(foreground, edges, axis=axis)
    found.append(np.argwhere(foreground) + np.floor_divide(origin, cell))
  cells = np.concatenate(found).astype(np.int32)
  return cells[np.lexsort(cells.T[::-1])]
