"""What a network has to beat on given images: one class everywhere, and one grey threshold."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from emseg_jax import metrics
from emseg_jax.data import pairs

__all__ = ['trivial_baselines']

MAX_GREY_BINS = 4096


def trivial_baselines(
  split: pairs.Split,
  confusion: np.ndarray,
  classes: Sequence[str],
  *,
  num_classes: int | None = None,
) -> dict[str, dict[str, Any]]:
  """Scores of the majority class and of the best grey threshold, each the best possible here.

  Args:
    split: labelled sections.
    confusion: [K, K] counts of any prediction of them, or of masks; only its row sums matter.
    classes: names of its rows.
    num_classes: how many classes may overlap, if it is of masks; None: each row is a class.

  Returns:
    {'majority': {'class', 'accuracy', 'miou', ...}, 'threshold': {'threshold', 'below', 'above',
    ...}}.
  """
  edges = _grey_edges(split)
  histograms = np.zeros((len(classes), len(edges) - 1), np.int64)
  for index in range(len(split)):
    grey, label = _grey(split.image(index)), split.label(index)
    for k in range(len(classes)):
      histograms[k] += np.histogram(grey[label == k], bins=edges)[0]
  majority = metrics.majority(confusion, num_classes=num_classes)
  threshold = metrics.best_threshold(histograms, edges, num_classes=num_classes)
  return {
    'majority': {**majority, 'class': classes[majority['class']]},
    'threshold': {
      **threshold,
      'below': classes[threshold['below']],
      'above': classes[threshold['above']],
    },
  }


def _grey(image: np.ndarray) -> np.ndarray:
  return image if image.ndim == 2 else image.mean(axis=-1)


def _grey_edges(split: pairs.Split) -> np.ndarray:
  """Histogram edges: one bin per grey value for 8-bit images, else 4096 bins over the range."""
  if all(s.image_volume.dtype == np.uint8 for s in split.sections):
    return np.arange(257, dtype=np.float64)
  low = min(float(image.min()) for image in split.images())
  high = max(float(image.max()) for image in split.images())
  return np.linspace(low, np.nextafter(max(high, low + 1e-6), np.inf), MAX_GREY_BINS + 1)
