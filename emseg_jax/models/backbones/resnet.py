"""ResNet-50 with output stride 8, the backbone of PmcaNet and DeepLabv3+ in mmsegmentation.

"D8": stages 3 and 4 are dilated instead of strided, as mmsegmentation builds it. Padding is
explicit and symmetric, so that weights trained with PyTorch fit.
"""

from typing import ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from emseg_jax.models.layers import ConvBlock, scaled

__all__ = ['ResNet50D8', 'Stem']

Stem = Literal['v1c', 'v1']

EXPANSION = 4
# (channels, kernel size, stride) of the convolutions before the 3x3 max-pooling of stride 2.
STEMS = {'v1c': ((32, 3, 2), (32, 3, 1), (64, 3, 1)), 'v1': ((64, 7, 2),)}


class _Stage(NamedTuple):
  blocks: int
  channels: int  # of the 3x3 convolution; the stage puts out EXPANSION times as many
  stride: int
  first_dilation: int  # of the first block: half of the others' where dilation replaces a stride
  dilation: int


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolution plus shortcut.

  [B, Y, X, C] -> [B, ceil(Y / stride), ceil(X / stride), 4·channels]. With `project` the shortcut
  is a 1x1 convolution, otherwise the identity.
  """

  channels: int
  stride: int = 1
  dilation: int = 1
  project: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    shortcut, out = x, EXPANSION * self.channels
    if self.project:
      shortcut = ConvBlock(
        out, 1, stride=self.stride, relu=False, dtype=self.dtype, name='shortcut'
      )(x, train=train)
    x = ConvBlock(self.channels, 1, dtype=self.dtype, name='conv1')(x, train=train)
    x = ConvBlock(
      self.channels,
      3,
      stride=self.stride,
      dilation=self.dilation,
      dtype=self.dtype,
      name='conv2',
    )(x, train=train)
    x = ConvBlock(out, 1, relu=False, dtype=self.dtype, name='conv3')(x, train=train)
    return nn.relu(x + shortcut)


class ResNet50D8(nn.Module):
  """[B, Y, X, C] -> (c2, c3, c4, c5), the outputs of the four stages.

  They have 256, 512, 1024 and 2048 channels at 1/4, 1/8, 1/8 and 1/8 of the input's size, rounded
  up. 23,527,264 parameters at width 1 and C = 3; 23,508,032 with the stem 'v1'.

  Attributes:
    width: factor on the number of channels of every layer.
    stem: 'v1c' is three 3x3 convolutions, 'v1' one of 7x7, as in torchvision.
    dtype: what is computed in.
  """

  width: float = 1.0
  stem: Stem = 'v1c'
  dtype: jnp.dtype = jnp.float32

  stages: ClassVar[tuple[_Stage, ...]] = (
    _Stage(3, 64, 1, 1, 1),
    _Stage(4, 128, 2, 1, 1),
    _Stage(6, 256, 1, 1, 2),
    _Stage(3, 512, 1, 2, 4),
  )

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
    for i, (channels, size, stride) in enumerate(STEMS[self.stem]):
      x = ConvBlock(
        scaled(channels, self.width), size, stride=stride, dtype=self.dtype, name=f'stem{i + 1}'
      )(x, train=train)
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    outputs = []
    for s, stage in enumerate(self.stages):
      for b in range(stage.blocks):
        x = Bottleneck(
          scaled(stage.channels, self.width),
          stride=stage.stride if b == 0 else 1,
          dilation=stage.first_dilation if b == 0 else stage.dilation,
          project=b == 0,
          dtype=self.dtype,
          name=f'layer{s + 1}_{b}',
        )(x, train=train)
      outputs.append(x)
    return tuple(outputs)
