"""Targets that need whole sections or volumes: how near every voxel is to a centreline.

Computed once before training, kept on disk and read from there as if they were sections. Arrays are
[Z, Y, X] or [Y, X].
"""

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage import morphology

from emseg_jax import config
from emseg_jax.data import array_cache, blocks, labels, pairs

__all__ = ['centreline', 'proximity', 'proximity_sections']

VERSION = b'1'  # of the computation; another one makes files of older programs be ignored


def centreline(mask: np.ndarray, *, max_hole: int = 0) -> np.ndarray:
  """Thins a mask to lines: bool like `mask`, at least one voxel per connected component.

  scikit-image's thinning: Lee, Kashyap and Chu 1994 in volumes, Zhang and Suen 1984 in sections. In
  volumes it loses some objects of even width (its issue 3757); those get their innermost voxel.

  Args:
    mask: bool [Z, Y, X] or [Y, X].
    max_hole: holes of up to so many voxels are filled first; the skeleton of an object with a hole
      is a surface around that (in sections, a ring).
  """
  filled = mask | _holes(mask, max_hole) if max_hole else mask
  skeleton = morphology.skeletonize(filled)
  objects, count = ndimage.label(filled, np.ones((3,) * mask.ndim))
  thinned = np.bincount(objects[skeleton], minlength=count + 1)
  for number, box in enumerate(ndimage.find_objects(objects), start=1):
    if not thinned[number]:
      inside = np.pad(objects[box] == number, 1)
      innermost = np.argmax(ndimage.distance_transform_edt(inside)[(slice(1, -1),) * mask.ndim])
      skeleton[box].flat[innermost] = True
  return skeleton


def _holes(mask: np.ndarray, largest: int) -> np.ndarray:
  """The enclosed parts of the background with at most `largest` voxels."""
  parts, count = ndimage.label(~mask)
  fill = np.bincount(parts.ravel(), minlength=count + 1) <= largest
  fill[0] = False  # the mask itself
  for axis in range(mask.ndim):
    for side in (0, -1):
      fill[parts.take(side, axis)] = False
  return fill[parts]


def proximity(
  mask: np.ndarray,
  *,
  alpha: float = 3.0,
  radius: float = 15.0,
  voxel_size: Sequence[float] | None = None,
  max_hole: int = 0,
  only_inside: bool = False,
) -> np.ndarray:
  """Nearness to the centreline, from 1 on it to 0 at `radius` (EM-Net, eq. 2).

      D = (exp(alpha·(1 - d / radius)) - 1) / (exp(alpha) - 1)  where d < radius, else 0

  with d the Euclidean distance to the nearest voxel of the centreline. The division is not in the
  paper; without it D would not fit the sigmoid that is trained on it.

  Args:
    mask: bool [Z, Y, X] or [Y, X].
    alpha: steepness.
    radius: d_M, in voxels along x.
    voxel_size: (z, y, x) or (y, x), in any unit; None: equal.
    max_hole: see `centreline`.
    only_inside: 0 outside the mask, where eq. 2 is positive around thin objects.

  Returns:
    float32 like `mask`.
  """
  spacing = np.ones(mask.ndim) if voxel_size is None else np.divide(voxel_size, voxel_size[-1])
  reach = [min(int(radius / s), n) for s, n in zip(spacing, mask.shape, strict=True)]
  axes = [s * np.arange(-r, r + 1) for s, r in zip(spacing, reach, strict=True)]
  distance = np.sqrt(sum(d * d for d in np.meshgrid(*axes, indexing='ij', sparse=True)))
  kernel = np.expm1(alpha * np.maximum(0, 1 - distance / radius)) / np.expm1(alpha)
  kernel = kernel.astype(np.float32)
  # D falls with d, so the nearest voxel of the centreline is the one that gives the largest D. That
  # is exact, and quicker than a distance transform of the whole volume: centrelines are thin.
  result = np.zeros(mask.shape, np.float32)
  for voxel in np.argwhere(centreline(mask, max_hole=max_hole)):
    near = tuple(slice(max(0, v - r), v + r + 1) for v, r in zip(voxel, reach, strict=True))
    around = tuple(
      slice(max(0, r - v), r + n - v) for v, r, n in zip(voxel, reach, mask.shape, strict=True)
    )
    np.maximum(result[near], kernel[around], out=result[near])
  return np.where(mask, result, np.float32(0)) if only_inside else result


def proximity_sections(
  split: pairs.Split, options: config.Proximity, *, ndim: int, cache: Path | None = None
) -> list[np.ndarray]:
  """The proximity of every section of a split: float32 [Y, X] each, read-only.

  Args:
    split: the sections; foreground are all classes but the first.
    options: how it is computed.
    ndim: axes of the network; the default of options.dimensions.
    cache: folder of computed maps, shared by runs; None: everything is kept in memory.

  Raises:
    DataError: a section has no label, sections of a volume differ in size, or a file of the cache
      is damaged.
    OutputError: the cache cannot be written.
  """
  dimensions = options.dimensions or ndim
  found: list[np.ndarray] = []
  for group in blocks.groups(split, 3) if dimensions == 3 else _runs(split):
    mask = np.stack([labels.foreground(split.label(index)) for index in group])
    known = split.sections[group[0]].image_volume.voxel_size_zyx or (None,) * 3
    size = (options.voxel_size or known)[-dimensions:]
    maps = _computed(mask, options, None if None in size else size, dimensions, cache)
    maps.setflags(write=False)
    found += list(maps)
  return found


def _runs(split: pairs.Split) -> list[blocks.Group]:
  """Neighbouring sections of one source and one size, to be kept in one file."""
  runs = itertools.groupby(
    range(len(split)), lambda i: (id(split.sections[i].image_volume), split.sections[i].shape)
  )
  return [tuple(run) for _, run in runs]


def _computed(
  mask: np.ndarray,
  options: config.Proximity,
  voxel_size: Sequence[float] | None,
  dimensions: int,
  cache: Path | None,
) -> np.ndarray:
  """The proximity of a mask [Z, Y, X], from the cache if it is there."""

  def compute() -> np.ndarray:
    settings = {
      'voxel_size': voxel_size,
      'alpha': options.alpha,
      'radius': options.radius,
      'max_hole': options.max_hole,
      'only_inside': options.mask,
    }
    if dimensions == 3:
      return proximity(mask, **settings)
    return np.stack([proximity(section, **settings) for section in mask])

  if cache is None:
    return compute()
  record = f'{options.model_dump_json()}{voxel_size}{dimensions}{mask.shape}'.encode()
  digest = hashlib.sha256(VERSION + record + np.packbits(mask).tobytes()).hexdigest()
  path = cache / f'proximity-{digest[:32]}.npy'
  return array_cache.load_or_compute(path, compute)
