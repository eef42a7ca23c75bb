"""Residual U-Net, the "traditional Res-U-Net" that Res-CR-Net is compared with.

Pre-activation residual blocks after Zhang et al. (2018), with the widths of a widely copied Keras
version. 4,715,761 parameters and 7,296 running statistics, 4,723,057 in all, at width 1, three
input channels and one class; that version's printed summary has 4,720,685, which lacks the stem's
first convolution.
"""

from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from emseg_jax.models import layers, resample

__all__ = ['ResUNet', 'ResidualBlock']

LEVELS = (16, 32, 64, 128)
BRIDGE = 256
# Blocks of the decoder are twice as wide as the level whose skip they have.
DECODER = (32, 64, 128, 256)


def _norm(name: str, train: bool, dtype: jnp.dtype) -> nn.BatchNorm:
  return layers.batch_norm(train=train, dtype=dtype, momentum=0.99, epsilon=1e-3, name=name)


class NormReluConv(nn.Module):
  """Batch norm, ReLU, 3x3 convolution.

  [B, Y, X, C] -> [B, ceil(Y / stride), ceil(X / stride), features].
  """

  features: int
  stride: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = nn.relu(_norm('norm', train, self.dtype)(x))
    return layers.Conv(self.features, stride=self.stride, dtype=self.dtype, name='conv')(x)


class Shortcut(nn.Module):
  """1x1 convolution, batch norm; the size changes as in `NormReluConv`."""

  features: int
  stride: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = layers.Conv(self.features, 1, stride=self.stride, dtype=self.dtype, name='conv')(x)
    return _norm('norm', train, self.dtype)(x)


class ResidualBlock(nn.Module):
  """Two of `NormReluConv`, of which the first has the stride, plus `Shortcut`."""

  features: int
  stride: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    f, dtype = self.features, self.dtype
    shortcut = Shortcut(f, self.stride, dtype, name='shortcut')(x, train=train)
    x = NormReluConv(f, self.stride, dtype, name='block1')(x, train=train)
    return NormReluConv(f, dtype=dtype, name='block2')(x, train=train) + shortcut


class ResUNet(nn.Module):
  """[B, Y, X, C] -> {'logits': [B, Y, X, num_classes]}, float32.

  Attributes:
    num_classes: channels of the logits.
    width: factor on the number of channels of every layer.
    bridge: 'plain' is two convolutions, each after batch norm and ReLU; 'residual' a residual
      block, as in the repository of Res-CR-Net.
    dtype: what is computed in, except for the last layer.
    divisor: sizes that are not multiples of it are padded inside.
    receptive_field: (y, x), the largest span of input voxels that one output voxel depends on. A
      block adds 4, and n voxels come from at most floor(n / 2) + 1 of half size: 5 from 3, 7 from
      4, 8 from 5, 9 from 5. The bridge adds 4, a strided block makes n 2(n + 2) + 1, the stem adds
      4: 9, 23, 51, 107, 219, 223. A cell of `divisor` voxels at a multiple of `divisor` depends on
      111 voxels before it and 96 after.
  """

  num_classes: int
  width: Annotated[float, Field(gt=0)] = 1.0
  bridge: Literal['plain', 'residual'] = 'plain'
  dtype: jnp.dtype = jnp.float32

  divisor: ClassVar[tuple[int, ...]] = (16, 16)
  receptive_field: ClassVar[tuple[int, ...] | None] = (223, 223)

  def _stem(self, x: jax.Array, train: bool) -> jax.Array:
    """A residual block that lacks the norm and ReLU before its first convolution."""
    features = layers.scaled(LEVELS[0], self.width)
    shortcut = Shortcut(features, dtype=self.dtype, name='stem_shortcut')(x, train=train)
    x = layers.Conv(features, dtype=self.dtype, name='stem_conv')(x)
    return NormReluConv(features, dtype=self.dtype, name='stem_block')(x, train=train) + shortcut

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    def residual(x: jax.Array, channels: int, name: str, stride: int = 1) -> jax.Array:
      features = layers.scaled(channels, self.width)
      return ResidualBlock(features, stride, self.dtype, name=name)(x, train=train)

    x = self._stem(resample.pad_to_multiple(image, self.divisor), train)
    skips = []
    for i, channels in enumerate((*LEVELS[1:], BRIDGE), start=2):
      skips.append(x)
      x = residual(x, channels, f'down{i}', stride=2)
    if self.bridge == 'residual':
      x = residual(x, BRIDGE, 'bridge')
    else:
      for i in range(2):
        features = layers.scaled(BRIDGE, self.width)
        x = NormReluConv(features, dtype=self.dtype, name=f'bridge{i + 1}')(x, train=train)
    for i, channels in reversed(tuple(enumerate(DECODER, start=1))):
      x = jnp.concatenate([resample.upsample_nearest(x, 2), skips[i - 1]], -1)
      x = residual(x, channels, f'up{i}')
    logits = layers.Conv(self.num_classes, 1, name='head')(x)
    return {'logits': resample.crop(logits, image.shape[1:-1])}
