"""VGG with 16 or 19 layers (Simonyan and Zisserman 2015), without its classifier.

Weights trained elsewhere fit: `block{b}_conv{i}` is the layer of that name in Keras, and in
torchvision the convolutions of `features` in the same order.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from emseg_jax.models import layers, resample

__all__ = ['CHANNELS', 'CONVOLUTIONS', 'Vgg', 'VggDepth']

VggDepth = Literal[16, 19]

CHANNELS = (64, 128, 256, 512, 512)  # of each block
# 3x3 convolutions of each block; three dense layers, absent here, make up the 16 or 19.
CONVOLUTIONS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class Vgg(nn.Module):
  """[B, Y, X, C] -> five arrays, what each block puts out before its max pooling.

  They have 64, 128, 256, 512 and 512 channels at 1/1, 1/2, 1/4, 1/8 and 1/16 of the input's size,
  rounded down. At width 1, C = 3 and without norm: 14,714,688 parameters with 16 layers, 20,024,384
  with 19; batch norm adds 8,448 or 11,008.

  Attributes:
    depth: number of layers, the three dense ones that are absent here included.
    norm: batch norm after each convolution, with PyTorch's constants; the convolutions keep their
      biases.
    width: factor on the number of channels of every layer.
    dtype: what is computed in.
  """

  depth: VggDepth = 16
  norm: bool = False
  width: float = 1.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
    outputs = []
    for b, (channels, convolutions) in enumerate(
      zip(CHANNELS, CONVOLUTIONS[self.depth], strict=True), start=1
    ):
      if outputs:
        x = resample.max_pool(x)
      features = layers.scaled(channels, self.width)
      for i in range(1, convolutions + 1):
        x = layers.Conv(
          features,
          kernel_init=layers.kaiming_fan_out,
          dtype=self.dtype,
          name=f'block{b}_conv{i}',
        )(x)
        if self.norm:
          x = layers.batch_norm(train=train, dtype=self.dtype, name=f'block{b}_norm{i}')(x)
        x = nn.relu(x)
      outputs.append(x)
    return tuple(outputs)
