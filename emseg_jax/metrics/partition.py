"""Scores of one partition of an image against another: which pixels belong together, not how
regions are called.

Every score follows from one contingency table of two label images of the same shape, 2D or 3D.
Symbols of Arganda-Carreras et al. (2015, doi:10.3389/fnana.2015.00142): p_ij is the share of the
counted pixels that lie in region i of the prediction S and in region j of the truth T;
s_i = sum_j p_ij and t_j = sum_i p_ij are the sizes of the regions.

These scores do not add up over images: compute them per section (or once per volume), then average.
A score without a denominator is None, JSON null.
"""

from typing import NamedTuple

import numpy as np

__all__ = [
  'Contingency',
  'adapted_rand',
  'contingency',
  'v_info',
  'v_rand',
  'variation_of_information',
]


class Contingency(NamedTuple):
  """Non-zero sizes in pixels, int64; the scores need no more than these of a sparse table.

  Attributes:
    joint: [pairs of regions that overlap], n p_ij.
    predicted: [regions of the prediction], n s_i.
    truth: [regions of the truth], n t_j.
  """

  joint: np.ndarray
  predicted: np.ndarray
  truth: np.ndarray


def contingency(
  predicted: np.ndarray,
  truth: np.ndarray,
  *,
  ignored: np.ndarray | None = None,
  foreground_only: bool = False,
  background_as_singletons: bool = False,
) -> Contingency:
  """Counts the pixels that each region of one label image shares with each of the other.

  Args:
    predicted: [...] integer region of every pixel, any values.
    truth: [...] likewise.
    ignored: [...] bool, True where a pixel does not count; None counts all.
    foreground_only: pixels of true label 0 do not count.
    background_as_singletons: every pixel of predicted label 0 is a region of its own; otherwise
      label 0 is a region like the others.

  Raises:
    ValueError: the shapes differ.
  """
  if not predicted.shape == truth.shape == (truth if ignored is None else ignored).shape:
    raise ValueError(
      f'predicted {predicted.shape}, truth {truth.shape} and ignored must have one shape'
    )
  counted = np.ones(truth.shape, bool) if ignored is None else ~ignored
  if foreground_only:
    counted &= truth != 0
  s, t = predicted[counted], truth[counted]
  single = s == 0 if background_as_singletons else np.zeros(s.shape, bool)
  ones = np.ones(np.count_nonzero(single), np.int64)
  # Ids may be any integers: consecutive ones first, so that a pair fits into one int64.
  _, s, s_sizes = np.unique(s[~single], return_inverse=True, return_counts=True)
  _, t, t_sizes = np.unique(t, return_inverse=True, return_counts=True)
  _, joint = np.unique(t[~single] * len(s_sizes) + s, return_counts=True)
  return Contingency(
    joint=np.concatenate([joint, ones]),
    predicted=np.concatenate([s_sizes, ones]),
    truth=t_sizes,
  )


def v_rand(table: Contingency, *, distinct_pairs: bool = False) -> dict[str, float | None]:
  """Rand F-score with its split and merge parts (Arganda-Carreras et al., eq. 3, alpha 0.5).

      V = sum_ij p_ij² / (0.5 sum_i s_i² + 0.5 sum_j t_j²)
      split = sum p_ij² / sum t_j²        merge = sum p_ij² / sum s_i²

  `split` falls when true regions are split, `merge` when they are merged; V is their harmonic mean.

  Args:
    table: what `contingency` returns.
    distinct_pairs: leave out the pairs of a pixel with itself, as the adapted Rand error of SNEMI3D
      and scikit-image does; the paper and its Fiji script count them.

  Returns:
    {'v_rand', 'split', 'merge'}, 1 is best; all None without a pair to count.
  """
  joint, predicted, truth = (_pairs(sizes, distinct_pairs) for sizes in table)
  return {
    'v_rand': _ratio(2 * joint, predicted + truth),
    'split': _ratio(joint, truth),
    'merge': _ratio(joint, predicted),
  }


def adapted_rand(table: Contingency) -> dict[str, float | None]:
  """Adapted Rand error of SNEMI3D: 1 - V over pairs of distinct pixels, 0 is best.

  A table with `foreground_only=True` is scikit-image's `ignore_labels=(0,)`. The error is that of
  scikit-image; its precision and recall are each other's (scikit-image issue 6485), here they are
  what both documentations say.

  Returns:
    {'error', 'precision' (the merge part), 'recall' (the split part)}.
  """
  parts = v_rand(table, distinct_pairs=True)
  score = parts['v_rand']
  return {
    'error': None if score is None else 1 - score,
    'precision': parts['merge'],
    'recall': parts['split'],
  }


def variation_of_information(table: Contingency) -> dict[str, float | None]:
  """Conditional entropies in bits (Meila 2007); as `skimage.metrics`, 0 is best.

      split = H(S|T)        merge = H(T|S)        variation_of_information = their sum

  Returns:
    {'variation_of_information', 'split', 'merge'}; all None without a counted pixel.
  """
  if not table.joint.size:
    return dict.fromkeys(('variation_of_information', 'split', 'merge'))
  joint, predicted, truth = (_entropy(sizes) for sizes in table)
  # Rounding may leave -1e-16 where the entropy is 0.
  split, merge = max(joint - truth, 0.0), max(joint - predicted, 0.0)
  return {'variation_of_information': split + merge, 'split': split, 'merge': merge}


def v_info(table: Contingency) -> dict[str, float | None]:
  """Information-theoretic F-score with its split and merge parts (Arganda-Carreras et al., eq. 6).

      V = I(S;T) / (0.5 H(S) + 0.5 H(T))
      split = I(S;T) / H(S)              merge = I(S;T) / H(T)

  With VI the variation of information, V = 1 - VI / (H(S) + H(T)).

  Returns:
    {'v_info', 'split', 'merge'}, 1 is best; None where the entropy in the denominator is 0: of one
    region, or without a counted pixel.
  """
  if not table.joint.size:
    return dict.fromkeys(('v_info', 'split', 'merge'))
  joint, predicted, truth = (_entropy(sizes) for sizes in table)
  information = max(predicted + truth - joint, 0.0)
  return {
    'v_info': _ratio(2 * information, predicted + truth),
    'split': _ratio(information, predicted),
    'merge': _ratio(information, truth),
  }


def _pairs(sizes: np.ndarray, distinct: bool) -> float:
  """Ordered pairs of pixels in the same region; float64, since n² overflows int64 for volumes."""
  sizes = sizes.astype(np.float64)
  return float(sizes @ (sizes - 1 if distinct else sizes))


def _entropy(sizes: np.ndarray) -> float:
  """In bits; sizes are positive, so that no 0 log 0 occurs."""
  share = sizes / sizes.sum()
  return float(max(-(share @ np.log2(share)), 0.0))


def _ratio(numerator: float, denominator: float) -> float | None:
  return numerator / denominator if denominator else None
