"""3D U-Net (Çiçek et al. 2016) with zero padding, so that the output has the size of the input.

19,069,955 parameters at width 1 and three input channels and classes, without those of batch norm
and without biases of the up-convolutions, which is the paper's figure; 19,070,851 with the latter.
With all of them 19,075,523, and 19,073,730 for one input channel and two classes. The running
statistics are no parameters.
"""

import math
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from emseg_jax.models import layers, resample

__all__ = ['UNet3D']

# Of the two convolutions of each level.
DOWN = ((32, 64), (64, 128), (128, 256))
BRIDGE = (256, 512)
UP = (64, 128, 256)

_Factor = Annotated[int, Field(ge=1)]
# Read from JSON, a tuple inside a tuple is a list.
_Factors = Annotated[tuple[_Factor, _Factor, _Factor], Field(strict=False)]


class UNet3D(nn.Module):
  """[B, Z, Y, X, C] -> {'logits': [B, Z, Y, X, num_classes]}, float32.

  Attributes:
    num_classes: channels of the logits.
    width: factor on the number of channels of every layer.
    norm: 'batch' normalises after every 3x3x3 convolution.
    up_bias: whether the up-convolutions have biases.
    pool: (z, y, x) factors of the three poolings, and of the up-convolutions opposite to them. A 1
      leaves an axis alone: thick sections are better pooled in their plane first.
    dtype: what is computed in, except for the last layer.
    divisor: sizes that are not multiples of it are padded inside.
    receptive_field: (z, y, x), the largest span of input voxels that one output voxel depends on.
  """

  num_classes: int
  width: Annotated[float, Field(gt=0)] = 1.0
  norm: Literal['none', 'batch'] = 'batch'
  up_bias: bool = True
  pool: tuple[_Factors, _Factors, _Factors] = ((2, 2, 2),) * 3
  dtype: jnp.dtype = jnp.float32

  @property
  def divisor(self) -> tuple[int, ...]:
    return tuple(math.prod(factors) for factors in zip(*self.pool, strict=True))

  @property
  def receptive_field(self) -> tuple[int, ...] | None:
    return tuple(_span(factors) for factors in zip(*self.pool, strict=True))

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    def double_conv(x: jax.Array, channels: tuple[int, int], name: str) -> jax.Array:
      for i, c in enumerate(channels):
        x = layers.ConvBlock(
          layers.scaled(c, self.width),
          use_bias=True,
          norm=self.norm == 'batch',
          kernel_init=nn.initializers.he_normal(),
          dtype=self.dtype,
          name=f'{name}_{i + 1}',
        )(x, train=train)
      return x

    x = resample.pad_to_multiple(image, self.divisor)
    skips = []
    for i, channels in enumerate(DOWN):
      x = double_conv(x, channels, f'down{i + 1}')
      skips.append(x)
      x = resample.max_pool(x, self.pool[i])
    x = double_conv(x, BRIDGE, 'bridge')
    for i, channels in reversed(tuple(enumerate(UP))):
      x = layers.UpConv(
        x.shape[-1],
        self.pool[i],
        use_bias=self.up_bias,
        dtype=self.dtype,
        name=f'upconv{i + 1}',
      )(x)
      x = double_conv(jnp.concatenate([skips[i], x], -1), (channels, channels), f'up{i + 1}')
    logits = layers.Conv(self.num_classes, 1, name='head')(x)
    return {'logits': resample.crop(logits, image.shape[1:-1])}


def _span(factors: tuple[int, ...]) -> int:
  """Receptive field along an axis that is pooled by `factors`.

  Follows the first and last voxel that one output voxel depends on from the output to the bridge
  and back to full size, for every position of the output voxel in a cell of the bridge. The way
  through the bridge reaches further than the skips.
  """
  spans = []
  for position in range(math.prod(factors)):
    first = last = position
    for factor in factors:
      first, last = (first - 2) // factor, (last + 2) // factor
    first, last = first - 2, last + 2
    for factor in reversed(factors):
      first, last = first * factor - 2, (last + 1) * factor - 1 + 2
    spans.append(last - first + 1)
  return max(spans)
