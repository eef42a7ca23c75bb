"""Scores of probabilities, before any class is chosen.

Built on one float64 array of sums per image, which add up over images and are divided once. Inputs
are whatever shape an image has: probabilities [*S, K], labels [*S] with 255 where a voxel is not
scored; probabilities may be NaN there.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emseg_jax.data.pairs import IGNORED

__all__ = ['soft_scores', 'soft_sums']

# Voxels go to the device in chunks of one shape, so that one program serves all image sizes. Each
# group is summed in float32, the groups in float64.
GROUPS, GROUP_SIZE = 64, 4096
SMALLEST = 1e-7  # probability under the logarithm, as in Keras: a sure mistake costs 16, not inf
SMOOTHING = 1.0  # s of the Tanimoto coefficient


def soft_sums(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """The sums that `soft_scores` divides, over the voxels that are scored.

  Args:
    probabilities: [*S, K] float.
    labels: [*S] integer class indices, 255 where not scored.

  Returns:
    [7, K] float64, add them over images. With y the one-hot label and q = 1 where p > 0.5: the sums
    of y, p, p^2, p y, -log(p) y, q, q y.

  Raises:
    ValueError: the shapes do not belong together.
  """
  if probabilities.shape[:-1] != labels.shape:
    raise ValueError(f'probabilities {probabilities.shape} do not fit labels {labels.shape}')
  num_classes = probabilities.shape[-1]
  p, label = probabilities.reshape(-1, num_classes), labels.ravel()
  total = np.zeros((7, num_classes), np.float64)
  size = GROUPS * GROUP_SIZE
  for start in range(0, len(label), size):
    chunk = slice(start, start + size)
    counted = label[chunk] != IGNORED
    count = np.count_nonzero(counted)
    if not count:
      continue
    chunk_p = np.zeros((size, num_classes), np.float32)
    chunk_label = np.full(size, IGNORED, np.int32)
    chunk_p[:count], chunk_label[:count] = p[chunk][counted], label[chunk][counted]
    sums = _group_sums(
      chunk_p.reshape(GROUPS, GROUP_SIZE, num_classes), chunk_label.reshape(GROUPS, GROUP_SIZE)
    )
    total += np.asarray(sums, np.float64).sum(axis=1)
  return total


@jax.jit
def _group_sums(p: jax.Array, labels: jax.Array) -> jax.Array:
  """[groups, voxels, K] and [groups, voxels] -> [7, groups, K] float32; padding has p = 0."""
  y = jax.nn.one_hot(labels, p.shape[-1])  # 0 for IGNORED, as there are at most 255 classes
  q = (p > 0.5).astype(jnp.float32)
  terms = (y, p, p * p, p * y, -jnp.log(jnp.maximum(p, SMALLEST)) * y, q, q * y)
  return jnp.stack([jnp.sum(t, axis=1) for t in terms])


def soft_scores(sums: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
  """Cross entropy, soft Dice, Tanimoto, and micro scores of `p > 0.5`.

      cross entropy = mean of -log p_label, natural logarithm
      Dice_k        = 2 sum(p y) / (sum(p) + sum(y)); `dice`: the sums run over the classes as well
      T(p, y)       = (sum(p y) + 1) / (sum(p^2 + y^2 - p y) + 1)
      tanimoto      = (T(p, y) + T(1 - p, 1 - y)) / 2, sums over voxels and classes together

  Res-CR-Net's Tables 1 and 2 print `dice`, `tanimoto` and, as Jaccard, precision, recall and F1,
  `micro`: TP, FP and FN of p > 0.5 over voxels, classes and images. p > 0.5 is not the largest p:
  a voxel may have no class, which is one FN and no FP.

  Args:
    sums: [7, K] of `soft_sums`.
    classes: K names.

  Returns:
    {'cross_entropy', 'dice', 'tanimoto', 'micro': {'iou', 'precision', 'recall', 'f1'},
    'per_class': {name: {'dice'}}}; None without a denominator.

  Raises:
    ValueError: the sums are not those of K classes.
  """
  if sums.shape != (7, len(classes)):
    raise ValueError(f'sums of shape {sums.shape} for {len(classes)} classes, must be (7, K)')
  y, p, py = sums[[0, 1, 3]]
  Y, P, P2, PY, surprise, Q, hits = sums.sum(axis=1)
  voxels = Y  # every scored voxel has one label
  inside = (PY + SMOOTHING) / (P2 + Y - PY + SMOOTHING)
  # With N = voxels * K summands, 1 - p and 1 - y give
  # sum((1-p)(1-y)) = N - P - Y + PY and sum((1-p)^2) = N - 2P + P2, and y^2 = y.
  both = voxels * len(classes) - P - Y + PY
  either = (voxels * len(classes) - 2 * P + P2) + (voxels * len(classes) - Y) - both
  outside = (both + SMOOTHING) / (either + SMOOTHING)
  return {
    'cross_entropy': _ratio(surprise, voxels),
    'dice': _ratio(2 * PY, P + Y),
    'tanimoto': float(inside + outside) / 2 if voxels else None,
    'micro': {
      'iou': _ratio(hits, Q + Y - hits),
      'precision': _ratio(hits, Q),
      'recall': _ratio(hits, Y),
      'f1': _ratio(2 * hits, Q + Y),
    },
    'per_class': {name: {'dice': _ratio(2 * py[k], p[k] + y[k])} for k, name in enumerate(classes)},
  }


def _ratio(numerator: float, denominator: float) -> float | None:
  return float(numerator / denominator) if denominator else None
