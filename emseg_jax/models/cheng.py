"""The 2D and 3D networks of Cheng and Varshney (2017): factorised kernels, random down-sampling.

The paper's figure and the public re-implementation by Franco-Barranco et al. differ in the last two
encoding blocks, see `layout`. Parameters for 1 input channel and 2 classes: 616,397 ('figure') or
591,909 ('code') in 2D, 821,997 or 788,293 in 3D.
"""

from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from emseg_jax.models import layers, resample
from emseg_jax.models.stochastic_downsampling import stochastic_downsample

__all__ = ['Cheng2D', 'Cheng3D']

STEM = 16
ENCODER = {
  'figure': (24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 120, 128),
  'code': (24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120),
}
DOWN = (2, 6)  # the blocks that halve the size
DECODER = ((64, 4), (32, 2))  # channels of an up-sampling and number of bottlenecks after it
CELL = 4  # the paper's t

# The decoder has no activation: weights of variance 1 / fan-in keep the variance, and half of that
# where two paths are added. He's rule would multiply it by 10 in each bottleneck.
_KEEP = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
_HALVE = nn.initializers.variance_scaling(0.5, 'fan_in', 'truncated_normal')


class NormAct(nn.Module):
  """Batch norm and PReLU with a slope per channel, 0 at the start as in Keras."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = layers.batch_norm(train=train, dtype=self.dtype, momentum=0.99, epsilon=1e-3, name='norm')(
      x
    )
    slope = self.param('slope', nn.initializers.zeros, (x.shape[-1],)).astype(x.dtype)
    return jnp.where(x > 0, x, x * slope.reshape((1,) * (x.ndim - 1) + (-1,)))


class FactorisedConv(nn.Module):
  """One convolution of size 3 along each axis, side by side.

  [B, *spatial, C] -> [B, *(spatial / stride), features]. The last axis comes first and gets what is
  left of the channels. A stride pads at the end only, as Keras does for even sizes.
  """

  features: int
  stride: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    rank = x.ndim - 2
    outputs = []
    for i in range(rank):
      size = tuple(3 if axis == rank - 1 - i else 1 for axis in range(rank))
      features = self.features // rank + (i < self.features % rank)
      if self.stride == 1:
        conv = layers.Conv(features, size, dtype=self.dtype, name=f'conv{i + 1}')
      else:
        conv = _strided(features, size, self.dtype, name=f'conv{i + 1}')
      outputs.append(conv(x))
    return jnp.concatenate(outputs, -1)


def _strided(features: int, size: tuple[int, ...], dtype: jnp.dtype, *, name: str) -> nn.Conv:
  """Convolution of stride 2: with a size of 3, output n sees 2n to 2n + 2."""
  init = nn.initializers.he_normal()
  return nn.Conv(features, size, strides=2, kernel_init=init, dtype=dtype, name=name)


class EncodeBlock(nn.Module):
  """Pre-activated residual block: [B, *spatial, C] -> [B, *(spatial or spatial / 2), features].

  The shortcut is the input, with channels of zeros added; with `down` it is down-sampled, at random
  in training if `stochastic`, and convolved 1x1.
  """

  features: int
  down: bool
  stochastic: bool
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    if self.down:
      key = self.make_rng('dropout') if train and self.stochastic else None
      shortcut = stochastic_downsample(x, key, cell=CELL)
      shortcut = layers.Conv(self.features, 1, dtype=self.dtype, name='shortcut')(shortcut)
    else:
      added = self.features - x.shape[-1]
      shortcut = jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (0, added)))
    x = NormAct(self.dtype, name='act1')(x, train=train)
    stride = 2 if self.down else 1
    x = FactorisedConv(self.features, stride, self.dtype, name='convs1')(x)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    x = NormAct(self.dtype, name='act2')(x, train=train)
    return shortcut + FactorisedConv(self.features, 1, self.dtype, name='convs2')(x)


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolution plus one of 1x1, all linear: [B, *spatial, C] -> [..., features].

  The sizes are 1x1x1 and 3x3x3 in 3D.
  """

  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    def conv(x: jax.Array, features: int, size: int, init: layers.Initializer, name: str):
      return layers.Conv(features, size, kernel_init=init, dtype=self.dtype, name=name)(x)

    inner = max(1, self.features // 4)
    shortcut = conv(x, self.features, 1, _HALVE, 'shortcut')
    x = conv(x, inner, 1, _KEEP, 'conv1')
    x = conv(x, inner, 3, _KEEP, 'conv2')
    return shortcut + conv(x, self.features, 1, _HALVE, 'conv3')


class TransposedConv(nn.Module):
  """Transposed convolution of size 3 and stride 2: [B, *spatial, C] -> [B, *(2·spatial), features].

  Parameters (kernel [3, ..., C, features], bias) and result are those of `nn.ConvTranspose` with
  padding 'SAME', whose alignment is Keras': x[n] adds to outputs 2n to 2n + 2. Written as one
  product for all taps and sums of shifted taps, it keeps split rows on their device.
  """

  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    rank, inputs = x.ndim - 2, x.shape[-1]
    # An output voxel sees (3 / 2)^rank of the 3^rank taps on average.
    init = nn.initializers.variance_scaling(2.0**rank, 'fan_in', 'truncated_normal')
    kernel = self.param('kernel', init, (*(3,) * rank, inputs, self.features)).astype(self.dtype)
    kernel = jnp.moveaxis(kernel, -2, 0).reshape(inputs, -1)
    x = (x.astype(self.dtype) @ kernel).reshape(*x.shape[:-1], *(3,) * rank, self.features)
    for axis in range(1, rank + 1):
      # The taps of the axes before are merged already: this axis' stand at rank + 1.
      # lax.conv_transpose correlates: an input's first output comes from the last tap.
      third, second, first = jnp.moveaxis(x, rank + 1, 0)
      phases = jnp.stack([first + resample.shift(third, axis, 1), second], axis + 1)
      x = phases.reshape(*x.shape[:axis], 2 * x.shape[axis], *phases.shape[axis + 2 :])
    bias = self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
    return x + bias.reshape((1,) * (x.ndim - 1) + (-1,))


class _Cheng(nn.Module):
  """The network in `rank` dimensions.

  [B, *spatial, C] -> {'logits': [B, *spatial, num_classes]}, float32.

  Attributes:
    num_classes: channels of the logits.
    width: factor on the number of channels of every layer.
    layout: whose channels the last two encoding blocks have.
    stochastic: whether shortcuts are down-sampled at random in training.
    dropout: rate between the convolutions of an encoding block.
    dtype: what is computed in, except for the last layer.
    divisor: sizes that are not multiples of it are padded inside: 8 for three halvings, twice that
      for whole cells of stochastic downsampling.
    receptive_field: per axis, the largest span of input voxels that one output voxel depends on in
      evaluation. Backwards from output voxel 0 that is -2 to 2 before the last bottlenecks at 1/2,
      -6 to 5 before the others at 1/4, -16 to 14 before the last encoding blocks at 1/8, -40 to 38
      and -86 to 84 before those at 1/4 and 1/2, and -172 to 170 in the image.
  """

  num_classes: int
  width: Annotated[float, Field(gt=0)] = 1.0
  layout: Literal['figure', 'code'] = 'figure'
  stochastic: bool = True
  dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
  dtype: jnp.dtype = jnp.float32

  rank: ClassVar[int]

  @property
  def divisor(self) -> tuple[int, ...]:
    return (4 * CELL if self.stochastic else 8,) * self.rank

  @property
  def receptive_field(self) -> tuple[int, ...] | None:
    return (343,) * self.rank

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    x = resample.pad_to_multiple(image, self.divisor)
    stem = _strided(layers.scaled(STEM, self.width), (3,) * self.rank, self.dtype, name='stem')
    x = jnp.concatenate([stem(x), resample.max_pool(x).astype(self.dtype)], -1)
    for i, channels in enumerate(ENCODER[self.layout]):
      # Each axis has a kernel of its own, and a shortcut cannot lose channels.
      features = max(layers.scaled(channels, self.width), self.rank, x.shape[-1])
      x = EncodeBlock(
        features, i in DOWN, self.stochastic, self.dropout, self.dtype, name=f'encode{i + 1}'
      )(x, train=train)
    for i, (channels, bottlenecks) in enumerate(DECODER):
      features = layers.scaled(channels, self.width)
      x = TransposedConv(features, self.dtype, name=f'up{i + 1}')(x)
      for j in range(bottlenecks):
        x = Bottleneck(features, self.dtype, name=f'decode{i + 1}_{j + 1}')(x)
    logits = layers.UpConv(self.num_classes, name='head')(x)
    return {'logits': resample.crop(logits, image.shape[1:-1])}


class Cheng2D(_Cheng):
  """[B, Y, X, C] -> {'logits': [B, Y, X, num_classes]}; attributes as in `_Cheng`."""

  rank: ClassVar[int] = 2


class Cheng3D(_Cheng):
  """[B, Z, Y, X, C] -> {'logits': [B, Z, Y, X, num_classes]}; attributes as in `_Cheng`."""

  rank: ClassVar[int] = 3
