"""SegNet (Badrinarayanan et al. 2017): VGG with 16 layers and its mirror image.

The decoder has no up-sampling of its own: it puts each voxel back to where max pooling took the
largest from, and fills the gaps by convolution.
"""

import functools
from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from pydantic import Field

from emseg_jax.models import layers, resample
from emseg_jax.models.backbones.vgg import CHANNELS, CONVOLUTIONS, Vgg

__all__ = ['SegNet', 'unpool']


def unpool(x: jax.Array, pooled_from: jax.Array) -> jax.Array:
  """Inverse of 2x2 max pooling: each voxel to the place of its cell's largest, 0 elsewhere.

  Of equal voxels the first counts, row by row, as in PyTorch.

  Args:
    x: [B, Y, X, C].
    pooled_from: [B, 2Y, 2X, C], what was pooled; it gets no gradient.

  Returns:
    [B, 2Y, 2X, C].
  """
  batch, rows, columns, channels = x.shape
  cells = pooled_from.reshape(batch, rows, 2, columns, 2, channels)
  pairs = [lax.index_in_dim(cells, i, 2, keepdims=False) for i in range(2)]
  voxels = [lax.index_in_dim(pair, j, 3, keepdims=False) for pair in pairs for j in range(2)]
  largest = functools.reduce(jnp.maximum, voxels)
  placed, free = [], jnp.ones(x.shape, bool)
  for voxel in voxels:
    here = free & ~(voxel < largest)  # not ==, by which NaN would vanish
    placed.append(jnp.where(here, x, 0))
    free &= ~here
  y = jnp.stack(placed, 3).reshape(batch, rows, columns, 2, 2, channels)
  return y.transpose(0, 1, 3, 2, 4, 5).reshape(pooled_from.shape)


class SegNet(nn.Module):
  """[B, Y, X, C] -> {'logits': [B, Y, X, num_classes]}, float32.

  29,444,166 parameters at width 1, three input channels and two classes, of which 4 are the batch
  norm after the last convolution; 7,367,718 at width 0.5. All convolutions have biases.

  Attributes:
    num_classes: channels of the logits.
    width: factor on the number of channels of every layer.
    dtype: what is computed in, except for the last layer.
    divisor: sizes that are not multiples of it are padded inside.
    receptive_field: (y, x), the largest span of input voxels that one output voxel depends on. It
      is also what a cell of `divisor` voxels depends on, at multiples of `divisor`: the cell and
      186 voxels on each side. From the output to 1/32 the reach beyond the cell grows by the
      convolutions of each level and is halved, rounded up: 2, 3, 5, 6, 6, then 3 at 1/32, where
      there is no convolution; back to full size it doubles and grows likewise: 9, 21, 45, 92, 186.
  """

  num_classes: int
  width: Annotated[float, Field(gt=0)] = 1.0
  dtype: jnp.dtype = jnp.float32

  divisor: ClassVar[tuple[int, ...]] = (32, 32)
  receptive_field: ClassVar[tuple[int, ...] | None] = (404, 404)

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    encoder = Vgg(norm=True, width=self.width, dtype=self.dtype, name='backbone')
    outputs = encoder(resample.pad_to_multiple(image, self.divisor), train=train)
    x = resample.max_pool(outputs[-1])
    for level in reversed(range(len(outputs))):
      x = unpool(x, outputs[level])
      channels = [CHANNELS[level]] * (CONVOLUTIONS[16][level] - 1)
      if level > 0:  # the head is the last convolution of full size
        channels.append(CHANNELS[level - 1])
      for i, c in enumerate(channels):
        x = layers.ConvBlock(
          layers.scaled(c, self.width),
          use_bias=True,
          dtype=self.dtype,
          name=f'up{level + 1}_block{i + 1}',
        )(x, train=train)
    logits = layers.ConvBlock(self.num_classes, use_bias=True, relu=False, name='head')(
      x, train=train
    )
    return {'logits': resample.crop(logits, image.shape[1:-1])}
