"""The score of the ISBI 2012 challenge: V_rand and V_info of 2D sections, restricted to the
foreground, after border thinning, at the best threshold.

Arganda-Carreras et al. (2015, doi:10.3389/fnana.2015.00142), in the form of the challenge's Fiji
script "Segmentation evaluation after border thinning". For every section and every threshold:

1. Truth: 4-connected components of equal label in the interior. It is not thinned.
2. Prediction: pixels with probability > threshold; what is left are borders. Thinning floods the
   borders from the 4-connected components (watershed of the binary image, 4-connected) until lines
   one pixel wide separate them. If nothing exceeds the threshold, the whole section is one region.
3. Foreground restriction: only interior pixels of the truth count, and every pixel of theirs that
   the prediction calls border is a region of its own.
4. V_rand and V_info (`partition`), averaged over the sections; then the best threshold of each. A
   section whose truth is one region holds no information to find: it has no V_info here, where
   the script counts 0.

Without the restriction all pixels count and the borders are one more region on both sides; with
thinning off as well, V_info and (over distinct pairs of pixels) V_rand are those of scikit-image.

The lines of scikit-image's watershed, used here, may run one pixel beside those of the script's
flooding (Vincent and Soille) where a border is an even number of pixels wide. On noisy predictions
of the challenge's own sections that changed either score by 0.0002 at most.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage import measure, segmentation

from emseg_jax.data.pairs import IGNORED
from emseg_jax.metrics import partition

__all__ = ['THRESHOLDS', 'best', 'curve', 'scores']

# The script adds 0.1 until 1 is exceeded. Rounding leaves the last one just below 1, where it keeps
# the pixels of probability exactly 1.
THRESHOLDS = tuple(np.cumsum([0.0, *[0.1] * 10]).tolist())
PARTS = ('v_rand', 'v_rand_split', 'v_rand_merge', 'v_info', 'v_info_split', 'v_info_merge')


def scores(
  interior_probability: np.ndarray,
  labels: np.ndarray,
  *,
  thresholds: Sequence[float] = THRESHOLDS,
  thinning: bool = True,
  foreground_only: bool = True,
  distinct_pairs: bool = False,
  ignored_label: int | None = IGNORED,
) -> dict[str, float | int | None]:
  """Averages `curve` over the sections and takes the best threshold of each score.

  Args:
    interior_probability: [Z, Y, X] or [Y, X] float, 1 inside a cell, 0 on a membrane.
    labels: likewise, integer; 0 on membranes, 1 inside (or the id of the cell).
    thresholds: as `THRESHOLDS`.
    thinning: step 2 above.
    foreground_only: step 3 above.
    distinct_pairs: as in `partition.v_rand`.
    ignored_label: pixels of this label do not count; None where 255 is the id of a cell.

  Returns:
    What `best` returns.

  Raises:
    ValueError: the shapes differ or are not 2D or 3D.
  """
  if interior_probability.shape != labels.shape or labels.ndim not in (2, 3):
    raise ValueError(
      f'interior_probability {interior_probability.shape} and labels {labels.shape} must have one '
      'shape, [Z, Y, X] or [Y, X]'
    )
  sections = (
    array[None] if labels.ndim == 2 else array for array in (interior_probability, labels)
  )
  curves = [
    curve(
      probability,
      label,
      thresholds=thresholds,
      thinning=thinning,
      foreground_only=foreground_only,
      distinct_pairs=distinct_pairs,
      ignored_label=ignored_label,
    )
    for probability, label in zip(*sections, strict=True)
  ]
  return best(curves, thresholds=thresholds)


def curve(
  interior_probability: np.ndarray,
  labels: np.ndarray,
  *,
  thresholds: Sequence[float] = THRESHOLDS,
  thinning: bool = True,
  foreground_only: bool = True,
  distinct_pairs: bool = False,
  ignored_label: int | None = IGNORED,
) -> dict[str, list[float | None]]:
  """The scores of one section at every threshold; arguments as for `scores`, but [Y, X] only.

  Returns:
    {'v_rand', 'v_rand_split', 'v_rand_merge', 'v_info', 'v_info_split', 'v_info_merge'}, each a
    list with a value per threshold, None where undefined.
  """
  ignored = np.zeros(labels.shape, bool) if ignored_label is None else labels == ignored_label
  truth = measure.label(np.where(ignored, 0, labels), background=0, connectivity=1)
  rows = []
  for threshold in thresholds:
    table = partition.contingency(
      _regions(interior_probability > threshold, thinning=thinning),
      truth,
      ignored=ignored,
      foreground_only=foreground_only,
      background_as_singletons=foreground_only,
    )
    rand = partition.v_rand(table, distinct_pairs=distinct_pairs)
    info = partition.v_info(table)
    if len(table.truth) < 2:  # at every threshold, or it would sway the choice of the best one
      info = dict.fromkeys(info)
    rows.append([*rand.values(), *info.values()])
  return {part: [row[i] for row in rows] for i, part in enumerate(PARTS)}


def best(
  curves: Sequence[dict[str, list[float | None]]], *, thresholds: Sequence[float] = THRESHOLDS
) -> dict[str, float | int | None]:
  """Averages curves over sections and reads them where V_rand, and where V_info, is highest.

  A section without a score is left out of the mean. Among equal scores the lowest threshold wins.

  Args:
    curves: what `curve` returns, one per section.
    thresholds: those of the curves.

  Returns:
    {'v_rand', 'v_rand_split', 'v_rand_merge', 'threshold_rand', 'v_info', 'v_info_split',
    'v_info_merge', 'threshold_info', 'sections' (how many have a V_rand)}; None where no section
    has a value.
  """
  means = {
    part: [_mean(values) for values in zip(*(one[part] for one in curves), strict=True)]
    for part in PARTS
  }
  result = {}
  for score in ('rand', 'info'):
    known = [i for i, value in enumerate(means[f'v_{score}']) if value is not None]
    at = max(known, key=means[f'v_{score}'].__getitem__) if known else None
    for part in (f'v_{score}', f'v_{score}_split', f'v_{score}_merge'):
      result[part] = None if at is None else means[part][at]
    result[f'threshold_{score}'] = None if at is None else float(thresholds[at])
  return {**result, 'sections': sum(any(v is not None for v in c['v_rand']) for c in curves)}


def _regions(interior: np.ndarray, *, thinning: bool) -> np.ndarray:
  """Interior mask [Y, X] -> region of each pixel, 0 on the borders that are left."""
  regions, number = ndimage.label(interior)  # 4-connected by default
  if not thinning:
    return regions
  if not number:
    return np.ones_like(regions)
  flat = np.zeros(regions.shape, np.uint8)
  return segmentation.watershed(flat, regions, connectivity=1, watershed_line=True)


def _mean(values: Sequence[float | None]) -> float | None:
  known = [value for value in values if value is not None]
  return sum(known) / len(known) if known else None
