"""What all losses on logits share: float32, one-hot labels, and voxels that do not count.

Weights are [B, *spatial], or [B, *spatial, K] where each class has weights of its own. Weight 0
means "ignore this voxel": its label may be any value and its logits may even be NaN, neither the
loss nor its gradient with respect to the logits sees them. Labels under a positive weight must be
in 0..K-1; reading the data checks that.

K = 1 means one sigmoid output; it is treated as two classes with logits [0, z].
"""

import jax
import jax.numpy as jnp

__all__ = [
  'as_class_logits',
  'ignored_as_zero',
  'label_weights',
  'mean_over_images',
  'power',
  'prepare',
  'sum_axes',
]


def as_class_logits(logits: jax.Array) -> jax.Array:
  """Logits of two softmax classes where the network gives one sigmoid output; others unchanged.

  softmax([0, z])[1] = 1 / (1 + e^-z) = sigmoid(z), so one formula serves both activations.

  Args:
    logits: [..., K].

  Returns:
    [..., 2] if K is 1, else `logits` itself.
  """
  if logits.shape[-1] != 1:
    return logits
  return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)


def prepare(
  logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What losses are computed from, in float32 whatever dtype the network ran in.

  Args:
    logits: [B, *spatial, K]; K = 1 is made two classes.
    labels: [B, *spatial] integer.
    weights: [B, *spatial], or [B, *spatial, K] (K = 2 for one sigmoid output).

  Returns:
    Class logits [B, *spatial, K], 0 where no class has a weight; one-hot labels of the same shape;
    weights [B, *spatial, 1], or [B, *spatial, K].

  Raises:
    ValueError: the shapes do not belong together.
  """
  z = as_class_logits(logits.astype(jnp.float32))
  if weights.ndim == labels.ndim:
    weights = weights[..., None]
  fits = logits.shape[:-1] == labels.shape == weights.shape[:-1]
  if not fits or weights.shape[-1] not in (1, z.shape[-1]):
    raise ValueError(
      f'logits {logits.shape} without the last axis, labels {labels.shape} and weights '
      f'{weights.shape[:-1]} must have one shape'
    )
  w = jnp.where(weights > 0, weights, 0.0).astype(jnp.float32)
  g = jax.nn.one_hot(labels, z.shape[-1], dtype=jnp.float32)
  return ignored_as_zero(z, w), g, w


def ignored_as_zero(z: jax.Array, weights: jax.Array) -> jax.Array:
  """`z` [..., C], 0 where all `weights` [..., 1 or C] are 0.

  Masking the input, not the loss, is what keeps a NaN out of the gradient.
  """
  return jnp.where(jnp.any(weights > 0, axis=-1, keepdims=True), z, 0.0)


def label_weights(g: jax.Array, weights: jax.Array) -> jax.Array:
  """The weight of every voxel for losses with one summand per voxel: that of its own class.

  Args:
    g: one-hot labels [..., K].
    weights: [..., 1], or [..., K].

  Returns:
    [...].
  """
  return jnp.sum(weights * g, axis=-1)


def power(x: jax.Array, exponent: float) -> jax.Array:
  """x^exponent for x > 0, else 0 with gradient 0.

  At x = 0 the gradient of an exponent below 1 is infinite, and times the 0 that reached x a NaN.
  """
  positive = x > 0
  return jnp.where(positive, jnp.where(positive, x, 1.0) ** exponent, 0.0)


def sum_axes(w: jax.Array, *, over: str) -> tuple[int, ...]:
  """The axes of [B, *spatial, C] that a loss sums over: those of an 'image', or of the 'batch'.

  Raises:
    ValueError: `over` is neither.
  """
  if over not in ('image', 'batch'):
    raise ValueError(f'over is {over!r}, must be image or batch')
  return tuple(range(1 if over == 'image' else 0, w.ndim - 1))


def mean_over_images(values: jax.Array, weights: jax.Array) -> jax.Array:
  """Mean of `values` [B] over the images that have a positive weight [B, ...]; 0 without any.

  Images without (the padding of a last batch) are left out. A single value [] of the whole batch is
  returned unless there is no positive weight at all.
  """
  axes = tuple(range(values.ndim, weights.ndim))
  counted = jnp.any(weights > 0, axis=axes)
  return jnp.sum(jnp.where(counted, values, 0.0)) / jnp.maximum(jnp.sum(counted), 1)
