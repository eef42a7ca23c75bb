"""Scores of affinities: does a voxel belong to the object of the one at an offset?

Ids are [Z, Y, X] integer, 0 in the background and NO_ID where not scored. A pair counts where both
of its voxels are scored; two voxels are joined where they have one id other than 0. Offsets are
(y, x) or (z, y, x) from the first voxel of a pair, where its affinity stands.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emseg_jax.data.labels import NO_ID
from emseg_jax.metrics import confusion

__all__ = ['CLASSES', 'affinity_scores', 'count_pairs', 'interior', 'joined']

CLASSES = ('apart', 'joined')
Offset = Sequence[int]


def _windows(shape: Sequence[int], offset: Offset) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
  """Where the first and where the second voxels of all pairs lie."""
  steps = (0,) * (len(shape) - len(offset)) + tuple(offset)
  first = tuple(slice(max(-o, 0), n - max(o, 0)) for o, n in zip(steps, shape, strict=True))
  second = tuple(slice(max(o, 0), n - max(-o, 0)) for o, n in zip(steps, shape, strict=True))
  return first, second


def joined(ids: np.ndarray, offset: Offset) -> np.ndarray:
  """Whether each voxel is joined to the one at the offset: bool like `ids`, False outside."""
  first, second = _windows(ids.shape, offset)
  found = np.zeros(ids.shape, bool)
  found[first] = (ids[first] == ids[second]) & (ids[first] > 0)
  return found


def count_pairs(predicted: np.ndarray, ids: np.ndarray, offset: Offset) -> np.ndarray:
  """Confusion matrix of the pairs of an offset, section by section.

  Args:
    predicted: bool [Z, Y, X].
    ids: [Z, Y, X].
    offset: which pairs.

  Returns:
    [Z, 2, 2] int64; rows are labels, columns predictions, apart first. A pair counts in the section
    of its first voxel.
  """
  first, second = _windows(ids.shape, offset)
  scored = (ids[first] != NO_ID) & (ids[second] != NO_ID)
  pair = 2 * joined(ids, offset)[first].astype(np.uint8) + predicted[first]
  counts = np.zeros((len(ids), 4), np.int64)
  for row, codes, counted in zip(counts[first[0]], pair, scored, strict=True):
    row += np.bincount(codes[counted], minlength=4)
  return counts.reshape(-1, 2, 2)


def interior(maps: Mapping[tuple[int, ...], np.ndarray]) -> np.ndarray:
  """Where a pixel is joined to all that share a side with it: uint8 [Z, Y, X], 0 or 1.

  Args:
    maps: offset -> bool [Z, Y, X]; offsets but those to the nearest pixels of the section are left
      alone. What lies outside is joined.
  """
  found = np.ones(next(iter(maps.values())).shape, bool)
  for offset, values in maps.items():
    if sum(map(abs, offset)) == 1 and any(offset[-2:]):
      first, second = _windows(found.shape, offset)
      found[first] &= values[first]
      found[second] &= values[first]
  return found.astype(np.uint8)


def affinity_scores(counts: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
  """Scores of each offset.

  Args:
    counts: [A, 2, 2] of `count_pairs`, summed.
    names: of the A offsets.

  Returns:
    {'per_class': {name: {'accuracy', 'miou', 'iou_apart', 'iou_joined'}}}; what has no denominator
    is None.
  """
  rows = {}
  for name, own in zip(names, counts, strict=True):
    found = confusion.scores(own, CLASSES)
    iou = {f'iou_{c}': found['per_class'][c]['iou'] for c in CLASSES}
    rows[name] = {'accuracy': found['accuracy'], 'miou': found['miou'], **iou}
  return {'per_class': rows}
