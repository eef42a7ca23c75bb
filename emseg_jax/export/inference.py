"""The function that exported models compute: from pixels as files hold them to probabilities.

Images are [B, *spatial, C] float32 in the values of the files; C is 1 or 3 (grey or RGB), times the
planes of a 2.5D network. Where the normalisation is the same for all images it is part of the
function. `per_volume` and `percentile` need statistics of a whole file, which a tile does not have:
there the function takes what `Normalisation.apply` returns, and `normalises_inside` is False.

Sizes may be symbolic (`jax.export`): the image is padded to the network's divisor here, where the
padded size can be written as a multiple of it.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from emseg_jax import train_step
from emseg_jax.bundle import Bundle
from emseg_jax.data import normalise
from emseg_jax.models.resample import crop

__all__ = ['InferenceFn', 'affine', 'make_inference', 'normalises_inside', 'of_bundle']

InferenceFn = Callable[[dict[str, Any], jax.Array], jax.Array]


def normalises_inside(normalisation: normalise.Normalisation) -> bool:
  """Whether the exported function takes pixels as they are stored."""
  return not normalisation.needs_volume


def affine(normalisation: normalise.Normalisation) -> tuple[np.ndarray, np.ndarray]:
  """(offset, scale), float32 [channels] each: the network sees (pixel - offset) / scale.

  (0, 1) where images are normalised outside. `imagenet`, `caffe` and `scale` go by the range of the
  type of the training images, `normalisation.dtype`.
  """
  channels = normalisation.channels
  if not normalises_inside(normalisation):
    return np.zeros(channels, np.float32), np.ones(channels, np.float32)
  if normalisation.kind == 'dataset':
    offset, scale = normalisation.mean, max(normalisation.std, 1e-6)
    return np.full(channels, offset, np.float32), np.full(channels, scale, np.float32)
  # The others know the type only. They are affine: two pixels tell all.
  dtype = np.dtype(normalisation.dtype)
  low, high = normalise.full_range(dtype)
  at_low, at_high = normalisation.apply(np.array([[low, high]], dtype))[0].astype(np.float64)
  scale = (high - low) / (at_high - at_low)
  return np.float32(low - at_low * scale), np.float32(scale)


def of_bundle(bundle: Bundle) -> InferenceFn:
  """(variables, image [B, *spatial, C]) -> probabilities of a bundle; see `make_inference`."""
  return make_inference(
    bundle.model,
    bundle.normalisation,
    independent=bundle.config.task.independent,
    planes=bundle.record.input.planes,
  )


def make_inference(
  model: nn.Module,
  normalisation: normalise.Normalisation,
  *,
  independent: bool = False,
  planes: int = 1,
) -> InferenceFn:
  """Builds (variables, image [B, *spatial, C]) -> probabilities [B, *spatial, K] float32.

  Probabilities are those of `train_step.make_predict_step`: K = 2 also where the network has one
  sigmoid output; they add up to one unless `independent`.

  Args:
    model: the network.
    normalisation: of the training run.
    independent: a sigmoid for each output.
    planes: sections that a 2.5D network sees, 2·data.neighbours + 1. C is planes·1 or planes·3,
      the channels of one section side by side.

  Returns:
    A pure function. C other than the network's is adapted as by `Normalisation.apply`: grey is
    repeated, RGB averaged. Any spatial size is allowed, and any numeric type.
  """
  offset, scale = (jnp.tile(x, planes) for x in affine(normalisation))
  predict_fn = train_step.make_predict_step(model, independent=independent)

  def inference_fn(variables: dict[str, Any], image: jax.Array) -> jax.Array:
    x = _to_channels(image.astype(jnp.float32), planes, normalisation.channels)
    along = (1,) * (x.ndim - 1) + (-1,)
    x = (x - offset.reshape(along)) / scale.reshape(along)
    if normalisation.kind == 'percentile':
      x = jnp.clip(x, 0.0, 1.0)
    return crop(predict_fn(variables, _pad(x, model.divisor)), x.shape[1:-1])

  return inference_fn


def _to_channels(x: jax.Array, planes: int, channels: int) -> jax.Array:
  given, rest = divmod(x.shape[-1], planes)
  if rest or given not in (1, 3):
    raise ValueError(f'the image has {x.shape[-1]} channels, it must have {planes} or {3 * planes}')
  if given == channels:
    return x
  x = x.reshape(*x.shape[:-1], planes, given)
  if channels == 1:
    return jnp.mean(x, axis=-1)
  return jnp.repeat(x, channels, axis=-1).reshape(*x.shape[:-2], planes * channels)


def _pad(x: jax.Array, divisor: tuple[int, ...]) -> jax.Array:
  """As the networks pad, but d·floor((s + d - 1) / d) is seen to be a multiple of d."""
  sizes = [(s + d - 1) // d * d for s, d in zip(x.shape[1:-1], divisor, strict=True)]
  missing = [(0, n - s) for n, s in zip(sizes, x.shape[1:-1], strict=True)]
  return jnp.pad(x, ((0, 0), *missing, (0, 0)))
