"""EM-Net with hybrid convolutions (Yuan et al. 2020): mitochondria and their centrelines in 3D.

Not the EM-net of Khadangi et al. (2021), which is another network. One encoder serves two
decoders, one for the classes and one for the proximity of the centreline; the last module sees
both.

3,173,365 parameters (the paper: 3.2 M) for one input channel and two classes, 2,905,956 without the
centreline. As in the authors' code the first PReLU has a slope of its own, all others share one.
"""

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from emseg_jax.models import layers, resample
from emseg_jax.models.hvec import (
  Hvec,
  HvecSubBlock,
  InstanceNorm,
  Statistics,
  prelu,
  uniform_fan_in,
)

__all__ = ['EmNetHvec']

SLOPE = nn.initializers.constant(0.25)


class Stem(nn.Module):
  """3x3x3 convolution, then a sub-block, each with instance norm and PReLU after it.

  [B, Z, Y, X, C] -> [B, Z, Y, X, features]
  """

  features: int
  statistics: Statistics
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, slope: jax.Array, *, train: bool) -> jax.Array:
    def norm(name):
      return InstanceNorm(self.statistics, self.dtype, name=name)

    own_slope = self.param('negative_slope', SLOPE, ())
    x = layers.Conv(
      self.features, use_bias=False, kernel_init=uniform_fan_in, dtype=self.dtype, name='conv'
    )(x)
    x = prelu(norm('norm1')(x, train=train), own_slope)
    block = HvecSubBlock(self.features, False, self.statistics, self.dtype, name='block')
    return prelu(norm('norm2')(block(x, train=train), train=train), slope)


class EmNetHvec(nn.Module):
  """[B, Z, Y, X, C] -> {'logits': [B, Z, Y, X, num_classes], 'centreline': [B, Z, Y, X, 1]}.

  Both are float32, and neither has been through a softmax or sigmoid; the second is trained to be
  1 on the centreline of an object and to fall to 0 away from it.

  Attributes:
    num_classes: channels of the logits.
    features: channels at full size; twice, four and eight times as many below. The centreline has
      half of that.
    width: factor on `features`, the result rounded to a multiple of 8.
    centreline: whether there is a decoder for the centreline; without, `logits` is all there is.
    upsample: 'half_pixel' interpolates between voxels' centres. The authors' 'align_corners' makes
      the first and last voxels of both grids coincide, so that a part of a volume is not resized
      like the whole.
    norm_statistics: 'block' is the authors' instance norm: the result for a block depends on all of
      it, padding included. 'volume' normalises so in training only and with running averages in
      evaluation, so that with 'half_pixel' a volume can be computed in blocks.
    dtype: what is computed in, except for norms and last layers.
    divisor: sizes that are not multiples of it are padded inside. With 'volume' it is 16 in the
      plane, not 8, since a sub-block of the bridge pools once more: blocks that begin at multiples
      of it then pool the same voxels as the whole.
    receptive_field: (z, y, x), the largest span of input voxels that one output voxel depends on;
      None if that is the whole block. Beyond a cell of `divisor` voxels, a module adds 4 to the
      reach in z, and 8 to the reach in y and x rounded up to an even number; interpolation makes
      r // 2 + 1 of a reach of r, pooling 2·r. Along z from the output to the bridge and back: 8, 9,
      9, 13; 17, 38, 79. In the plane: 16, 18, 18, 18; 44, 96, 197. Without the centreline it is 75
      in z and the same 197 in the plane, where no voxel reaches that far on both sides: 394 in all.
  """

  num_classes: int
  features: Annotated[int, Field(ge=8, multiple_of=8)] = 64
  width: Annotated[float, Field(gt=0)] = 1.0
  centreline: bool = True
  upsample: Literal['half_pixel', 'align_corners'] = 'half_pixel'
  norm_statistics: Statistics = 'block'
  dtype: jnp.dtype = jnp.float32

  @property
  def divisor(self) -> tuple[int, ...]:
    return (4, 8, 8) if self.norm_statistics == 'block' else (4, 16, 16)

  @property
  def receptive_field(self) -> tuple[int, ...] | None:
    if self.norm_statistics == 'block' or self.upsample == 'align_corners':
      return None
    return (162, 410, 410) if self.centreline else (154, 394, 394)

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    def hvec(x: jax.Array, features: int, name: str) -> jax.Array:
      return Hvec(features, self.norm_statistics, self.dtype, name=name)(x, slope, train=train)

    def project(x: jax.Array, features: int, name: str) -> jax.Array:
      return layers.Conv(features, 1, kernel_init=uniform_fan_in, dtype=self.dtype, name=name)(x)

    def head(x: jax.Array, features: int, name: str) -> jax.Array:
      x = layers.Conv(features, 1, kernel_init=uniform_fan_in, name=name)(x)
      return resample.crop(x, image.shape[1:-1])

    def up(x: jax.Array, skip: jax.Array, features: int, name: str) -> jax.Array:
      """Projected, then resized to `skip`; the two commute, and this order costs less."""
      return self._resize(project(x, features, name), skip.shape[1:-1])

    slope = self.param('negative_slope', SLOPE, ())
    f = 8 * layers.scaled(self.features // 8, self.width)
    x = resample.pad_to_multiple(image, self.divisor)
    x1 = Stem(f, self.norm_statistics, self.dtype, name='stem')(x, slope, train=train)
    x2 = hvec(resample.max_pool(x1), 2 * f, 'enc2')
    x3 = hvec(resample.max_pool(x2), 4 * f, 'enc3')
    bridge = hvec(resample.max_pool(x3, (1, 2, 2)), 8 * f, 'bridge')
    shared = up(bridge, x3, 4 * f, 'shared')

    x = hvec(shared + x3, 4 * f, 'seg3')
    x = hvec(up(x, x2, 2 * f, 'seg_up2') + x2, 2 * f, 'seg2')
    x = hvec(up(x, x1, f, 'seg_up1') + x1, f, 'seg1')
    if not self.centreline:
      return {'logits': head(x, self.num_classes, 'head')}

    line = project(shared, 2 * f, 'line_up3') + project(x3, 2 * f, 'line_skip3')
    line = hvec(line, 2 * f, 'line3')
    line = hvec(up(line, x2, f, 'line_up2') + project(x2, f, 'line_skip2'), f, 'line2')
    half = f // 2
    line = hvec(up(line, x1, half, 'line_up1') + project(x1, half, 'line_skip1'), half, 'line1')
    x = hvec(jnp.concatenate([x, line], -1), half, 'fuse')
    return {
      'logits': head(x, self.num_classes, 'head'),
      'centreline': head(line, 1, 'line_head'),
    }

  def _resize(self, x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Trilinear, [B, *spatial, C] -> [B, *size, C]; `size` is a multiple of `spatial`."""
    if self.upsample == 'align_corners':
      return resample.resize_align_corners(x, size)
    factor = tuple(new // old for new, old in zip(size, x.shape[1:-1], strict=True))
    return resample.upsample_linear(x, factor)
