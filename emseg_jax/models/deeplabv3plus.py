"""DeepLabv3+ (Chen et al. 2018) on ResNet-50 with output stride 8, as in mmsegmentation.

43,576,788 parameters at width 1, three input channels and two classes, 43,577,558 with three: the
43.58 M of the paper of PmcaNet, which compares with it. They include the auxiliary head.
"""

import functools
from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from emseg_jax.models import heads, layers, resample
from emseg_jax.models.aspp import Aspp, Decoder, SeparableBlock
from emseg_jax.models.backbones.resnet import ResNet50D8, Stem

__all__ = ['DeepLabV3Plus']

HEAD_CHANNELS = 512
LOW_CHANNELS = 48
AUX_CHANNELS = 256
RATES = (12, 24, 36)


class DeepLabV3Plus(nn.Module):
  """[B, Y, X, C] -> {'logits': [B, Y, X, num_classes]}, float32.

  In training there is 'aux/fcn' of the same shape beside it. With C = 3 and two classes there are
  43,576,788 parameters, 41,216,466 without the auxiliary head, 43,557,556 with the stem 'v1'.

  Attributes:
    num_classes: channels of the logits.
    width: factor on the number of channels of every layer.
    stem: of the backbone; 'v1' fits weights of torchvision.
    aux: whether there is an auxiliary head; it is left out in evaluation.
    dtype: what is computed in, except for the last layers.
    divisor: sizes that are not multiples of it are padded inside.
    receptive_field: None, the pyramid has the mean of the whole image.
  """

  num_classes: int
  width: Annotated[float, Field(gt=0)] = 1.0
  stem: Stem = 'v1c'
  aux: bool = True
  dtype: jnp.dtype = jnp.float32

  divisor: ClassVar[tuple[int, ...]] = (8, 8)
  receptive_field: ClassVar[tuple[int, ...] | None] = None

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    block = functools.partial(layers.ConvBlock, dtype=self.dtype)
    separable = functools.partial(SeparableBlock, dtype=self.dtype)
    features = layers.scaled(HEAD_CHANNELS, self.width)
    x = resample.pad_to_multiple(image, self.divisor)
    c2, _, c4, c5 = ResNet50D8(self.width, self.stem, self.dtype, name='backbone')(x, train=train)
    x = Aspp(features, RATES, block=block, atrous=separable, projection=3, name='aspp')(
      c5, train=train
    )
    x = Decoder(
      features,
      layers.scaled(LOW_CHANNELS, self.width),
      factor=2,
      block=block,
      refine=separable,
      name='decoder',
    )(c2, x, train=train)
    x = nn.Dropout(0.1, deterministic=not train)(x)
    logits = resample.upsample_linear(layers.Conv(self.num_classes, 1, name='head')(x), 4)
    outputs = {'logits': resample.crop(logits, image.shape[1:-1])}
    if self.aux and (train or self.is_initializing()):
      channels = layers.scaled(AUX_CHANNELS, self.width)
      logits = heads.FcnHead(self.num_classes, channels, self.dtype, name='aux')(c4, train=train)
      logits = resample.upsample_linear(logits, self.divisor)
      outputs['aux/fcn'] = resample.crop(logits, image.shape[1:-1])
    return outputs
