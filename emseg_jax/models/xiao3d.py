"""Residual 3D network with deep supervision (Xiao et al. 2018) for mitochondria.

1,073,007 parameters at width 1, one input channel and two classes, auxiliary heads included.
"""

from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from emseg_jax.models import layers, resample

__all__ = ['Xiao3D']

LEVELS = (32, 48, 64)
BRIDGE = 80
ENDS = 3  # channels before the first level and after the last
POOL = (1, 2, 2)


class ConvElu(nn.Module):
  """Convolution, batch norm with Keras' constants, ELU.

  [B, Z, Y, X, C] -> [B, Z, Y, X, features]
  """

  features: int
  kernel_size: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = layers.Conv(self.features, self.kernel_size, dtype=self.dtype, name='conv')(x)
    norm = layers.batch_norm(
      train=train, dtype=self.dtype, momentum=0.99, epsilon=1e-3, name='norm'
    )
    return nn.elu(norm(x))


class Residual(nn.Module):
  """A 1x1x1 convolution plus two of 3x3x3: [B, Z, Y, X, C] -> [B, Z, Y, X, features]."""

  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    shortcut = ConvElu(self.features, 1, self.dtype, name='shortcut')(x, train=train)
    for i in range(2):
      x = ConvElu(self.features, 3, self.dtype, name=f'conv{i + 1}')(x, train=train)
    return x + shortcut


class Xiao3D(nn.Module):
  """[B, Z, Y, X, C] -> {'logits': [B, Z, Y, X, num_classes]}, float32.

  In training there are 'aux/level1', from the first level of the decoder, and 'aux/level2', from
  the last up-convolution, of the same shape beside it.

  Attributes:
    num_classes: channels of the logits.
    width: factor on the number of channels of every layer.
    dtype: what is computed in, except for the last layers.
    divisor: sizes that are not multiples of it are padded inside; z is not pooled.
    receptive_field: (z, y, x), the largest span of input voxels that one output voxel depends on,
      and what a cell of `divisor` voxels depends on. Along z 16 convolutions of 3 voxels reach 16
      on each side. In the plane the reach beyond a cell is 1, then halved, rounded up, after 2 more
      on each level: 2, 2, 2 at the bridge, 4 there; back to full size it doubles and grows by 2 per
      level, and by 1 in the first convolution: 10, 22, 46, 47.
  """

  num_classes: int
  width: Annotated[float, Field(gt=0)] = 1.0
  dtype: jnp.dtype = jnp.float32

  divisor: ClassVar[tuple[int, ...]] = (1, 8, 8)
  receptive_field: ClassVar[tuple[int, ...] | None] = (33, 102, 102)

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    outputs = {}

    def conv(x: jax.Array, channels: int, size: int, name: str) -> jax.Array:
      features = layers.scaled(channels, self.width)
      return ConvElu(features, size, self.dtype, name=name)(x, train=train)

    def residual(x: jax.Array, channels: int, name: str) -> jax.Array:
      features = layers.scaled(channels, self.width)
      return Residual(features, self.dtype, name=name)(x, train=train)

    def auxiliary(x: jax.Array, level: int, factor: int) -> None:
      if train or self.is_initializing():
        logits = layers.Conv(self.num_classes, 1, name=f'aux_level{level}')(x)
        logits = resample.upsample_nearest(logits, (1, factor, factor))
        outputs[f'aux/level{level}'] = resample.crop(logits, image.shape[1:-1])

    x = conv(resample.pad_to_multiple(image, self.divisor), ENDS, 3, 'stem')
    skips = []
    for i, channels in enumerate(LEVELS):
      x = residual(x, channels, f'down{i + 1}')
      skips.append(x)
      x = resample.max_pool(x, POOL)
    x = residual(x, BRIDGE, 'bridge')
    for i, channels in reversed(tuple(enumerate(LEVELS))):
      # Repeating voxels first gives the same mean, variance and result, of 4 times as many.
      x = conv(x, channels, 1, f'upconv{i + 1}')
      if i == 0:
        auxiliary(x, 2, 2)
      x = residual(resample.upsample_nearest(x, POOL) + skips[i], channels, f'up{i + 1}')
      if i == len(LEVELS) - 1:
        auxiliary(x, 1, 4)
    x = conv(x, ENDS, 3, 'end')
    logits = layers.Conv(self.num_classes, 1, name='head')(x)
    outputs['logits'] = resample.crop(logits, image.shape[1:-1])
    return outputs
