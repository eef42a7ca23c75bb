"""One class against the rest over all thresholds of its probability.

Built on histograms, integer counts that add up over images. Two classes give one curve, that of
class 1 (class 0's is its mirror image); more classes give one curve each. Voxels labelled 255 are
not counted, and their probabilities may be NaN.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from emseg_jax.data.pairs import IGNORED

__all__ = ['BINS', 'probability_histograms', 'threshold_scores']

BINS = 1024
CURVE_STEP = 8  # every 8th threshold is written out: 129 points


def probability_histograms(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Counts voxels by label and probability.

  Args:
    probabilities: [*S, K] in 0..1.
    labels: [*S] integer class indices, 255 where not scored.

  Returns:
    [K, 2, BINS] int64, or [1, 2, BINS] for K = 2 (of class 1): voxels of other classes, voxels of
    the class. Bin i holds i <= BINS p < i + 1, the last one p = 1 as well. Add them over images.

  Raises:
    ValueError: the shapes do not belong together.
  """
  if probabilities.shape[:-1] != labels.shape:
    raise ValueError(f'probabilities {probabilities.shape} do not fit labels {labels.shape}')
  counted = labels != IGNORED
  p, label = probabilities[counted], labels[counted]
  found = [
    np.bincount(
      np.clip((p[:, k] * BINS).astype(np.int64), 0, BINS - 1) + BINS * (label == k),
      minlength=2 * BINS,
    ).reshape(2, BINS)
    for k in _scored(p.shape[-1])
  ]
  return np.stack(found)


def threshold_scores(histograms: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
  """Precision, recall, F1 and IoU of `p >= t` for thresholds t, and the best t.

      miou = (IoU of the class + IoU of the rest) / 2
      average precision = sum_n (R_n - R_{n-1}) P_n  over falling thresholds

  Average precision is the area under the precision-recall curve without interpolation
  (scikit-learn's definition); thresholds are multiples of 1 / BINS.

  Args:
    histograms: what `probability_histograms` returns, summed.
    classes: all K names.

  Returns:
    {'per_class': {name: {'average_precision', 'best_iou', 'best_f1', 'best_threshold',
    'curve': {'threshold', 'precision', 'recall', 'f1', 'iou', 'miou'}}}}. `best_threshold` is that
    of the highest IoU, the lowest of equals; `best_f1` belongs to it as well (IoU and F1 peak
    together). Curves are lists of 129 numbers. None without a denominator; a class without labelled
    voxels has no average precision and no best.

  Raises:
    ValueError: the histograms are not those of K classes.
  """
  scored = _scored(len(classes))
  if histograms.shape != (len(scored), 2, BINS):
    raise ValueError(f'histograms of shape {histograms.shape} for {len(classes)} classes')
  return {
    'per_class': {
      classes[k]: _one_class(histogram) for k, histogram in zip(scored, histograms, strict=True)
    }
  }


def _scored(num_classes: int) -> range:
  return range(1, 2) if num_classes == 2 else range(num_classes)


def _one_class(histogram: np.ndarray) -> dict[str, Any]:
  # false[t], hits[t]: voxels of the rest and of the class at or above threshold t / BINS.
  false, hits = np.pad(histogram[:, ::-1].cumsum(axis=1)[:, ::-1], ((0, 0), (0, 1)))
  rest, labelled = false[0], hits[0]
  curve = {
    'threshold': np.arange(BINS + 1) / BINS,
    'precision': _divide(hits, hits + false),
    'recall': _divide(hits, np.full_like(hits, labelled)),
    'f1': _divide(2 * hits, labelled + hits + false),
    'iou': _divide(hits, labelled + false),
  }
  rest_iou = _divide(rest - false, rest + labelled - hits)
  # A side that is neither labelled nor predicted is left out of the mean, as in metrics.scores.
  sides = np.stack([curve['iou'], rest_iou])
  curve['miou'] = _divide(np.nansum(sides, axis=0), np.sum(~np.isnan(sides), axis=0))
  best = int(np.argmax(curve['iou'])) if labelled else None
  steps = -np.diff(hits) / labelled if labelled else None  # R_n - R_{n-1}
  precise = np.nan_to_num(curve['precision'][:-1])  # without a denominator there is no step either
  return {
    'average_precision': float(np.sum(steps * precise)) if labelled else None,
    'best_iou': float(curve['iou'][best]) if labelled else None,
    'best_f1': float(curve['f1'][best]) if labelled else None,
    'best_threshold': best / BINS if labelled else None,
    'curve': {
      name: [None if np.isnan(v) else float(v) for v in values[::CURVE_STEP]]
      for name, values in curve.items()
    },
  }


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
  """NaN where the denominator is 0."""
  nothing = np.full(numerator.shape, np.nan)
  return np.divide(numerator, denominator, out=nothing, where=denominator != 0)
