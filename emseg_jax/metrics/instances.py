"""Scores of objects: which ones were found, whatever their class map says pixel by pixel.

Objects are connected components of one class, in 2D or 3D. A predicted and a true object match
where their intersection over union (IoU) reaches a threshold, each with at most one partner. The
counts of matches add up over images and are divided once.

Class maps carry no confidences, so `average_precision` is TP / (TP + FP + FN) at one threshold, as
StarDist and Cellpose report it, and not the area under a precision-recall curve as in COCO.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage, optimize

__all__ = ['THRESHOLDS', 'connected_components', 'count_matches', 'instance_scores']

THRESHOLDS = (0.5, 0.75)


def connected_components(
  class_map: np.ndarray, class_index: int, *, connectivity: int = 1, min_size: int = 0
) -> np.ndarray:
  """Numbers the objects of one class.

  Args:
    class_map: [Y, X] or [Z, Y, X] integer; 255 and other classes separate objects.
    class_index: the class whose objects are wanted.
    connectivity: 1 joins pixels that share a face (4 neighbours in 2D, 6 in 3D), 2 an edge, 3 a
      corner.
    min_size: objects of fewer pixels become background.

  Returns:
    int32 of the same shape: 0 is background, objects are 1..N without gaps.
  """
  structure = ndimage.generate_binary_structure(class_map.ndim, connectivity)
  objects, _ = ndimage.label(class_map == class_index, structure)
  sizes = np.bincount(objects.ravel(), minlength=1)
  keep = sizes >= min_size
  keep[0] = False
  return np.where(keep, np.cumsum(keep), 0).astype(np.int32)[objects]


def count_matches(
  predicted: np.ndarray,
  truth: np.ndarray,
  *,
  thresholds: Sequence[float] = THRESHOLDS,
  ignored: np.ndarray | None = None,
) -> np.ndarray:
  """Matches the objects of one image; add the counts of several images.

  Above IoU 0.5 an object has one possible partner only. Where there are several, the assignment
  with the most matches counts, and among those the one with the largest sum of IoU.

  Args:
    predicted: [Y, X] or [Z, Y, X] integer objects, 0 is background.
    truth: likewise.
    thresholds: smallest IoU of a match, above 0 to 1.
    ignored: bool, True where neither counts: objects are cut there, and vanish if nothing is left.

  Returns:
    [thresholds, 4] float64: true positives, false positives, false negatives, and the sum of the
    IoU of the true positives.

  Raises:
    ValueError: the shapes differ, or a threshold is out of range.
  """
  if predicted.shape != truth.shape:
    raise ValueError(f'predicted {predicted.shape} and truth {truth.shape} must have one shape')
  if not all(0 < threshold <= 1 for threshold in thresholds):
    raise ValueError(f'thresholds {tuple(thresholds)} must lie above 0 and up to 1')
  counted = np.ones(truth.shape, bool) if ignored is None else ~ignored
  s, t = predicted[counted], truth[counted]
  s_ids, s_sizes = np.unique(s, return_counts=True)
  t_ids, t_sizes = np.unique(t, return_counts=True)
  both = (s != 0) & (t != 0)
  pair = np.searchsorted(t_ids, t[both]) * len(s_ids) + np.searchsorted(s_ids, s[both])
  pair, joint = np.unique(pair, return_counts=True)
  j, i = np.divmod(pair, max(len(s_ids), 1))
  iou = joint / (s_sizes[i] + t_sizes[j] - joint)
  objects = np.count_nonzero(s_ids), np.count_nonzero(t_ids)
  rows = []
  for threshold in thresholds:
    reached = iou >= threshold
    matched = _one_to_one(i[reached], j[reached], iou[reached])
    rows.append((len(matched), objects[0] - len(matched), objects[1] - len(matched), matched.sum()))
  return np.array(rows, np.float64).reshape(len(thresholds), 4)


def instance_scores(
  counts: np.ndarray, *, thresholds: Sequence[float] = THRESHOLDS
) -> dict[str, dict[str, Any]]:
  """Divides counts of matches, at each threshold of IoU.

      average_precision = TP / (TP + FP + FN)        f1 = 2 TP / (2 TP + FP + FN)
      precision = TP / (TP + FP)                     recall = TP / (TP + FN)
      mean_iou = sum IoU / TP                        panoptic_quality = mean_iou * f1

  Panoptic quality is that of Kirillov et al. (2019) at threshold 0.5, for one class.

  Args:
    counts: [thresholds, 4] from `count_matches`, of one image or summed.
    thresholds: those of the counts.

  Returns:
    {'0.5': {'average_precision', 'precision', 'recall', 'f1', 'mean_iou', 'panoptic_quality', 'tp',
    'fp', 'fn'}, ...}; what has no denominator is None.
  """
  result = {}
  for threshold, (tp, fp, fn, total_iou) in zip(thresholds, counts.tolist(), strict=True):
    result[f'{threshold:g}'] = {
      'average_precision': _ratio(tp, tp + fp + fn),
      'precision': _ratio(tp, tp + fp),
      'recall': _ratio(tp, tp + fn),
      'f1': _ratio(2 * tp, 2 * tp + fp + fn),
      'mean_iou': _ratio(total_iou, tp),
      'panoptic_quality': _ratio(2 * total_iou, 2 * tp + fp + fn),
      'tp': int(tp),
      'fp': int(fp),
      'fn': int(fn),
    }
  return result


def _one_to_one(i: np.ndarray, j: np.ndarray, iou: np.ndarray) -> np.ndarray:
  """IoU of the pairs (i, j) that are kept when no object may have two partners."""
  if not iou.size:
    return iou
  alone = (np.bincount(i)[i] == 1) & (np.bincount(j)[j] == 1)
  rivals = ~alone
  if not rivals.any():
    return iou
  _, row = np.unique(j[rivals], return_inverse=True)
  _, column = np.unique(i[rivals], return_inverse=True)
  gain = np.zeros((row.max() + 1, column.max() + 1))
  # All IoU together stay below one match, so that the number of matches comes first.
  gain[row, column] = 1 + iou[rivals] / (2 * min(gain.shape))
  chosen = np.zeros(gain.shape, bool)
  chosen[optimize.linear_sum_assignment(gain, maximize=True)] = True
  return np.concatenate([iou[alone], iou[rivals][chosen[row, column]]])


def _ratio(numerator: float, denominator: float) -> float | None:
  return numerator / denominator if denominator else None
