"""Voxel weights made from the labels of a batch, for single loss terms.

A rule takes labels [B, *spatial] and weights [B, *spatial] and returns the weights multiplied by
its own: [B, *spatial], or [B, *spatial, K] where each class gets weights of its own. Weight 0 stays
0, and such voxels have no part in counts, means and sums. "Over the batch" means all of it, however
many devices share it. One sigmoid output counts as two classes.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from emseg_jax import config as config_lib

__all__ = [
  'WEIGHTINGS',
  'adaptive_weights',
  'apply_weighting',
  'class_weights',
  'contour_weights',
  'volume_contour_weights',
  'volume_weights',
]

# Res-CR-Net's window of a mean: the smallest of these sides that the image's short side fits in.
WINDOWS = {150: 11, 300: 21, 600: 31}
LARGEST_WINDOW = 41
CONTOUR = (0.005, 0.995)  # a mean between these has both inside and outside in its window


def class_weights(
  labels: jax.Array,
  weights: jax.Array,
  *,
  num_classes: int,
  class_counts: jax.Array | None = None,
  values: Sequence[float] | str = 'auto',
) -> jax.Array:
  """One factor per class, that of the voxel's label.

  'auto' balances the classes by the median of their frequencies (Eigen and Fergus 2015, with all
  training labels taken as one image):

      v_c = median(n over the classes that occur) / n_c

  A class that does not occur gets 1.

  Args:
    labels: [B, *spatial] integer.
    weights: [B, *spatial].
    num_classes: K.
    class_counts: n_c [K], voxels per class in the training labels; for 'auto' only.
    values: v_c per class, 0 or more, or 'auto'.

  Returns:
    [B, *spatial].

  Raises:
    ValueError: `values` are not K numbers of 0 or more, or 'auto' has no counts.
  """
  if isinstance(values, str):
    if values != 'auto':
      raise ValueError(f"values is {values!r}, must be 'auto' or one number per class")
    if class_counts is None:
      raise ValueError("values='auto' needs the voxels per class of the training labels")
    factors = _median_frequency(jnp.asarray(class_counts, jnp.float32))
  else:
    if len(values) != num_classes or not all(0 <= v < float('inf') for v in values):
      raise ValueError(f'values is {values}, must be {num_classes} numbers of 0 or more')
    factors = jnp.asarray(values, jnp.float32)
  return _positive(weights) * jnp.take(factors, labels, mode='clip')


def _median_frequency(counts: jax.Array) -> jax.Array:
  occurs = counts > 0
  median = jnp.nanmedian(jnp.where(occurs, counts, jnp.nan))
  return jnp.where(occurs, median / jnp.maximum(counts, 1.0), 1.0)


def adaptive_weights(
  labels: jax.Array, weights: jax.Array, *, num_classes: int, cap: float | None = None
) -> jax.Array:
  """Background over foreground of the patch on its foreground, 1 on its background (SegET).

      w = min(background voxels / foreground voxels, cap) where the label is not 0, else 1

  A patch without foreground has weight 1 everywhere, and so has one without background, of which
  the equation would leave nothing.

  Args:
    labels: [B, *spatial] integer.
    weights: [B, *spatial].
    num_classes: not used.
    cap: the largest weight; None: no limit.

  Returns:
    [B, *spatial].

  Raises:
    ValueError: `cap` is not positive.
  """
  del num_classes
  if cap is not None and not cap > 0:
    raise ValueError(f'cap is {cap}, must be above 0')
  axes = tuple(range(1, labels.ndim))
  valid, foreground = weights > 0, labels > 0
  inside = jnp.sum(valid & foreground, axis=axes, keepdims=True)
  outside = jnp.sum(valid & ~foreground, axis=axes, keepdims=True)
  ratio = outside / jnp.maximum(inside, 1)
  if cap is not None:
    ratio = jnp.minimum(ratio, cap)
  both = (inside > 0) & (outside > 0)
  return _positive(weights) * jnp.where(both & foreground, ratio, 1.0)


def contour_weights(labels: jax.Array, weights: jax.Array, *, num_classes: int) -> jax.Array:
  """More weight near the contour of each class (Res-CR-Net's code, W_MODE 'contour').

      a_c = mean over k x k pixels of [label = c]
      b_c = [0.005 < a_c < 0.995]
      w_c = ((1 + 2 b_c)·N / sum(1 + 2 b))^2

  The sum runs over the N pairs of voxel and class in the batch. k is 11, 21, 31 or 41 for images
  with a short side of up to 150, 300, 600 or more pixels. What lies outside the image is left out
  of the mean. The window lies in the last two axes: sections of a volume are taken one by one.

  Args:
    labels: [B, *spatial] integer.
    weights: [B, *spatial].
    num_classes: K.

  Returns:
    [B, *spatial, K].
  """
  return _emphasised(jnp.ones(num_classes), labels, weights)


def volume_weights(labels: jax.Array, weights: jax.Array, *, num_classes: int) -> jax.Array:
  """More weight for small classes (Res-CR-Net's code, W_MODE 'volume').

      v_c = 1 / V_c^2
      w_c = v_c·sum(v) / sum(v^2)

  V_c is the number of voxels of class c in the batch. A class that is not in it gets the largest
  weight of those that are.

  Args:
    labels: [B, *spatial] integer.
    weights: [B, *spatial].
    num_classes: K.

  Returns:
    [B, *spatial, K], the same at all voxels of one weight.
  """
  v = _volume(labels, weights, num_classes)
  return _positive(weights)[..., None] * jnp.expand_dims(v, range(labels.ndim))


def volume_contour_weights(labels: jax.Array, weights: jax.Array, *, num_classes: int) -> jax.Array:
  """Both of the above (Res-CR-Net's code, W_MODE 'both').

      w_c = ((u_c + 2 b_c)·sum(u) / sum(u + 2 b))^2

  u_c are the weights of `volume_weights` and b_c as in `contour_weights`.

  Args:
    labels: [B, *spatial] integer.
    weights: [B, *spatial].
    num_classes: K.

  Returns:
    [B, *spatial, K].
  """
  return _emphasised(_volume(labels, weights, num_classes), labels, weights)


def _positive(weights: jax.Array) -> jax.Array:
  return jnp.where(weights > 0, weights, 0.0).astype(jnp.float32)


def _members(labels: jax.Array, weights: jax.Array, num_classes: int) -> jax.Array:
  """Which voxels of positive weight are of which class: bool [B, *spatial, K]."""
  return jax.nn.one_hot(labels, num_classes, dtype=bool) & (weights > 0)[..., None]


def _volume(labels: jax.Array, weights: jax.Array, num_classes: int) -> jax.Array:
  """`volume_weights` of a voxel of weight 1, [K]."""
  volume = jnp.sum(_members(labels, weights, num_classes), axis=range(labels.ndim))
  occurs = volume > 0
  smallest = jnp.min(volume, initial=jnp.iinfo(volume.dtype).max, where=occurs)
  # A common factor of v cancels; this one keeps the squares in range.
  v = jnp.where(occurs, (smallest / jnp.maximum(volume, 1)) ** 2, 1.0)
  return v * jnp.sum(v) / jnp.sum(v**2)


def _emphasised(base: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
  """Weights [B, *spatial, K] of `base` [K] plus twice the border, scaled and squared."""
  border = _border(labels, weights, base.size)
  valid = (weights > 0)[..., None]
  # Counts are exact, unlike sums of millions of weights.
  before = jnp.sum(valid) * jnp.sum(base)
  after = before + 2.0 * jnp.sum(border & valid)
  scale = before / jnp.where(after > 0, after, 1.0)
  w = jnp.expand_dims(base, range(labels.ndim)) + jnp.where(border, 2.0, 0.0)
  return _positive(weights)[..., None] * (w * scale) ** 2


def _border(labels: jax.Array, weights: jax.Array, num_classes: int) -> jax.Array:
  """b_c of `contour_weights`, bool [B, *spatial, K]."""
  short_side = min(labels.shape[-2:])
  window = next((k for side, k in WINDOWS.items() if short_side <= side), LARGEST_WINDOW)
  inside = _window_sum(_members(labels, weights, num_classes), window)
  mean = inside / jnp.maximum(_window_sum((weights > 0)[..., None], window), 1.0)
  low, high = CONTOUR
  return (low < mean) & (mean < high)


def _window_sum(x: jax.Array, window: int) -> jax.Array:
  """How often x [B, *spatial, C] is true in windows in the last two spatial axes, float32."""
  x = x.astype(jnp.float32)
  for axis in (-3, -2):  # two short windows cost less than a square one
    size = [1] * x.ndim
    size[axis] = window
    x = jax.lax.reduce_window(x, 0.0, jax.lax.add, size, [1] * x.ndim, 'SAME')
  return x


WEIGHTINGS: Mapping[str, Callable[..., jax.Array]] = {
  'class': class_weights,
  'adaptive': adaptive_weights,
  'contour': contour_weights,
  'volume': volume_weights,
  'volume_contour': volume_contour_weights,
}


def apply_weighting(
  weighting: config_lib.Weighting,
  labels: jax.Array,
  weights: jax.Array,
  *,
  num_classes: int,
  class_counts: jax.Array | None = None,
) -> jax.Array:
  """Applies the rule that a loss term names.

  Args:
    weighting: the section of the configuration.
    labels: [B, *spatial] integer.
    weights: [B, *spatial].
    num_classes: K.
    class_counts: voxels per class in the training labels [K], where the rule needs them.

  Returns:
    [B, *spatial] or [B, *spatial, K].
  """
  extra = {'class_counts': class_counts} if weighting.name == 'class' else {}
  rule = WEIGHTINGS[weighting.name]
  return rule(labels, weights, num_classes=num_classes, **extra, **weighting.options)
