"""Losses that compare areas: soft Dice, Jaccard, Tanimoto and Tversky.

Each takes logits [B, *spatial, K], labels and weights as `common` describes, and softmax
probabilities p against one-hot labels g. The weight multiplies every summand. `smooth`, in voxels,
keeps empty classes finite: a class that is absent and not predicted costs nothing.
"""

import jax
import jax.numpy as jnp

from emseg_jax.losses.common import mean_over_images, power, prepare, sum_axes

__all__ = ['dice', 'jaccard', 'tanimoto', 'tversky']


def dice(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  smooth: float = 1.0,
  exponent: float = 2,
  include_background: bool = True,
  over: str = 'image',
) -> jax.Array:
  """One minus the soft Dice coefficient (PmcaNet eq. 8), per image and class, then averaged.

      L_bk = 1 - (2 sum(w p g) + smooth) / (sum(w p^exponent) + sum(w g^exponent) + smooth)

  The sums run over the voxels of one image, the mean over images and classes. Images without any
  positive weight are left out of the mean.

  Args:
    logits: [B, *spatial, K].
    labels: [B, *spatial] integer.
    weights: [B, *spatial] or [B, *spatial, K], 0 where a voxel must not count.
    smooth: above 0.
    exponent: 2 as in PmcaNet, 1 for the plain form.
    include_background: whether class 0 is one of the classes averaged over.
    over: 'image', or 'batch' for sums over the voxels of all images.

  Returns:
    Scalar in [0, 1]; 0 if all weights are 0.

  Raises:
    ValueError: `smooth` is not positive or `exponent` is below 1.
  """
  if not exponent >= 1:
    raise ValueError(f'exponent is {exponent}, must be 1 or more')
  p, g, w = _areas(logits, labels, weights, smooth, include_background)
  axes = sum_axes(w, over=over)
  overlap = jnp.sum(w * p * g, axis=axes)  # [B, K], as the two below
  predicted = jnp.sum(w * p**exponent, axis=axes)
  labelled = jnp.sum(w * g, axis=axes)  # g is 0 or 1: g^exponent = g
  per_class = 1.0 - (2.0 * overlap + smooth) / (predicted + labelled + smooth)
  return mean_over_images(jnp.mean(per_class, axis=-1), w)


def jaccard(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  smooth: float = 1e-5,
  include_background: bool = False,
  over: str = 'batch',
) -> jax.Array:
  """One minus the soft Jaccard index (EM-Net eq. 3; with smooth 1 SegET's and Cheng's).

      L_k = 1 - (sum(w p g) + smooth) / (sum(w p) + sum(w g) - sum(w p g) + smooth)

  EM-Net's epsilon stands below only; above as well, an empty foreground can be got right.

  Args:
    logits: [B, *spatial, K].
    labels: [B, *spatial] integer.
    weights: [B, *spatial] or [B, *spatial, K], 0 where a voxel must not count.
    smooth: above 0.
    include_background: whether class 0 is one of the classes averaged over.
    over: 'batch', or 'image' for sums over the voxels of one image and a mean over images.

  Returns:
    Scalar in [0, 1]; 0 if all weights are 0.

  Raises:
    ValueError: `smooth` is not positive.
  """
  p, g, w = _areas(logits, labels, weights, smooth, include_background)
  axes = sum_axes(w, over=over)
  overlap = jnp.sum(w * p * g, axis=axes)
  union = jnp.sum(w * (p + g - p * g), axis=axes)
  per_class = 1.0 - (overlap + smooth) / (union + smooth)
  return mean_over_images(jnp.mean(per_class, axis=-1), w)


def tanimoto(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  smooth: float = 1.0,
  complement: bool = True,
) -> jax.Array:
  """One minus the Tanimoto coefficient with complement (Res-CR-Net, loss section).

      T(p, g) = (sum(w p g) + smooth) / (sum(w (p^2 + g^2 - p g)) + smooth)
      L = 1 - (T(p, g) + T(1 - p, 1 - g)) / 2

  All sums run over images, voxels and classes together.

  Args:
    logits: [B, *spatial, K].
    labels: [B, *spatial] integer.
    weights: [B, *spatial] or [B, *spatial, K], 0 where a voxel must not count.
    smooth: above 0.
    complement: False for L = 1 - T(p, g).

  Returns:
    Scalar in [0, 1]; 0 if all weights are 0.

  Raises:
    ValueError: `smooth` is not positive.
  """
  p, g, w = _areas(logits, labels, weights, smooth, include_background=True)

  def coefficient(p: jax.Array, g: jax.Array) -> jax.Array:
    below = jnp.sum(w * (p**2 + g**2 - p * g)) + smooth
    return (jnp.sum(w * p * g) + smooth) / below

  if not complement:
    return 1.0 - coefficient(p, g)
  return 1.0 - (coefficient(p, g) + coefficient(1.0 - p, 1.0 - g)) / 2.0


def tversky(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  alpha: float = 0.3,
  beta: float = 0.7,
  gamma: float = 1.0,
  smooth: float = 1.0,
  include_background: bool = False,
  over: str = 'batch',
) -> jax.Array:
  """Tversky loss (Salehi et al. 2017, eq. 3) with a focal exponent (Abraham & Khan 2019).

      T_k = (sum(w p g) + smooth)
            / (sum(w p g) + alpha sum(w p (1 - g)) + beta sum(w (1 - p) g) + smooth)
      L_k = (1 - T_k)^gamma

  Args:
    logits: [B, *spatial, K].
    labels: [B, *spatial] integer.
    weights: [B, *spatial] or [B, *spatial, K], 0 where a voxel must not count.
    alpha: cost of false positives; alpha = beta = 1 is Jaccard, 1/2 Dice.
    beta: cost of false negatives.
    gamma: exponent of the loss of a class (0.75 in the focal form, where it is written 1/gamma).
    smooth: above 0.
    include_background: whether class 0 is one of the classes averaged over.
    over: 'batch', or 'image' for sums over the voxels of one image and a mean over images.

  Returns:
    Scalar in [0, 1]; 0 if all weights are 0.

  Raises:
    ValueError: `alpha` or `beta` is negative, or `gamma` or `smooth` is not positive.
  """
  if not min(alpha, beta) >= 0:
    raise ValueError(f'alpha is {alpha} and beta is {beta}, must be 0 or more')
  if not gamma > 0:
    raise ValueError(f'gamma is {gamma}, must be above 0')
  p, g, w = _areas(logits, labels, weights, smooth, include_background)
  axes = sum_axes(w, over=over)
  overlap = jnp.sum(w * p * g, axis=axes)
  errors = jnp.sum(w * (alpha * p * (1.0 - g) + beta * (1.0 - p) * g), axis=axes)
  # errors / (...) is 1 - T without its cancellation.
  per_class = power(errors / (overlap + errors + smooth), gamma)
  return mean_over_images(jnp.mean(per_class, axis=-1), w)


def _areas(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  smooth: float,
  include_background: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Probabilities p and one-hot labels g [B, *spatial, K], weights [B, *spatial, 1 or K].

  Raises:
    ValueError: `smooth` is not positive.
  """
  if not smooth > 0:
    raise ValueError(f'smooth is {smooth}, must be above 0')
  z, g, w = prepare(logits, labels, weights)
  p = jax.nn.softmax(z, axis=-1)
  if include_background:
    return p, g, w
  return p[..., 1:], g[..., 1:], w[..., 1:] if w.shape[-1] > 1 else w
