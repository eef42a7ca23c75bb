"""The 2D U-Net of Casser et al. (2018) for mitochondria.

1,958,533 parameters at width 1, one input channel and one class. No norm; it is Keras-born: even
kernels pad at the end.
"""

from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from emseg_jax.models import layers, resample

__all__ = ['CasserUNet']

LEVELS = (16, 32, 64, 128)
# Width of the 2x2 convolution on the way up to each level; level 2 has twice that of its skip.
UP = (16, 64, 64, 128)
BRIDGE = 256


class ReluConv(nn.Module):
  """Convolution with bias and ReLU: [B, Y, X, C] -> [B, Y, X, features]."""

  features: int
  kernel_size: int = 3
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return nn.relu(layers.Conv(self.features, self.kernel_size, dtype=self.dtype, name='conv')(x))


class CasserUNet(nn.Module):
  """[B, Y, X, C] -> {'logits': [B, Y, X, num_classes]}, float32.

  The published head for one class, a 3x3 convolution to two channels and 1x1 to one, has two
  channels per class here.

  Attributes:
    num_classes: channels of the logits.
    width: factor on the number of channels of every layer before the head.
    dropout: rate after level 4 and the bridge.
    dtype: what is computed in, except for the last layer.
    divisor: sizes that are not multiples of it are padded inside.
    receptive_field: (y, x), the largest span of input voxels that one output voxel depends on. A
      level of the decoder adds 4 and, for the 2x2 convolution, 1 voxel after; n voxels come from at
      most floor(n / 2) + 1 of half size. With the head's 2 these are 1 + 2 + 5 = 8, 10, 11, 11
      voxels, from 5, 6, 6, 6; the bridge adds 4, and each level of the encoder makes n 2n + 4:
      10, 24, 52, 108, 220. A cell of `divisor` voxels at a multiple of `divisor` depends on 94
      voxels before it and 110 after.
  """

  num_classes: int
  width: Annotated[float, Field(gt=0)] = 1.0
  dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
  dtype: jnp.dtype = jnp.float32

  divisor: ClassVar[tuple[int, ...]] = (16, 16)
  receptive_field: ClassVar[tuple[int, ...] | None] = (220, 220)

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    def conv(x: jax.Array, channels: int, size: int, name: str) -> jax.Array:
      features = layers.scaled(channels, self.width)
      return ReluConv(features, size, dtype=self.dtype, name=name)(x)

    def two_convs(x: jax.Array, channels: int, name: str) -> jax.Array:
      return conv(conv(x, channels, 3, f'{name}_1'), channels, 3, f'{name}_2')

    dropout = nn.Dropout(self.dropout, deterministic=not train)
    x = resample.pad_to_multiple(image, self.divisor)
    skips = []
    for i, channels in enumerate(LEVELS, start=1):
      x = two_convs(x, channels, f'down{i}')
      if i == len(LEVELS):
        x = dropout(x)
      skips.append(x)
      x = resample.max_pool(x)
    x = dropout(two_convs(x, BRIDGE, 'bridge'))
    for i, channels in reversed(tuple(enumerate(LEVELS, start=1))):
      x = conv(resample.upsample_nearest(x, 2), UP[i - 1], 2, f'upconv{i}')
      x = two_convs(jnp.concatenate([skips[i - 1], x], -1), channels, f'up{i}')
    x = ReluConv(2 * self.num_classes, dtype=self.dtype, name='squeeze')(x)
    logits = layers.Conv(self.num_classes, 1, name='head')(x)
    return {'logits': resample.crop(logits, image.shape[1:-1])}
