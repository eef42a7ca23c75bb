"""Losses on maps other than class logits: proximity, boundaries, affinities.

Labels are [B, *spatial] integer, weights [B, *spatial], 0 where a voxel must not count: neither the
loss nor its gradient sees what the map or the target is there. Results are float32 scalars.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from emseg_jax.losses.cross_entropy import ohem_cross_entropy
from emseg_jax.losses.label_maps import affinities, boundary_map

__all__ = ['affinity_bce', 'boundary_bce', 'boundary_ce', 'mse']


def mse(
  prediction: jax.Array,
  target: jax.Array,
  weights: jax.Array,
  *,
  activation: Literal['sigmoid', 'none'] = 'sigmoid',
) -> jax.Array:
  """Mean squared error of a map (EM-Net's regression of the centreline's proximity).

      L = sum(w (a(z) - D)^2) / sum(w)

  Args:
    prediction: z [B, *spatial, 1].
    target: D [B, *spatial], in 0..1 where a is a sigmoid.
    weights: [B, *spatial].
    activation: a.

  Returns:
    Scalar; 0 if all weights are 0.

  Raises:
    ValueError: the shapes do not belong together, or `activation` is not one of the two.
  """
  if activation not in ('sigmoid', 'none'):
    raise ValueError(f'activation is {activation!r}, must be sigmoid or none')
  _check_shapes(prediction, target, weights, channels=1)
  w = _positive(weights)[..., None]
  z = _masked(prediction, w)
  value = jax.nn.sigmoid(z) if activation == 'sigmoid' else z
  return _mean(jnp.square(value - _masked(target[..., None], w)), w)


def boundary_bce(
  logits: jax.Array, labels: jax.Array, weights: jax.Array, *, width: int = 4
) -> jax.Array:
  """Cross entropy of the boundary between classes, balanced over the batch (PIDNet's criterion).

      L = sum(w v (-t ln p - (1 - t) ln(1 - p))) / sum(w),  v = 1 - s where t = 1, s where t = 0

  t is `boundary_map`, p its probability, s = sum(w t) / sum(w) the boundary's share of the batch.

  Args:
    logits: [B, *spatial, 1].
    labels: [B, *spatial] integer.
    weights: [B, *spatial].
    width: of the boundary in voxels.

  Returns:
    Scalar in nats; 0 without any boundary, or if all weights are 0.

  Raises:
    ValueError: the shapes do not belong together, or `width` is not a positive integer.
  """
  _check_shapes(logits, labels, weights, channels=1)
  w = _positive(weights)[..., None]
  t = boundary_map(labels, weights, width=width)[..., None]
  s = _mean(t, w)
  bce = optax.sigmoid_binary_cross_entropy(_masked(logits, w), t)
  return _mean(bce * jnp.where(t > 0, 1.0 - s, s), w)


def boundary_ce(
  logits: jax.Array,
  boundary: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  threshold: float = 0.8,
  ohem_threshold: float = 0.9,
  min_kept: float = 131072,
) -> jax.Array:
  """Cross entropy of hard voxels where the network sees a boundary (PIDNet's criterion).

  `ohem_cross_entropy` over the voxels with sigmoid(boundary) > threshold. That choice has no
  gradient.

  Args:
    logits: [B, *spatial, K].
    boundary: [B, *spatial, 1] logits.
    labels: [B, *spatial] integer.
    weights: [B, *spatial], or [B, *spatial, K].
    threshold: probability of a boundary, in 0..1.
    ohem_threshold: as `threshold` of `ohem_cross_entropy`.
    min_kept: as in `ohem_cross_entropy`.

  Returns:
    Scalar in nats; 0 if no voxel is taken.

  Raises:
    ValueError: the shapes do not belong together, or an option is out of range.
  """
  if not 0 <= threshold <= 1:
    raise ValueError(f'threshold is {threshold}, must be in 0..1')
  _check_shapes(boundary, labels, labels, channels=1)
  seen = jax.nn.sigmoid(boundary.astype(jnp.float32)) > threshold  # False where it is NaN
  if weights.ndim == labels.ndim:
    seen = seen[..., 0]
  return ohem_cross_entropy(
    logits,
    labels,
    jnp.where(seen, weights, 0.0),
    threshold=ohem_threshold,
    min_kept=min_kept,
  )


def affinity_bce(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  offsets: Sequence[Sequence[int]],
) -> jax.Array:
  """Mean cross entropy of affinities to neighbours, one sigmoid per offset.

      L = sum(w_o (-a ln p - (1 - a) ln(1 - p))) / sum(w_o)

  a and w_o are the two results of `affinities`; the sums run over voxels and offsets.

  Args:
    logits: [B, *spatial, A].
    labels: [B, *spatial] integer; 0 is background.
    weights: [B, *spatial].
    offsets: A offsets in voxels, each with one number per spatial axis.

  Returns:
    Scalar in nats; 0 if no pair counts.

  Raises:
    ValueError: the shapes do not belong together, or `offsets` are not A usable ones.
  """
  target, w = affinities(labels, weights, offsets=offsets)
  _check_shapes(logits, labels, weights, channels=len(offsets))
  return _mean(optax.sigmoid_binary_cross_entropy(_masked(logits, w), target), w)


def _check_shapes(z: jax.Array, target: jax.Array, weights: jax.Array, *, channels: int) -> None:
  if not z.shape[:-1] == target.shape == weights.shape or z.shape[-1] != channels:
    raise ValueError(
      f'the map {z.shape} must have {channels} channels, and without them the shape of target '
      f'{target.shape} and weights {weights.shape}'
    )


def _positive(weights: jax.Array) -> jax.Array:
  return jnp.where(weights > 0, weights, 0.0).astype(jnp.float32)


def _masked(z: jax.Array, w: jax.Array) -> jax.Array:
  """`z` in float32, 0 where `w` is 0: masking the input keeps a NaN out of the gradient."""
  return jnp.where(w > 0, z.astype(jnp.float32), 0.0)


def _mean(values: jax.Array, w: jax.Array) -> jax.Array:
  """Mean of `values` with weights `w` of the same shape."""
  total = jnp.sum(w)
  return jnp.sum(w * values) / jnp.where(total > 0, total, 1.0)
