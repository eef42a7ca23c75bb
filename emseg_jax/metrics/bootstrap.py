"""Confidence intervals of the headline scores by a bootstrap over images.

Images, not voxels, are drawn: neighbouring voxels are wrong together. Sections of one volume are
alike too, so an interval over them says how much these sections vary, not how much specimens do.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from emseg_jax.metrics.confusion import count_classes

__all__ = ['intervals']


def intervals(
  confusions: np.ndarray,
  classes: Sequence[str],
  *,
  confidence: float,
  seed: int,
  resamples: int = 2000,
) -> dict[str, Any] | None:
  """Percentile intervals (Efron 1979) of the scores that `metrics.scores` gives.

  Each resample draws as many images as there are, with replacement, sums their confusion matrices
  and scores the sum. Images without scored voxels are left out.

  Args:
    confusions: [N, K, K] integer counts of N images, or [N, 2^K, 2^K] of masks; rows are labels.
    classes: K names.
    confidence: level of the intervals, such as 0.95.
    seed: of the draws; the same seed gives the same intervals.
    resamples: number of draws.

  Returns:
    {'images': N, 'accuracy': [low, high], 'miou': [low, high], 'mean_dice': [low, high],
    'per_class': {name: {'iou': [low, high], 'dice', 'precision', 'recall'}}}, or None with fewer
    than two images. A class is scored over the resamples that have it; None if it is in no image.

  Raises:
    ValueError: the matrices do not fit K classes, or the confidence is not between 0 and 1.
  """
  confusions = np.asarray(confusions, np.int64)
  count_classes(confusions, len(classes))  # raises where they do not fit
  if not 0 < confidence < 1:
    raise ValueError(f'confidence is {confidence}, must be between 0 and 1')
  confusions = confusions[confusions.any(axis=(1, 2))]
  n = len(confusions)
  if n < 2:
    return None
  # How often each image is drawn: [resamples, N]. Float64 counts voxels exactly up to 2^53.
  times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
  drawn = np.tensordot(times.astype(np.float64), confusions.astype(np.float64), axes=1)
  hits, labelled, predicted = count_classes(drawn, len(classes))  # [resamples, K]
  both = labelled + predicted
  iou, dice = _divide(hits, both - hits), _divide(2 * hits, both)
  per_class = {
    'iou': iou,
    'dice': dice,
    'precision': _divide(hits, predicted),
    'recall': _divide(hits, labelled),
  }
  interval = functools.partial(_interval, confidence=confidence)
  return {
    'images': n,
    'accuracy': interval(np.trace(drawn, axis1=1, axis2=2) / drawn.sum(axis=(1, 2))),
    'miou': interval(_mean(iou)),
    'mean_dice': interval(_mean(dice)),
    'per_class': {
      name: {key: interval(values[:, k]) for key, values in per_class.items()}
      for k, name in enumerate(classes)
    },
  }


def _interval(values: np.ndarray, *, confidence: float) -> list[float] | None:
  known = values[~np.isnan(values)]
  if not known.size:
    return None
  outside = (1 - confidence) / 2
  return np.quantile(known, [outside, 1 - outside]).tolist()


def _mean(scores: np.ndarray) -> np.ndarray:
  """Of the classes [..., K] that have a score; NaN where none has one."""
  return _divide(np.nansum(scores, axis=-1), np.sum(~np.isnan(scores), axis=-1))


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
  """NaN where the denominator is 0: the class is neither labelled nor predicted."""
  nothing = np.full(numerator.shape, np.nan)
  return np.divide(numerator, denominator, out=nothing, where=denominator > 0)
