"""SegET, a network for organelles in electron tomograms.

The paper fixes the blocks, the dilated centre with rates 1, 2, 4, 8 and the two-step fusion of the
decoder's levels, but not the channel numbers. Those here are our choice: every block twice as wide
as the one above, skips half as wide as their block, dilated branches a quarter of the centre, and
the first fusion at half size. It is Keras-born: convolutions keep their biases, and each has
Keras's batch norm and a ReLU behind it.

Parameters at width 1 for one input channel and one class: 2,960,905 and 4,848 running statistics;
2,862,985 with skip_mode = 'chain'; 4,929,289 with branch_channels = 256.
"""

from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from emseg_jax.models import layers, resample

__all__ = ['DilatedCentre', 'SegET']

LEVELS = (16, 32, 64, 128)
CENTRE = 256
RATES = (1, 2, 4, 8)
# Widths of the two convolutions after each of the two fusions.
FUSION_1 = (32, 16)
FUSION_2 = (16, 16)


class DilatedCentre(nn.Module):
  """Two 3x3 convolutions, dilated branches beside each other, and 1x1 over what all of them see.

  [B, Y, X, C] -> [B, Y, X, features]. The 1x1 convolution has the second one's output, then the
  branches in the order of RATES as its input.
  """

  features: int
  branch: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    for i in range(2):
      x = layers.keras_conv_block(self.features, dtype=self.dtype, name=f'conv{i + 1}')(
        x, train=train
      )
    branches = [
      layers.keras_conv_block(self.branch, dilation=rate, dtype=self.dtype, name=f'rate{rate}')(
        x, train=train
      )
      for rate in RATES
    ]
    x = jnp.concatenate([x, *branches], -1)
    return layers.keras_conv_block(self.features, 1, dtype=self.dtype, name='reduce')(
      x, train=train
    )


class SegET(nn.Module):
  """[B, Y, X, C] -> {'logits': [B, Y, X, num_classes]}, float32.

  Attributes:
    num_classes: channels of the logits.
    width: factor on the number of channels of every layer; the first has 16 at width 1.
    skip_mode: the convolution that makes a skip narrow stands beside the way down ('side') or in
      it, before the strided one ('chain').
    branch_channels: of each dilated branch, at width 1.
    dtype: what is computed in, except for the last layer.
    divisor: sizes that are not multiples of it are padded inside.
    receptive_field: (y, x), the largest span of input voxels that one output voxel depends on. Two
      convolutions add 4, and interpolation needs (n + 4) / 2 voxels for an even n: 5 at full size,
      4 + 4 after the first fusion, and (8 + 4 + 4) / 2 = 8 after each level's decoder. The centre
      adds 4 + 16, an encoder's level makes n 2n + 1 + 4, which gives 28, 61, 127, 259, 523, or
      2n + 1 + 6 in a chain: 28, 63, 133, 273, 553. A cell of `divisor` voxels at a multiple of
      `divisor` depends on 269 (284) voxels before it and 254 (269) after.
  """

  num_classes: int
  width: Annotated[float, Field(gt=0)] = 1.0
  skip_mode: Literal['side', 'chain'] = 'side'
  branch_channels: Annotated[int, Field(ge=1)] = CENTRE // 4
  dtype: jnp.dtype = jnp.float32

  divisor: ClassVar[tuple[int, ...]] = (16, 16)

  @property
  def receptive_field(self) -> tuple[int, ...] | None:
    span = 523 if self.skip_mode == 'side' else 553
    return (span, span)

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    def block(x: jax.Array, channels: int, name: str, stride: int = 1) -> jax.Array:
      features = layers.scaled(channels, self.width)
      return layers.keras_conv_block(features, stride=stride, dtype=self.dtype, name=name)(
        x, train=train
      )

    def two_blocks(x: jax.Array, channels: tuple[int, int], name: str) -> jax.Array:
      for i, c in enumerate(channels):
        x = block(x, c, f'{name}_{i + 1}')
      return x

    x = resample.pad_to_multiple(image, self.divisor)
    skips = []
    for i, channels in enumerate(LEVELS, start=1):
      x = two_blocks(x, (channels, channels), f'down{i}')
      skips.append(block(x, channels // 2, f'skip{i}'))
      x = skips[-1] if self.skip_mode == 'chain' else x
      x = block(x, channels, f'stride{i}', stride=2)
    centre, branch = (layers.scaled(c, self.width) for c in (CENTRE, self.branch_channels))
    x = DilatedCentre(centre, branch, self.dtype, name='centre')(x, train=train)
    decoded = []  # levels 4, 3, 2, 1
    for i, channels in reversed(tuple(enumerate(LEVELS, start=1))):
      x = jnp.concatenate([resample.upsample_linear(x, 2), skips[i - 1]], -1)
      x = two_blocks(x, (channels, channels), f'up{i}')
      decoded.append(x)
    d4, d3, d2, d1 = decoded
    x = [resample.upsample_linear(d4, 4), resample.upsample_linear(d3, 2), d2]
    x = two_blocks(jnp.concatenate(x, -1), FUSION_1, 'fusion1')
    x = jnp.concatenate([resample.upsample_linear(x, 2), d1], -1)
    x = two_blocks(x, FUSION_2, 'fusion2')
    logits = layers.Conv(self.num_classes, 1, name='head')(x)
    return {'logits': resample.crop(logits, image.shape[1:-1])}
