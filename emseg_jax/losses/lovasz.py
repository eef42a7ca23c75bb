"""Lovász-Softmax: a convex surrogate of one minus the Jaccard index of hard predictions.

Takes logits [B, *spatial, K], labels and weights as `common` describes.
"""

import jax
import jax.numpy as jnp

from emseg_jax.losses.common import mean_over_images, prepare, sum_axes

__all__ = ['lovasz_softmax']


def lovasz_softmax(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  include_background: bool = True,
  over: str = 'batch',
) -> jax.Array:
  """Lovász extension of the Jaccard loss, mean over the classes present (Berman et al. 2018).

      e_i = |g_i - p_i|,  sorted: e_1 >= e_2 >= ...
      L_k = sum_i e_i (J_i - J_(i-1)),  J_i = 1 - |G \\ {1..i}| / |G ∪ {1..i}|

  G are the voxels of class k. A voxel of weight w counts w times, so that weight 0 is ignored.

  Args:
    logits: [B, *spatial, K].
    labels: [B, *spatial] integer.
    weights: [B, *spatial] or [B, *spatial, K], 0 where a voxel must not count.
    include_background: whether class 0 is one of the classes averaged over.
    over: 'batch', or 'image' for sets of voxels of one image and a mean over images.

  Returns:
    Scalar in [0, 1]; 0 if no class is present: without its background, an image without foreground
    has no gradient.

  Raises:
    ValueError: `over` is neither.
  """
  z, g, w = prepare(logits, labels, weights)
  p = jax.nn.softmax(z, axis=-1)
  w = jnp.broadcast_to(w, p.shape)
  if not include_background:
    p, g, w = p[..., 1:], g[..., 1:], w[..., 1:]
  axes = sum_axes(w, over=over)

  def rows(a: jax.Array) -> jax.Array:
    """[B, *spatial, K] -> [B, K, voxels], or [K, voxels] over the batch."""
    a = jnp.moveaxis(a, -1, axes[0])
    return a.reshape(*a.shape[: axes[0] + 1], -1)

  errors = jnp.where(w > 0, jnp.abs(g - p), 0.0)  # ignored voxels come last, whatever their labels
  per_class, present = _jaccard_extension(rows(errors), rows(g), rows(w))
  number = jnp.maximum(jnp.sum(present, axis=-1), 1)
  return mean_over_images(jnp.sum(per_class, axis=-1) / number, w)


def _jaccard_extension(
  errors: jax.Array, g: jax.Array, w: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Lovász extension of the Jaccard loss of a set, and whether it has any voxel.

  Args:
    errors: [..., voxels].
    g: [..., voxels], 1 in the set, else 0.
    w: [..., voxels] weights.

  Returns:
    Extension [...], 0 for an empty set; bool [...].
  """
  order = jnp.argsort(-jax.lax.stop_gradient(errors), axis=-1)
  errors, g, w = (jnp.take_along_axis(a, order, axis=-1) for a in (errors, g, w))
  size = jnp.sum(w * g, axis=-1, keepdims=True)  # |G|
  present = size > 0
  size = jnp.where(present, size, 1.0)
  left = size - jnp.cumsum(w * g, axis=-1)  # |G \ {1..i}|
  union = size + jnp.cumsum(w * (1.0 - g), axis=-1)  # |G ∪ {1..i}|
  before = union - w * (1.0 - g)  # |G ∪ {1..i-1}|
  # J_i - J_(i-1), in closed form: the difference of two numbers near 1 would be mostly rounding.
  step = w * (g / union + (1.0 - g) * left / (union * before))
  present = present[..., 0]
  return jnp.where(present, jnp.sum(errors * step, axis=-1), 0.0), present
