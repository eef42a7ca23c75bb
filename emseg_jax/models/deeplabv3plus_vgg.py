"""DeepLabv3+ (Chen et al. 2018) with a VGG19-like encoder, which the paper of SegET compares with.

That paper gives the encoder's 23 convolutions in 8 blocks, but no channel numbers. Ours: VGG19's
five blocks (Simonyan and Zisserman 2015) at half their channels, then three more, two of them
dilated. 12,675,057 parameters at width 1, one input channel and one class.
"""

import functools
from typing import Annotated, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from emseg_jax.models import layers, resample
from emseg_jax.models.aspp import Aspp, Decoder

__all__ = ['DeepLabV3PlusVgg', 'VggEncoder']

HEAD_CHANNELS = 256
LOW_CHANNELS = 48
RATES = (6, 12, 18)
# Size of the input over that of the low-level features.
LOW_STRIDE = {'block2': 2, 'block3': 4}


class _Stage(NamedTuple):
  convolutions: int
  channels: int
  pool: bool
  dilation: int


STAGES = (
  _Stage(2, 32, True, 1),
  _Stage(2, 64, True, 1),
  _Stage(4, 128, True, 1),
  _Stage(4, 256, True, 1),
  _Stage(4, 256, False, 1),
  _Stage(3, 256, False, 2),
  _Stage(2, 256, False, 4),
  _Stage(2, 256, False, 1),
)


class VggEncoder(nn.Module):
  """[B, Y, X, C] -> the outputs of the eight blocks, before their pooling.

  They have 32, 64, 128 and five times 256 channels at 1, 1/2, 1/4, 1/8 and four times 1/16 of the
  input's size, which is a multiple of 16.

  Attributes:
    width: factor on the number of channels of every layer.
    dtype: what is computed in.
  """

  width: float = 1.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
    outputs = []
    for s, stage in enumerate(STAGES):
      if s and STAGES[s - 1].pool:
        x = resample.max_pool(x)
      for c in range(stage.convolutions):
        x = layers.keras_conv_block(
          layers.scaled(stage.channels, self.width),
          dilation=stage.dilation,
          dtype=self.dtype,
          name=f'block{s + 1}_{c + 1}',
        )(x, train=train)
      outputs.append(x)
    return tuple(outputs)


class DeepLabV3PlusVgg(nn.Module):
  """[B, Y, X, C] -> {'logits': [B, Y, X, num_classes]}, float32.

  With C = 1 there are 12,675,057 parameters for one class and 12,675,314 for two; 3,072 more with
  low_level = 'block3', 576 more with C = 3.

  Attributes:
    num_classes: channels of the logits.
    width: factor on the number of channels of every layer.
    low_level: the block whose output the decoder adds, at 1/2 or 1/4 of the input's size; the
      decoder works at that size.
    dtype: what is computed in, except for the last layer.
    divisor: sizes that are not multiples of it are padded inside.
    receptive_field: None, the pyramid has the mean of the whole image.
  """

  num_classes: int
  width: Annotated[float, Field(gt=0)] = 1.0
  low_level: Literal['block2', 'block3'] = 'block2'
  dtype: jnp.dtype = jnp.float32

  divisor: ClassVar[tuple[int, ...]] = (16, 16)
  receptive_field: ClassVar[tuple[int, ...] | None] = None

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    block = functools.partial(layers.keras_conv_block, dtype=self.dtype)
    features = layers.scaled(HEAD_CHANNELS, self.width)
    stride = LOW_STRIDE[self.low_level]
    x = resample.pad_to_multiple(image, self.divisor)
    blocks = VggEncoder(self.width, self.dtype, name='encoder')(x, train=train)
    low = blocks[1 if self.low_level == 'block2' else 2]
    x = Aspp(features, RATES, block=block, atrous=block, projection=1, name='aspp')(
      blocks[-1], train=train
    )
    x = Decoder(
      features,
      layers.scaled(LOW_CHANNELS, self.width),
      factor=self.divisor[0] // stride,
      block=block,
      refine=block,
      name='decoder',
    )(low, x, train=train)
    logits = resample.upsample_linear(layers.Conv(self.num_classes, 1, name='head')(x), stride)
    return {'logits': resample.crop(logits, image.shape[1:-1])}
