"""Losses voxel by voxel: cross entropy, its one-vs-all, focal and hard-example forms.

Each is a weighted mean of one value per voxel (or per voxel and class) and takes logits
[B, *spatial, K], labels and weights as `common` describes.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from emseg_jax.losses.common import label_weights, power, prepare

__all__ = ['binary_cross_entropy', 'cross_entropy', 'focal', 'ohem_cross_entropy']


def cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  normalise: Literal['weight', 'voxels'] = 'weight',
) -> jax.Array:
  """Mean cross entropy (PmcaNet eq. 9, as a mean over voxels instead of a sum).

      L = -sum(w log p_label) / sum(w)

  Args:
    logits: [B, *spatial, K].
    labels: [B, *spatial] integer.
    weights: [B, *spatial], or [B, *spatial, K], of which a voxel takes that of its label.
    normalise: what the sum is divided by: the sum of the weights, or the number of voxels with a
      positive weight (as Keras does with sample weights).

  Returns:
    Scalar in nats; 0 if all weights are 0.

  Raises:
    ValueError: `normalise` is neither.
  """
  z, g, w = prepare(logits, labels, weights)
  return _mean(-_log_p_label(z, g), label_weights(g, w), normalise)


def binary_cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  normalise: Literal['weight', 'voxels'] = 'weight',
) -> jax.Array:
  """Mean cross entropy of one sigmoid per class against all other classes (SegET eq. 2).

      L = sum(w (max(z, 0) - z g + log(1 + e^-|z|))) / sum(w)

  The sums run over voxels and classes. One output is the foreground's: it has one summand per
  voxel, with the weight of the voxel's label.

  Args:
    logits: z [B, *spatial, K].
    labels: [B, *spatial] integer.
    weights: [B, *spatial], or [B, *spatial, K] (K = 2 for one output).
    normalise: as in `cross_entropy`; 'voxels' counts the summands with a positive weight.

  Returns:
    Scalar in nats; 0 if all weights are 0.

  Raises:
    ValueError: `normalise` is neither.
  """
  z, g, w = prepare(logits, labels, weights)
  if logits.shape[-1] == 1:
    z, g, w = z[..., 1:], g[..., 1:], label_weights(g, w)[..., None]
  # log(1 + e^z) for g = 0 and log(1 + e^-z) for g = 1: the equation without its cancellation.
  return _mean(jax.nn.softplus((1.0 - 2.0 * g) * z), w, normalise)


def focal(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  gamma: float = 2.0,
  alpha: Sequence[float] | None = None,
) -> jax.Array:
  """Focal loss on softmax classes (Lin et al. 2017, eq. 5).

      L = -sum(w alpha_label (1 - p_label)^gamma log p_label) / sum(w)

  Args:
    logits: [B, *spatial, K].
    labels: [B, *spatial] integer.
    weights: [B, *spatial], or [B, *spatial, K], of which a voxel takes that of its label.
    gamma: how much less sure voxels count; 0 is cross entropy.
    alpha: one factor per class (two for one sigmoid output: background, foreground); None: 1.

  Returns:
    Scalar; 0 if all weights are 0.

  Raises:
    ValueError: `gamma` is negative or `alpha` does not have K entries.
  """
  if not gamma >= 0:
    raise ValueError(f'gamma is {gamma}, must be 0 or more')
  z, g, w = prepare(logits, labels, weights)
  log_p = _log_p_label(z, g)
  values = -power(-jnp.expm1(log_p), gamma) * log_p
  if alpha is not None:
    if len(alpha) != z.shape[-1]:
      raise ValueError(f'alpha is {alpha}, must have {z.shape[-1]} entries, one per class')
    values *= jnp.matmul(g, jnp.asarray(alpha, jnp.float32), precision='highest')
  return _mean(values, label_weights(g, w), 'weight')


def ohem_cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  threshold: float = 0.9,
  min_kept: float = 131072,
) -> jax.Array:
  """Mean cross entropy of the hard voxels of the batch (PIDNet's online hard example mining).

      kept: p_label < max(threshold, p_(m)),    L = -sum_kept(w log p_label) / sum_kept(w)

  p_(0) <= p_(1) <= ... are the sorted p_label of the voxels with a positive weight, n in number,
  and m = min(min_kept, n - 1): as in PIDNet's criterion the easiest of a few voxels is left out.

  Args:
    logits: [B, *spatial, K].
    labels: [B, *spatial] integer.
    weights: [B, *spatial], or [B, *spatial, K], of which a voxel takes that of its label.
    threshold: p_label from which a voxel is easy.
    min_kept: how many voxels are kept even if they are easy; below 1 a share of n.

  Returns:
    Scalar in nats; 0 if no voxel is kept.

  Raises:
    ValueError: `threshold` is not in (0, 1], or `min_kept` is negative.
  """
  if not 0 < threshold <= 1:
    raise ValueError(f'threshold is {threshold}, must be above 0 and at most 1')
  if not min_kept >= 0:
    raise ValueError(f'min_kept is {min_kept}, must be 0 or more')
  z, g, w = prepare(logits, labels, weights)
  w, log_p = label_weights(g, w), _log_p_label(z, g)
  p = jnp.exp(jax.lax.stop_gradient(log_p))  # choosing voxels has no gradient
  n = jnp.sum(w > 0)
  hardest_first = jnp.sort(jnp.where(w > 0, p, jnp.inf), axis=None)
  m = min(int(min_kept), p.size) if min_kept >= 1 else jnp.floor(min_kept * n).astype(jnp.int32)
  limit = jnp.maximum(threshold, hardest_first[jnp.clip(m, 0, jnp.maximum(n - 1, 0))])
  return _mean(-log_p, jnp.where(p < limit, w, 0.0), 'weight')


def _log_p_label(z: jax.Array, g: jax.Array) -> jax.Array:
  """Log probability [...] of the label of every voxel; 0 where it is none of the classes."""
  # A product with the one-hot labels, since the gradient of a gather is a scatter, which is slow.
  return jnp.sum(g * jax.nn.log_softmax(z, axis=-1), axis=-1)


def _mean(values: jax.Array, w: jax.Array, normalise: str) -> jax.Array:
  """Weighted mean of `values`; `w` has their shape, or 1 as its last axis."""
  if normalise not in ('weight', 'voxels'):
    raise ValueError(f'normalise is {normalise!r}, must be weight or voxels')
  w = jnp.broadcast_to(w, values.shape)
  total = jnp.sum(w) if normalise == 'weight' else jnp.sum(w > 0)
  return jnp.sum(w * values) / jnp.where(total > 0, total, 1)
