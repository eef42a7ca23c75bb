"""How high each voxel of a mask lies, for markers and for the flood that starts from them.

A relief is uint16: 0 outside the mask, 1 where a marker may be, and 2 to 257 elsewhere, the higher
the less probable, or the nearer to the background.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from emseg_jax.postprocess.grid import Grid, Place, Read, grown

__all__ = ['HIGHEST', 'from_distance', 'from_probability']

HIGHEST = 257
STEPS = 255


def from_probability(read: Read, mask: Read, threshold: float) -> Read:
  """The relief of probabilities, in 256 steps.

  Args:
    read: uint8 or uint16, of which the largest stands for 1, or float.
    mask: bool.
    threshold: markers are where the probability is above it.
  """

  def relief(start: Place, stop: Place) -> np.ndarray:
    values, inside = read(start, stop), mask(start, stop)
    most = full(values.dtype)
    level = np.floor(values / np.float64(most) * STEPS)
    return _relief(inside, values > threshold * most, level)

  return relief


def full(dtype: np.dtype) -> float:
  """What stands for probability 1."""
  return float(np.iinfo(dtype).max) if dtype.kind in 'iu' else 1.0


def from_distance(
  grid: Grid, mask: Read, distance: float, sampling: Sequence[float], *, dimensions: int
) -> Read:
  """The relief of Euclidean distances to the nearest voxel of the background, in 256 steps.

  Nothing beyond `distance` is asked for, so that a margin as wide makes a block exact. What lies
  outside the volume is no background.

  Args:
    grid: the blocks.
    mask: bool.
    distance: markers are where the distance is above it.
    sampling: size of a voxel (z, y, x), in units of `distance`.
    dimensions: 2: within the section.
  """
  # What two equal distances differ by in floating point must not tell.
  above = distance * (1 + 1e-9)
  margin = [int(above // size) + 1 for size in sampling]
  if dimensions == 2:
    margin[0] = 0

  def relief(start: Place, stop: Place) -> np.ndarray:
    (low, high), core = grown((start, stop), tuple(margin), grid.shape)
    inside = mask(low, high)
    if dimensions == 2:
      far = np.stack([_distances(section, sampling[1:]) for section in inside])
    else:
      far = _distances(inside, sampling)
    inside, far = inside[core], far[core]
    level = np.floor(np.minimum(far / distance, 1) * STEPS + 1e-6)
    return _relief(inside, far > above, level)

  return relief


def _distances(mask: np.ndarray, sampling: Sequence[float]) -> np.ndarray:
  if mask.all():  # the nearest background is further than asked for
    return np.full(mask.shape, np.inf)
  return ndimage.distance_transform_edt(mask, sampling)


def _relief(inside: np.ndarray, above: np.ndarray, level: np.ndarray) -> np.ndarray:
  heights = np.where(above, 1, HIGHEST - level.astype(np.uint16))
  return np.where(inside, heights, 0).astype(np.uint16)
