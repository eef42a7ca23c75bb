"""U-Net (Ronneberger et al. 2015) with zero padding, so that the output has the size of the input.

31,030,658 parameters at width 1, one input channel and two classes. Batch
norm adds a scale and an offset per channel, and the convolutions keep their biases: 31,042,434. The
running statistics are no parameters.
"""

from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from emseg_jax.models import layers, resample

__all__ = ['UNet']

LEVELS = (64, 128, 256, 512)
BRIDGE = 1024


class DoubleConv(nn.Module):
  """Twice 3x3 convolution, batch norm if wanted, ReLU: [B, Y, X, C] -> [B, Y, X, features]."""

  features: int
  norm: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    for i in range(2):
      x = layers.ConvBlock(
        self.features,
        use_bias=True,
        norm=self.norm,
        kernel_init=nn.initializers.he_normal(),
        dtype=self.dtype,
        name=f'block{i + 1}',
      )(x, train=train)
    return x


class UNet(nn.Module):
  """[B, Y, X, C] -> {'logits': [B, Y, X, num_classes]}, float32.

  Attributes:
    num_classes: channels of the logits.
    width: factor on the number of channels of every layer.
    norm: 'batch' normalises after every 3x3 convolution.
    dropout: rate after level 4 and the bridge.
    dtype: what is computed in, except for the last layer.
    divisor: sizes that are not multiples of it are padded inside.
    receptive_field: (y, x), the largest span of input voxels that one output voxel depends on. It
      is also what a cell of `divisor` voxels depends on, at multiples of `divisor`: the cell and
      94 voxels on each side. From the output to the bridge the reach beyond the cell is halved,
      rounded up and grows by 2 per level: 2, 3, 4, 4, then 4 at the bridge; back to full size it
      doubles and grows by 2 per level: 10, 22, 46, 94.
  """

  num_classes: int
  width: Annotated[float, Field(gt=0)] = 1.0
  norm: Literal['none', 'batch'] = 'none'
  dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
  dtype: jnp.dtype = jnp.float32

  divisor: ClassVar[tuple[int, ...]] = (16, 16)
  receptive_field: ClassVar[tuple[int, ...] | None] = (204, 204)

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    def double_conv(x: jax.Array, channels: int, name: str) -> jax.Array:
      features = layers.scaled(channels, self.width)
      return DoubleConv(features, self.norm == 'batch', self.dtype, name=name)(x, train=train)

    dropout = nn.Dropout(self.dropout, deterministic=not train)
    x = resample.pad_to_multiple(image, self.divisor)
    skips = []
    for i, channels in enumerate(LEVELS):
      x = double_conv(x, channels, f'down{i + 1}')
      if i == len(LEVELS) - 1:
        x = dropout(x)
      skips.append(x)
      x = resample.max_pool(x)
    x = dropout(double_conv(x, BRIDGE, 'bridge'))
    for i, channels in reversed(tuple(enumerate(LEVELS))):
      features = layers.scaled(channels, self.width)
      x = layers.UpConv(features, dtype=self.dtype, name=f'upconv{i + 1}')(x)
      x = double_conv(jnp.concatenate([skips[i], x], -1), channels, f'up{i + 1}')
    logits = layers.Conv(self.num_classes, 1, name='head')(x)
    return {'logits': resample.crop(logits, image.shape[1:-1])}
