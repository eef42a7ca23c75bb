"""Segmentation scores from one confusion matrix, and the two baselines that a network has to beat.

Confusion matrices are counts: they add up over batches, tiles, images and processes, and are
divided once. Rows are labels, columns predictions. Inside a step they are int32 (exact where
float32 stops at 2^24, good for 2^31 voxels a call); on the host they are summed as int64.

Where classes overlap, what is counted are masks: of K classes there are 2^K, bit k of a mask says
whether class k is there. A matrix of 2^K rows for K names is one of masks; no K fits both.

A score without a denominator (a class neither labelled nor predicted) is None, JSON null, and left
out of the means.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emseg_jax.errors import DataError

__all__ = [
  'best_threshold',
  'confusion_matrix',
  'count_classes',
  'format_table',
  'majority',
  'scores',
]

MEANS = ('accuracy', 'miou', 'mean_dice', 'mcc')
PER_CLASS = ('iou', 'dice', 'precision', 'recall', 'share')


@partial(jax.jit, static_argnames='num_classes')
def confusion_matrix(
  predictions: jax.Array, labels: jax.Array, weights: jax.Array, *, num_classes: int
) -> jax.Array:
  """Counts voxels by label and prediction where the weight is positive.

  Args:
    predictions: [...] integer class indices.
    labels: [...] integer class indices; any value where the weight is 0.
    weights: [...], 0 where a voxel must not count; other values all count as one.
    num_classes: K.

  Returns:
    [K, K] int32; rows are labels, columns predictions.
  """
  classes = jnp.arange(num_classes).reshape(-1, *(1,) * labels.ndim)
  # Comparisons and sums fuse into one pass, partition over devices and need no scatter.
  is_label = (labels[None] == classes) & (weights[None] > 0)
  is_predicted = predictions[None] == classes
  both = is_label[:, None] & is_predicted[None, :]
  return jnp.sum(both, axis=tuple(range(2, both.ndim)), dtype=jnp.int32)


def scores(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
  """Accuracy, mean IoU, mean Dice, Matthews' correlation, and the scores of each class.

      accuracy = sum TP / all     IoU = TP / (TP + FP + FN)     Dice = 2 TP / (2 TP + FP + FN)
      precision = TP / (TP + FP)  recall = TP / (TP + FN)       share = (TP + FN) / all

  F1, the harmonic mean of precision and recall, is Dice and has no entry of its own. `micro` are
  the same ratios of TP, FP and FN summed over all classes; since every wrong voxel is an FP of one
  class and an FN of another, micro Dice = precision = recall = accuracy. `mcc` is the correlation
  for K classes (Gorodkin 2004, R_K), with s voxels, c right ones, t_k labelled and p_k predicted k:

      mcc = (c s - sum_k p_k t_k) / sqrt((s^2 - sum_k p_k^2) (s^2 - sum_k t_k^2))

  Of masks, a voxel is right where all of its classes are: accuracy and mcc are those of 2^K
  classes. All others are of the K classes, each for itself; micro Dice is no longer the accuracy.

  Args:
    confusion: [K, K] integer counts, or [2^K, 2^K] of masks; rows are labels.
    classes: K names.

  Returns:
    {'accuracy', 'miou', 'mean_dice', 'mcc', 'micro': {'iou', 'dice', 'precision', 'recall'},
    'per_class': {name: {'iou', 'dice', 'precision', 'recall', 'share'}}}; means run over the
    classes that are labelled or predicted; what has no denominator is None (mcc: all labels, or
    all predictions, are one class).

  Raises:
    ValueError: the matrix is neither K by K nor 2^K by 2^K.
  """
  confusion = np.asarray(confusion, np.int64)
  hits, labelled, predicted = count_classes(confusion, len(classes))
  total = confusion.sum()
  columns = (
    _ratio(hits, labelled + predicted - hits),
    _ratio(2 * hits, labelled + predicted),
    _ratio(hits, predicted),
    _ratio(hits, labelled),
    _ratio(labelled, np.full_like(labelled, total)),
  )
  iou, dice = columns[:2]
  tp, t, p = hits.sum(), labelled.sum(), predicted.sum()
  micro = _ratio(np.array([tp, 2 * tp, tp, tp]), np.array([t + p - tp, t + p, p, t]))
  return {
    'accuracy': _ratio(confusion.trace()[None], total[None])[0],
    'miou': _mean(iou),
    'mean_dice': _mean(dice),
    'mcc': _matthews(np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)),
    'micro': dict(zip(PER_CLASS[:4], micro, strict=True)),
    'per_class': {
      name: dict(zip(PER_CLASS, row, strict=True))
      for name, row in zip(classes, zip(*columns, strict=True), strict=True)
    },
  }


def count_classes(
  confusion: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Right, labelled and predicted voxels of each class, [..., K] each.

  Args:
    confusion: [..., K, K] counts, or [..., 2^K, 2^K] of masks; rows are labels.
    num_classes: K.

  Raises:
    ValueError: the matrices are neither.
  """
  if confusion.ndim >= 2 and confusion.shape[-2:] == (num_classes, num_classes):
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return hits, confusion.sum(axis=-1), confusion.sum(axis=-2)
  bits = _bits(num_classes)
  if confusion.ndim < 2 or confusion.shape[-2:] != (len(bits), len(bits)):
    raise ValueError(f'confusion matrix of shape {confusion.shape} for {num_classes} classes')
  hits = (confusion @ bits * bits).sum(axis=-2)  # class k in label and prediction
  return hits, confusion.sum(axis=-1) @ bits, confusion.sum(axis=-2) @ bits


def _bits(num_classes: int) -> np.ndarray:
  """[2^K, K] int64: 1 where class k is in the mask."""
  return np.arange(2**num_classes)[:, None] >> np.arange(num_classes) & 1


def majority(counts: np.ndarray, *, num_classes: int | None = None) -> dict[str, Any]:
  """The scores of predicting the most frequent class, or mask, everywhere.

  Args:
    counts: labelled voxels per class [K], or a confusion matrix [K, K], whose rows are summed; or
      of masks [2^K], [2^K, 2^K].
    num_classes: K of masks; None: the counts are of classes.

  Returns:
    {'class': index, 'accuracy', 'miou', 'mean_dice', 'mcc' (None: one class predicted)}.

  Raises:
    DataError: no labelled voxel.
  """
  counts = np.asarray(counts, np.int64)
  counts = counts.sum(axis=1) if counts.ndim == 2 else counts
  _require_labels(counts)
  best = int(np.argmax(counts))
  confusion = np.zeros((len(counts), len(counts)), np.int64)
  confusion[:, best] = counts
  return {'class': best, **_means(confusion, num_classes)}


def best_threshold(
  histograms: np.ndarray, bin_edges: np.ndarray, *, num_classes: int | None = None
) -> dict[str, Any]:
  """The best that one grey threshold can do: class `below` under it, class `above` from it on.

  Tries every bin edge and every ordered pair of classes, so both polarities, and keeps the highest
  mean IoU; the other classes score 0. The outer edges predict one class everywhere, so the result
  is never worse than `majority`. Of masks, `below` and `above` are any two: each class may lie
  nowhere, below, above or everywhere, whatever the others do.

  Args:
    histograms: [K, bins] integer; grey values of the labelled voxels of each class; or [2^K, bins]
      of each mask.
    bin_edges: [bins + 1], rising; bin i is bin_edges[i] <= value < bin_edges[i + 1], as in
      numpy.histogram.
    num_classes: K of masks; None: the histograms are of classes.

  Returns:
    {'threshold', 'below', 'above' (classes or masks), 'accuracy', 'miou', 'mean_dice', 'mcc'}.

  Raises:
    DataError: no labelled voxel.
    ValueError: the shapes do not belong together.
  """
  histograms = np.asarray(histograms, np.int64)
  rows, bins = histograms.shape
  if len(bin_edges) != bins + 1:
    raise ValueError(f'{bins} bins need {bins + 1} edges, got {len(bin_edges)}')
  labelled = histograms.sum(axis=1)
  _require_labels(labelled)
  # under[k, t]: voxels of class k below edge t; over[k, t]: the rest.
  under = np.pad(np.cumsum(histograms, axis=1), ((0, 0), (1, 0)))
  over = labelled[:, None] - under
  if num_classes is None:
    below, above, edge = _best_pair(under, over)
  else:
    below, above, edge = _best_masks(under, over, num_classes)
  confusion = np.zeros((rows, rows), np.int64)
  confusion[:, below] += under[:, edge]
  confusion[:, above] += over[:, edge]
  return {
    'threshold': float(bin_edges[edge]),
    'below': below,
    'above': above,
    **_means(confusion, num_classes),
  }


def _best_pair(under: np.ndarray, over: np.ndarray) -> tuple[int, int, int]:
  """Classes below and above, and the edge, of the highest mean IoU; arguments [K, edges]."""
  iou_below, iou_above = _iou_of_sides(under, over, under.sum(axis=0), over.sum(axis=0))
  # The largest sum is the largest mean: predicting a class without labels, which would count in
  # the mean, never pays, since a class that lies on that side of the threshold scores more.
  total = iou_below[:, None] + iou_above[None, :]  # [K, K, edges]
  total[np.arange(len(under)), np.arange(len(under))] = -1.0  # two different classes
  below, above, edge = (int(i) for i in np.unravel_index(np.argmax(total), total.shape))
  return below, above, edge


def _best_masks(under: np.ndarray, over: np.ndarray, num_classes: int) -> tuple[int, int, int]:
  """The same of masks, [2^K, edges]."""
  bits = _bits(num_classes)
  all_under, all_over = under.sum(axis=0), over.sum(axis=0)
  under, over = bits.T @ under, bits.T @ over  # of class k
  everywhere = (under + over) / (all_under + all_over)
  sides = _iou_of_sides(under, over, all_under, all_over)
  # The first of equals, so that a class without labels, which is not in the mean, lies nowhere.
  iou = np.stack([np.zeros_like(everywhere), *sides, everywhere])  # [4, K, edges]
  edge = int(np.argmax(iou.max(axis=0).sum(axis=0)))
  place = iou[:, :, edge].argmax(axis=0)  # 0 nowhere, 1 below, 2 above, 3 everywhere
  return *(int(np.sum((place & side > 0) << np.arange(num_classes))) for side in (1, 2)), edge


def _iou_of_sides(
  under: np.ndarray, over: np.ndarray, all_under: np.ndarray, all_over: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """IoU [K, edges] of each class predicted below, or above, every edge."""
  return (
    under / np.maximum(over + all_under, 1),  # labelled + predicted - right
    over / np.maximum(under + all_over, 1),
  )


def format_table(
  result: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
  """Plain text for logs: means of the network and the baselines, then a row per class.

  Args:
    result: what `scores` returns.
    baselines: name -> what `majority` or `best_threshold` returns.
  """
  rows = {'network': result, **(baselines or {})}
  overall = _columns('', MEANS, {name: [row[key] for key in MEANS] for name, row in rows.items()})
  per_class = {name: [row[key] for key in PER_CLASS] for name, row in result['per_class'].items()}
  return '\n'.join([*overall, '', *_columns('class', PER_CLASS, per_class)])


def _columns(
  corner: str, header: Sequence[str], rows: Mapping[str, Sequence[float | None]]
) -> list[str]:
  first = max(len(name) for name in (corner, *rows))
  lines = [f'{corner:<{first}}' + ''.join(f'  {key:>9}' for key in header)]
  for name, values in rows.items():
    cells = ('-' if value is None else f'{value:.4f}' for value in values)
    lines.append(f'{name:<{first}}' + ''.join(f'  {cell:>9}' for cell in cells))
  return [line.rstrip() for line in lines]


def _means(confusion: np.ndarray, num_classes: int | None) -> dict[str, Any]:
  result = scores(confusion, [str(k) for k in range(num_classes or len(confusion))])
  return {key: result[key] for key in MEANS}


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> list[float | None]:
  pairs = zip(numerator.tolist(), denominator.tolist(), strict=True)
  return [n / d if d else None for n, d in pairs]


def _matthews(hits: np.ndarray, labelled: np.ndarray, predicted: np.ndarray) -> float | None:
  # Python integers: products of two counts do not fit 64 bits.
  c, t, p = sum(hits.tolist()), labelled.tolist(), predicted.tolist()
  s = sum(t)
  spread = (s * s - sum(n * n for n in p)) * (s * s - sum(n * n for n in t))
  if not spread:
    return None
  return (c * s - sum(a * b for a, b in zip(p, t, strict=True))) / math.sqrt(spread)


def _mean(values: Sequence[float | None]) -> float | None:
  known = [value for value in values if value is not None]
  return sum(known) / len(known) if known else None


def _require_labels(counts: np.ndarray) -> None:
  if not counts.sum():
    raise DataError(
      'no labelled voxel to score: every label is missing or equals task.ignore_value; '
      'check the labels of the split'
    )
