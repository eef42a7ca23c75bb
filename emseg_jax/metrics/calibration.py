"""Whether a network is right as often as it is sure: histograms of its confidence.

Counts add up over images and are divided once. Voxels labelled 255 are not counted, and their
probabilities may be NaN.
"""

from typing import Any

import numpy as np

from emseg_jax.data.pairs import IGNORED

__all__ = ['BINS', 'calibration', 'confidence_counts']

BINS = 15  # as in Guo et al. (2017)


def confidence_counts(
  probabilities: np.ndarray, labels: np.ndarray, *, multilabel: bool = False
) -> np.ndarray:
  """Counts decisions by the confidence they were made with.

  A voxel is one decision, for the class with the largest probability; where classes overlap it is
  one for or against each class, with the probability of what was decided.

  Args:
    probabilities: [*S, K] in 0..1.
    labels: [*S] integer class indices, or masks of a multilabel task; 255 where not scored.
    multilabel: bit k of a label says whether class k is there.

  Returns:
    [BINS, 3] float64: number of decisions, sum of their confidences, number of right ones. Bin m
    holds m < BINS · confidence <= m + 1. Add them over images.

  Raises:
    ValueError: the shapes do not belong together.
  """
  if probabilities.shape[:-1] != labels.shape:
    raise ValueError(f'probabilities {probabilities.shape} do not fit labels {labels.shape}')
  if labels.ndim > 2:  # section by section, so that what is computed stays small
    sections = zip(probabilities, labels, strict=True)
    return sum(
      (confidence_counts(*section, multilabel=multilabel) for section in sections),
      start=np.zeros((BINS, 3)),
    )
  counted = labels != IGNORED
  p, label = probabilities[counted], labels[counted]
  if multilabel:
    there = p > 0.5
    confidence = np.where(there, p, 1 - p).ravel()
    right = (there == (label[:, None] >> np.arange(p.shape[-1]) & 1)).ravel()
  else:
    confidence, right = p.max(axis=-1), p.argmax(axis=-1) == label
  bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
  weights = None, confidence, right
  return np.stack([np.bincount(bins, w, minlength=BINS) for w in weights], axis=-1)


def calibration(counts: np.ndarray) -> dict[str, Any]:
  """The reliability diagram and the expected calibration error (Guo et al. 2017, eq. 3).

      ECE = sum_m |B_m| / n |acc(B_m) - conf(B_m)|

  Args:
    counts: [BINS, 3] what `confidence_counts` returns, summed.

  Returns:
    {'ece', 'count': [BINS], 'confidence': [BINS], 'accuracy': [BINS]}, the last two means over the
    decisions of a bin; what has no denominator is None.
  """
  number, confidence, right = counts.T
  total = number.sum()
  return {
    # |B_m| cancels: the sums of a bin are compared instead of its means.
    'ece': float(np.abs(right - confidence).sum() / total) if total else None,
    'count': [int(n) for n in number],
    'confidence': _means(confidence, number),
    'accuracy': _means(right, number),
  }


def _means(sums: np.ndarray, number: np.ndarray) -> list[float | None]:
  return [float(s / n) if n else None for s, n in zip(sums, number, strict=True)]
