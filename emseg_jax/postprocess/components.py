"""Connected components of a volume that is only ever seen block by block.

Each block is labelled by itself. Adding to its numbers how many there are in the blocks before
gives each component of a block a number of its own (provisional ids). Then the faces between blocks
tell which of these belong together, and sizes and other facts about them are added up. What remains
is one number per provisional id, so that memory is that of a block and of the components; the
result is that of the whole volume.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from emseg_jax.postprocess import stitch
from emseg_jax.postprocess.grid import Box, Grid, Place, Read, Scratch
from emseg_jax.postprocess.work import Work

__all__ = ['Components', 'assemble', 'find', 'structure']


@dataclasses.dataclass(frozen=True)
class Provisional:
  """Attributes:
  store: uint32, what each block's components were numbered, from 1; 0 outside the mask.
  grid: the blocks.
  before: [blocks] int64, how many components there are in the blocks before each.
  """

  store: Scratch
  grid: Grid
  before: np.ndarray

  def read(self, start: Place, stop: Place) -> np.ndarray:
    """Provisional ids in a box, int64; 0 outside the mask."""
    ids = self.store.read(start, stop).astype(np.int64)
    touched = [
      range(a // b, -(-z // b)) for a, z, b in zip(start, stop, self.grid.block, strict=True)
    ]
    for place in itertools.product(*touched):
      part = ids[
        tuple(
          slice(max(i * b - a, 0), (i + 1) * b - a)
          for i, a, b in zip(place, start, self.grid.block, strict=True)
        )
      ]
      part[part > 0] += self.before[np.ravel_multi_index(place, self.grid.counts)]
    return ids


@dataclasses.dataclass(frozen=True)
class Components:
  """The components of a mask, 1 to n by their first voxels (along x first, z last).

  Attributes:
    provisional: what each voxel belongs to, as far as its block knows.
    table: [provisional ids + 1] int64: which component each belongs to; 0: none.
    sizes: [n + 1] int64, voxels; sizes[0] = 0, and so on below.
    at_border: [n + 1] bool, whether a component touches the border of the volume.
    marked: [n + 1] bool, whether it holds a marked voxel.
  """

  provisional: Provisional
  table: np.ndarray
  sizes: np.ndarray
  at_border: np.ndarray
  marked: np.ndarray

  def __len__(self) -> int:
    return len(self.sizes) - 1

  def keep(self, kept: np.ndarray) -> 'Components':
    """Those components for which kept [n + 1] bool says so, without gaps in the numbers."""
    kept = kept & (np.arange(len(kept)) > 0)
    numbers = np.where(kept, np.cumsum(kept), 0)
    kept[0] = True  # stays the entry of the background
    facts = (fact[kept] for fact in (self.sizes, self.at_border, self.marked))
    return Components(self.provisional, numbers[self.table], *facts)

  def ids(self, start: Place, stop: Place) -> np.ndarray:
    """Components in a box, int64."""
    return self.table[self.provisional.read(start, stop)]

  def mask(self, start: Place, stop: Place) -> np.ndarray:
    """Whether there is a component, bool."""
    return (self.table > 0)[self.provisional.read(start, stop)]


def structure(connectivity: int, dimensions: int) -> np.ndarray:
  """Which of its neighbours a voxel is joined to, [3, 3, 3] bool.

  Args:
    connectivity: 1: those that share a face, 2: at least an edge, 3: at least a corner.
    dimensions: 2: those of the same section only.
  """
  full = ndimage.generate_binary_structure(3, connectivity)
  if dimensions == 2:
    full[[0, 2]] = False
  return full


def find(
  work: Work,
  read: Read,
  joined: np.ndarray,
  name: str,
  *,
  border: Sequence[int] = (),
  marked: Read | None = None,
) -> Components:
  """Finds the connected components of a mask.

  Args:
    work: the blocks, and what is done.
    read: the mask, bool.
    joined: from `structure`.
    name: of these components, for the files that say what is done.
    border: axes at whose ends the volume has a border.
    marked: voxels whose components get `marked`, bool; None: none do.

  Raises:
    Gone, Interrupted: as `Work.tasks`.
  """

  def label(box: Box) -> tuple[np.ndarray, int]:
    return ndimage.label(read(*box), joined)

  def touching(box: Box, ids: Read) -> np.ndarray:
    return stitch.touching(box, work.grid, ids, joined)

  return assemble(work, label, touching, name, border=border, marked=marked)


def assemble(
  work: Work,
  label: Callable[[Box], tuple[np.ndarray, int]],
  touching: Callable[[Box, Read], np.ndarray],
  name: str,
  *,
  border: Sequence[int] = (),
  marked: Read | None = None,
) -> Components:
  """Puts the components of blocks together.

  Args:
    label: components of a block by itself, 1 to n and 0 for background, and n.
    touching: of a block and the provisional ids, the pairs [n, 2] across its far faces that belong
      together.
    work, name, border, marked: as in `find`.

  Raises:
    Gone, Interrupted: as `Work.tasks`.
  """
  grid, store = work.grid, work.scratch(name, 'u4')

  def label_block(box: Box) -> np.ndarray:
    local, count = label(box)
    if not count:
      return np.zeros((4, 0), np.int64)
    store.write(box[0], local.astype('u4'))
    seeds = local[marked(*box)] if marked is not None else np.zeros(0, np.int64)
    return _facts(local, count, box, grid.shape, border, seeds)

  facts = work.blocks(name, label_block)
  counts = [fact.shape[1] for fact in facts]
  ids = Provisional(store, grid, np.cumsum([0, *counts[:-1]]))
  pairs = work.blocks(f'{name}-faces', lambda box: touching(box, ids.read))
  owner = stitch.merge(sum(counts), pairs)
  sizes, first, at_border, seeded = np.concatenate(facts, axis=1)
  return _number(ids, owner, sizes, first, at_border > 0, seeded > 0)


def _facts(
  local: np.ndarray, count: int, box: Box, shape: Place, border: Sequence[int], seeds: np.ndarray
) -> np.ndarray:
  """[4, count]: size, first voxel of the volume, at the border, marked."""
  start, stop = box
  flat = local.ravel()
  inside = np.flatnonzero(flat)
  first = np.full(count + 1, flat.size, np.int64)
  np.minimum.at(first, flat[inside], inside)
  places = np.unravel_index(first[1:], local.shape)
  first = np.ravel_multi_index([p + a for p, a in zip(places, start, strict=True)], shape)
  at_border = np.zeros(count + 1, np.int64)
  for axis in border:
    if start[axis] == 0:
      at_border[local.take(0, axis)] = 1
    if stop[axis] == shape[axis]:
      at_border[local.take(-1, axis)] = 1
  marked = np.zeros(count + 1, np.int64)
  marked[seeds] = 1
  return np.stack([np.bincount(flat, minlength=count + 1)[1:], first, at_border[1:], marked[1:]])


def _number(
  provisional: Provisional,
  owner: np.ndarray,
  sizes: np.ndarray,
  first: np.ndarray,
  at_border: np.ndarray,
  marked: np.ndarray,
) -> Components:
  """Adds up what is known of provisional ids by their owners, and orders these."""
  count = int(owner.max(initial=-1)) + 1
  start = np.full(count, np.iinfo(np.int64).max)
  np.minimum.at(start, owner, first)
  number = np.empty(count, np.int64)
  number[np.argsort(start)] = np.arange(1, count + 1)
  table = np.concatenate([[0], number[owner]])
  total = np.zeros(count + 1, np.int64)
  np.add.at(total, table[1:], sizes)
  border, seeded = np.zeros((2, count + 1), bool)
  border[table[1:][at_border]] = True
  seeded[table[1:][marked]] = True
  return Components(provisional, table, total, border, seeded)
