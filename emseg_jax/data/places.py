"""Fixed places of patches: a sliding grid, or the fewest patches that cover a volume.

Positions and sizes are (z, y, x); a patch of a single section has z = 1.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from emseg_jax import config
from emseg_jax.data import blocks, labels, pairs

__all__ = ['list_places', 'starts']

Place = tuple[int, ...]


def starts(shape: Sequence[int], patch: Sequence[int], options: config.Sampling) -> list[list[int]]:
  """Per axis, where the patches begin: increasing, the first at 0, the last flush with the end.

  `grid` goes on by stride, half a patch by default. `tiles` takes the fewest that leave no gap,
  evenly spread. An axis shorter than the patch has one start, 0.
  """
  if options.kind == 'tiles':
    return [_tile_starts(n, p) for n, p in zip(shape, patch, strict=True)]
  stride = [max(1, p // 2) for p in patch]
  if options.stride is not None:
    stride[-len(options.stride) :] = options.stride
  return [_grid_starts(n, p, s) for n, p, s in zip(shape, patch, stride, strict=True)]


def _grid_starts(length: int, patch: int, stride: int) -> list[int]:
  last = max(0, length - patch)
  return [*range(0, last, stride), last]


def _tile_starts(length: int, patch: int) -> list[int]:
  count = -(-length // patch)
  last = max(0, length - patch)
  return [round(i * last / max(1, count - 1)) for i in range(count)]


def list_places(
  split: pairs.Split,
  groups: Sequence[blocks.Group],
  patch: Sequence[int],
  options: config.Sampling,
) -> list[tuple[blocks.Group, Place]]:
  """All places of one pass: (group, origin), those with foreground positive_copies times.

  Labels are read only if positive_copies asks for it, every section once.
  """
  found = []
  for group in groups:
    per_axis = starts(blocks.shape(split, group), patch, options)
    origins = list(itertools.product(*per_axis))
    copies = np.ones(len(origins), np.int64)
    if options.positive_copies > 1:
      copies[_positive(split, group, per_axis, patch)] = options.positive_copies
    for origin, count in zip(origins, copies, strict=True):
      found += [(group, origin)] * int(count)
  return found


def _positive(
  split: pairs.Split, group: blocks.Group, per_axis: list[list[int]], patch: Sequence[int]
) -> np.ndarray:
  """Which places hold a voxel of another class than the first: bool, in the order of places."""
  z_starts, y_starts, x_starts = per_axis
  found = np.zeros([len(axis) for axis in per_axis], bool)
  for z, index in enumerate(group):
    foreground = labels.foreground(split.label(index))
    plane = [
      [foreground[y : y + patch[1], x : x + patch[2]].any() for x in x_starts] for y in y_starts
    ]
    touched = [i for i, start in enumerate(z_starts) if start <= z < start + patch[0]]
    found[touched] |= np.array(plane)
  return found.ravel()
