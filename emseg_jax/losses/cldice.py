"""Soft clDice: Dice of centrelines, for thin structures that must stay connected.

Takes logits [B, *spatial, K], labels and weights as `common` describes; 2D and 3D.
"""

import functools

import jax
import jax.numpy as jnp

from emseg_jax.losses.common import label_weights, mean_over_images, prepare, sum_axes

__all__ = ['soft_cldice', 'soft_skeleton']


def soft_cldice(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  iterations: int = 3,
  smooth: float = 1.0,
  over: str = 'batch',
) -> jax.Array:
  """One minus the centreline Dice of all classes but 0 (Shit et al. 2021, eq. 1-2, algorithm 2).

      precision = (sum(w S_p g) + smooth) / (sum(w S_p) + smooth)
      sensitivity = (sum(w S_g p) + smooth) / (sum(w S_g) + smooth)
      L = 1 - 2 precision sensitivity / (precision + sensitivity)

  with p = 1 - p_0, g = 1 where the label is not 0, and S their soft skeletons. Ignored voxels are
  to the skeletons what lies outside the image. Thickness costs nothing: add Dice or cross entropy.

  Args:
    logits: [B, *spatial, K].
    labels: [B, *spatial] integer.
    weights: [B, *spatial], or [B, *spatial, K], of which a voxel takes that of its label.
    iterations: erosions; at least the radius of the thickest structure in voxels.
    smooth: keeps an empty foreground finite; above 0.
    over: 'batch', or 'image' for sums over the voxels of one image and a mean over images.

  Returns:
    Scalar in [0, 1]; 0 if all weights are 0.

  Raises:
    ValueError: `iterations` is negative or `smooth` is not positive.
  """
  if not iterations >= 0:
    raise ValueError(f'iterations is {iterations}, must be 0 or more')
  if not smooth > 0:
    raise ValueError(f'smooth is {smooth}, must be above 0')
  z, g, w = prepare(logits, labels, weights)
  w = label_weights(g, w)
  valid = w > 0
  p = jnp.sum(jax.nn.softmax(z, axis=-1)[..., 1:], axis=-1)
  g = jnp.sum(g[..., 1:], axis=-1)
  skeleton_p = soft_skeleton(p, valid, iterations=iterations)
  skeleton_g = soft_skeleton(g, valid, iterations=iterations)
  axes = sum_axes(w[..., None], over=over)

  def share(skeleton: jax.Array, inside: jax.Array) -> jax.Array:
    found = jnp.sum(w * skeleton * inside, axis=axes)
    return (found + smooth) / (jnp.sum(w * skeleton, axis=axes) + smooth)

  precision, sensitivity = share(skeleton_p, g), share(skeleton_g, p)
  value = 1.0 - 2.0 * precision * sensitivity / (precision + sensitivity)
  return mean_over_images(value, w)


def soft_skeleton(x: jax.Array, valid: jax.Array, *, iterations: int) -> jax.Array:
  """Centrelines by repeated opening (Shit et al. 2021, algorithm 1).

  As in the authors' code erosion takes the minimum of a voxel and its 2 d face neighbours, dilation
  the maximum over 3^d voxels. Neighbours outside the image and ignored ones do not take part.

  Args:
    x: [B, *spatial] in [0, 1].
    valid: [B, *spatial] bool, False where a voxel is ignored.
    iterations: erosions.

  Returns:
    [B, *spatial] in [0, 1]; without meaning where not valid.
  """
  lines = [tuple(3 if axis == along else 1 for axis in range(x.ndim)) for along in range(1, x.ndim)]
  strides = (1,) * x.ndim

  def erode(x: jax.Array) -> jax.Array:
    x = jnp.where(valid, x, 1.0)
    lowest = [jax.lax.reduce_window(x, jnp.inf, jax.lax.min, n, strides, 'SAME') for n in lines]
    return functools.reduce(jnp.minimum, lowest)

  def dilate(x: jax.Array) -> jax.Array:
    x = jnp.where(valid, x, 0.0)
    for n in lines:  # the block, axis by axis
      x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, n, strides, 'SAME')
    return x

  def step(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
    x, skeleton = carry
    eroded = erode(x)
    ridge = jax.nn.relu(x - dilate(eroded))
    return (eroded, skeleton + (1.0 - skeleton) * ridge), None

  # A loop for the compiler as well: it takes several times as long to compile it unrolled.
  (_, skeleton), _ = jax.lax.scan(step, (x, jnp.zeros_like(x)), length=iterations + 1)
  return skeleton
