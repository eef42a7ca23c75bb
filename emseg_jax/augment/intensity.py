"""Random changes of grey values, of images [*spatial, C] of one example.

They differ per channel, but by the same draws, so that a grey image repeated over three channels
stays grey, also after a normalisation that differs between them.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emseg_jax import config
from emseg_jax.augment.draws import Draws, uniform
from emseg_jax.augment.rounding import between, mean, normal, pick, spread, times

__all__ = ['Grey', 'blur', 'measure', 'recolour']

SIGMAS = 64  # in a table, evenly spaced between 0 and the largest


class Grey(NamedTuple):
  """Statistics of each channel of a patch, [1, ..., 1, C]: smallest value, mean, deviation."""

  low: jax.Array
  mean: jax.Array
  std: jax.Array


def measure(image: jax.Array) -> Grey:
  low, span, relative = _relative(image)
  centre = mean(relative)
  std = jnp.sqrt(mean(jnp.square(relative - centre)))
  return Grey(low, between(centre, low, low + span), times(std, span))


def _relative(image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Smallest value, range, and the image in shares of it, within 0..1."""
  axes = tuple(range(image.ndim - 1))
  low = jnp.min(image, axis=axes, keepdims=True)
  span = jnp.max(image, axis=axes, keepdims=True) - low
  # Span 1 keeps a constant patch constant; clipped, as a power of the slightest negative is NaN.
  return low, span, jnp.clip((image - low) / jnp.where(span > 0, span, 1.0), 0.0, 1.0)


def blur(image: jax.Array, draws: Draws, options: config.Augment) -> jax.Array:
  """Gaussian blur in the plane, sigma U(0, blur) voxels; mirrored at the edge, up to 3 sigma."""
  if not options.blur:
    return image
  radius = math.ceil(3 * options.blur)
  sigma = options.blur * (np.arange(SIGMAS) + 0.5) / SIGMAS
  kernels = np.exp(-0.5 * (np.arange(radius + 1) / sigma[:, None]) ** 2)
  kernels /= kernels[:, :1] + 2 * kernels[:, 1:].sum(axis=1, keepdims=True)
  kernel = pick(draws['blur'], kernels)
  for axis in (image.ndim - 3, image.ndim - 2):
    size = image.shape[axis]
    width = [(radius, radius) if a == axis else (0, 0) for a in range(image.ndim)]
    padded = jnp.pad(image, width, mode='symmetric')
    shifted = [
      jax.lax.slice_in_dim(padded, start, start + size, axis=axis)
      for start in range(2 * radius + 1)
    ]
    image = times(kernel[0], image)
    for k in range(1, radius + 1):
      image = image + times(kernel[k], shifted[radius - k] + shifted[radius + k])
  return image


def recolour(
  image: jax.Array, draws: Draws, noise_key: jax.Array, options: config.Augment
) -> jax.Array:
  """Gamma, contrast, brightness, then noise; statistics are per channel of the patch.

  g = (image - min) / (max - min), raised to the power 2^U(-gamma, gamma)
  g -> mean + (1 + U(-contrast, contrast)) (g - mean)
       + U(-brightness, brightness) std + U(0, noise) std N(0, 1)
  """
  if not (options.gamma or options.contrast or options.brightness or options.noise):
    return image
  low, span, grey = _relative(image)
  if options.gamma:
    grey = grey ** pick(draws['gamma'], np.exp2(spread(options.gamma)))
  centre = mean(grey)
  std = jnp.sqrt(mean(jnp.square(grey - centre)))
  if options.contrast:
    factor = 1.0 + between(draws['contrast'], -options.contrast, options.contrast)
    grey = centre + times(factor, grey - centre)
  if options.brightness:
    shift = between(draws['brightness'], -options.brightness, options.brightness)
    grey = grey + times(shift, std)
  if options.noise:
    sigma = draws['noise'] * options.noise * std
    grey = grey + times(sigma, normal(uniform(noise_key, (*grey.shape[:-1], 1))))
  return between(grey, low, low + span)
