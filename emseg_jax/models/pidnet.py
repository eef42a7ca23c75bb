"""PIDNet (Xu et al. 2023): branches for detail (P), context (I) and boundaries (D).

7,716,549 parameters (S), 28,758,725 (M) and 37,305,573 (L) with the heads for training, three input
channels and two classes. The paper of PmcaNet, which compares with PIDNet, prints 11.65 M, which is
none of them; S is the default.
"""

from typing import Annotated, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from emseg_jax.models import layers, resample
from emseg_jax.models import pidnet_blocks as blocks

__all__ = ['PidNet']


class _Size(NamedTuple):
  channels: int  # C
  shallow: int  # blocks per stage of I at 1/4 and 1/8, and of P
  deep: int  # blocks per stage of I at 1/16 and 1/32
  pooling: int  # channels of a level of the pyramid
  head: int  # channels of the class heads
  light: bool  # the quick forms of D, of the pyramid and of the fusion


SIZES = {
  's': _Size(32, 2, 3, 96, 128, True),
  'm': _Size(64, 2, 3, 96, 128, True),
  'l': _Size(64, 3, 4, 112, 256, False),
}


class _Features(NamedTuple):
  """What the heads read, at 1/8 of the input's size: 2·C, 2·C and 4·C channels."""

  detail: jax.Array
  boundary: jax.Array
  fused: jax.Array


class Branches(nn.Module):
  """[B, Y, X, C], sizes multiples of 64 -> features at 1/8 of it; attributes as in `PidNet`."""

  size: Literal['s', 'm', 'l']
  width: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> _Features:
    size = SIZES[self.size]
    c = layers.scaled(size.channels, self.width)

    def basic(x: jax.Array, channels: int, count: int, name: str, stride: int = 1) -> jax.Array:
      for b in range(count):
        x = blocks.BasicBlock(
          channels, stride if b == 0 else 1, b < count - 1, self.dtype, name=f'{name}_{b + 1}'
        )(x, train=train)
      return x

    def bottleneck(x: jax.Array, channels: int, name: str, stride: int = 1) -> jax.Array:
      return blocks.Bottleneck(channels, stride, self.dtype, name=name)(x, train=train)

    def block(x: jax.Array, channels: int, kernel: int, name: str) -> jax.Array:
      return layers.ConvBlock(channels, kernel, relu=False, dtype=self.dtype, name=name)(
        x, train=train
      )

    def pag(p: jax.Array, x: jax.Array, factor: int, stage: int) -> jax.Array:
      x = block(x, 2 * c, 1, f'compress{stage}')
      return blocks.PixelAttention(c, factor, self.dtype, name=f'pag{stage}')(p, x, train=train)

    for s in range(2):
      x = layers.ConvBlock(c, stride=2, use_bias=True, dtype=self.dtype, name=f'stem{s + 1}')(
        x, train=train
      )
    x = nn.relu(basic(x, c, size.shallow, 'i1'))
    x = nn.relu(basic(x, 2 * c, size.shallow, 'i2', 2))
    p = basic(x, 2 * c, size.shallow, 'p3')
    d = basic(x, c if size.light else 2 * c, 1, 'd3')
    x = nn.relu(basic(x, 4 * c, size.deep, 'i3', 2))
    detail = p = pag(p, x, 2, 3)
    d += resample.upsample_linear(block(x, d.shape[-1], 3, 'diff3'), 2)
    x = nn.relu(basic(x, 8 * c, size.deep, 'i4', 2))
    p = pag(basic(nn.relu(p), 2 * c, size.shallow, 'p4'), x, 4, 4)
    d = nn.relu(d)
    d = bottleneck(d, c, 'd4') if size.light else basic(d, 2 * c, 1, 'd4')
    boundary = d = d + resample.upsample_linear(block(x, 2 * c, 3, 'diff4'), 4)
    p = bottleneck(nn.relu(p), 2 * c, 'p5')
    d = bottleneck(nn.relu(d), 2 * c, 'd5')
    x = bottleneck(bottleneck(x, 8 * c, 'i5_1', 2), 8 * c, 'i5_2')
    x = blocks.PyramidPooling(
      layers.scaled(size.pooling, self.width), 4 * c, size.light, self.dtype, name='pyramid'
    )(x, train=train)
    x = resample.upsample_linear(x, 8)
    fusion = blocks.LightBoundaryFusion if size.light else blocks.BoundaryFusion
    return _Features(
      detail, boundary, fusion(4 * c, self.dtype, name='fusion')(p, x, d, train=train)
    )


class PidNet(nn.Module):
  """[B, Y, X, C] -> {'logits': [B, Y, X, num_classes]}, float32.

  In training there are two outputs more: 'aux/p', class logits of the P branch, of the same shape,
  and 'boundary' [B, Y, X, 1], the logit of a voxel lying on a boundary between classes.

  Attributes:
    num_classes: channels of the logits.
    size: the variants S, M and L. M has branches of twice the channels; L has more blocks as well,
      and the full forms of the pyramid (DAPPM) and of the fusion (Bag).
    width: factor on the number of channels of every layer.
    dtype: what is computed in, except for the last layers.
    divisor: sizes that are not multiples of it are padded inside.
    receptive_field: None, the pyramid has the mean of the whole image.
  """

  num_classes: int
  size: Literal['s', 'm', 'l'] = 's'
  width: Annotated[float, Field(gt=0)] = 1.0
  dtype: jnp.dtype = jnp.float32

  divisor: ClassVar[tuple[int, ...]] = (64, 64)
  receptive_field: ClassVar[tuple[int, ...] | None] = None

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    size = SIZES[self.size]

    def predict(x: jax.Array, num_classes: int, channels: int, name: str) -> jax.Array:
      features = layers.scaled(channels, self.width)
      logits = blocks.Head(num_classes, features, self.dtype, name=name)(x, train=train)
      return resample.crop(resample.upsample_linear(logits, 8), image.shape[1:-1])

    x = resample.pad_to_multiple(image, self.divisor)
    features = Branches(self.size, self.width, self.dtype, name='branches')(x, train=train)
    outputs = {'logits': predict(features.fused, self.num_classes, size.head, 'head')}
    if train or self.is_initializing():
      outputs['aux/p'] = predict(features.detail, self.num_classes, size.head, 'head_p')
      outputs['boundary'] = predict(features.boundary, 1, size.channels, 'head_d')
    return outputs
