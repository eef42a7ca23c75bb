"""SegViT's loss on the queries of its attention-to-mask decoders."""

import jax
import jax.numpy as jnp

from emseg_jax.losses.common import ignored_as_zero

__all__ = ['atm']

NO_OBJECT = 0.1  # weight of a query whose class is not in the image
ALPHA = 0.25  # share of the object in the focal loss
SMOOTH = 1.0


def atm(
  classes: jax.Array,
  masks: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  class_weight: float = 1.0,
  focal_weight: float = 20.0,
  dice_weight: float = 1.0,
) -> jax.Array:
  """Cross entropy of the queries' classes, focal loss and Dice of their masks (SegViT's code).

      L = sum over T of (class_weight CE + focal_weight focal + dice_weight Dice)

  Query k stands for class k, or for 'no object' in an image without that class. CE is the weighted
  mean over queries, with weight 0.1 for 'no object'. The other two are means over the queries of
  the batch whose class is in their image:

      focal = mean over voxels of -a (1 - q)^2 ln q, with q = p and a = 0.25 in the mask of the
              class, q = 1 - p and a = 0.75 outside, p = sigmoid(mask)
      Dice = 1 - (2 sum(p g) + 1) / (sum(p) + sum(g) + 1)

  Args:
    classes: [B, T, K, K + 1] logits, the last one of 'no object'. K = 1: the query is for label 1.
    masks: [B, T, *spatial, K] logits.
    labels: [B, *spatial] integer.
    weights: [B, *spatial], 0 where a voxel must not count.
    class_weight: factor of the cross entropy.
    focal_weight: factor of the focal loss.
    dice_weight: factor of Dice.

  Returns:
    Scalar, float32; 0 if all weights are 0. Images without any positive weight are left out.

  Raises:
    ValueError: the shapes do not belong together.
  """
  k = masks.shape[-1]
  image = (masks.shape[0], *masks.shape[2:-1])
  queries = (*masks.shape[:2], k, k + 1)
  if not image == labels.shape == weights.shape or classes.shape != queries:
    raise ValueError(
      f'masks {masks.shape} without axes 1 and -1, labels {labels.shape} and weights '
      f'{weights.shape} must have one shape, and classes {classes.shape} must be {queries}'
    )
  w = jnp.where(weights > 0, weights, 0.0).astype(jnp.float32)[..., None]  # [B, *spatial, 1]
  first = 1 if k == 1 else 0
  g = jax.nn.one_hot(labels - first, k, dtype=jnp.float32) * (w > 0)
  voxels = tuple(range(1, labels.ndim))
  present = jnp.any(g > 0, axis=voxels)  # [B, K]
  counted = jnp.any(w > 0, axis=voxels)  # [B, 1]
  ce = _class_loss(classes, present, counted)
  focal, dice = _mask_losses(masks, g, w)  # [B, T, K]
  matched = jnp.where(present, 1.0, 0.0)[:, None]
  mask_losses = focal_weight * focal + dice_weight * dice
  return class_weight * ce + jnp.sum(matched * mask_losses) / jnp.maximum(jnp.sum(matched), 1.0)


def _class_loss(classes: jax.Array, present: jax.Array, counted: jax.Array) -> jax.Array:
  """CE summed over T: classes [B, T, K, K + 1], present [B, K], counted [B, 1]."""
  k = present.shape[-1]
  z = ignored_as_zero(classes.astype(jnp.float32), counted[..., None, None])
  target = jax.nn.one_hot(jnp.where(present, jnp.arange(k)[None], k), k + 1)  # [B, K, K + 1]
  log_p = jnp.sum(target[:, None] * jax.nn.log_softmax(z), axis=-1)  # [B, T, K]
  weight = jnp.where(present, 1.0, NO_OBJECT) * counted
  total = jnp.sum(weight)
  return -jnp.sum(weight[:, None] * log_p) / jnp.where(total > 0, total, 1.0)


def _mask_losses(masks: jax.Array, g: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Focal loss and Dice [B, T, K] of masks [B, T, *spatial, K]; g [B, *spatial, K], w with 1."""
  g, w = g[:, None], w[:, None]
  z = ignored_as_zero(masks.astype(jnp.float32), w)
  voxels = tuple(range(2, z.ndim - 1))
  towards = jnp.where(g > 0, z, -z)  # the logit of q
  share = jnp.where(g > 0, ALPHA, 1.0 - ALPHA)
  focal = -share * jax.nn.sigmoid(-towards) ** 2 * jax.nn.log_sigmoid(towards)
  total = jnp.sum(w, axis=voxels)
  focal = jnp.sum(w * focal, axis=voxels) / jnp.where(total > 0, total, 1.0)
  p = jax.nn.sigmoid(z)
  overlap, sizes = jnp.sum(w * p * g, axis=voxels), jnp.sum(w * (p + g), axis=voxels)
  return focal, 1.0 - (2.0 * overlap + SMOOTH) / (sizes + SMOOTH)
