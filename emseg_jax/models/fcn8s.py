"""FCN-8s (Long et al. 2015) on VGG with 16 layers.

The dense layers of VGG are convolutions here, fc6 and fc7; classes are scored at 1/32, 1/16 and 1/8
of the input's size and brought together by transposed convolutions. The original pads the image by
100 voxels and crops; here every convolution pads, so that cells lie where they should.
"""

from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from pydantic import Field

from emseg_jax.models import layers, resample
from emseg_jax.models.backbones.vgg import Vgg

__all__ = ['BilinearUpConv', 'Fcn8s']


def bilinear(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
  """Kernel [2f, 2f, C, F] that interpolates each channel on its own."""
  del key
  factor = shape[0] // 2
  weights = 1 - jnp.abs(jnp.arange(shape[0]) + 0.5 - factor) / factor
  kernel = jnp.outer(weights, weights)[:, :, None, None] * jnp.eye(*shape[2:])[None, None]
  return kernel.astype(dtype)


class BilinearUpConv(nn.Module):
  """Transposed convolution that starts as linear interpolation, [B, Y, X, C] -> [B, fY, fX, F].

  Input voxel j adds kernel[t] times itself to the output voxel f·j - f/2 + t, for t = 0 .. 2f - 1,
  along each axis: PyTorch's kernel size 2f, stride f and padding f/2. No bias. Each of the f/2-wide
  halves of the output cells sees two input voxels per axis and is one 2x2 convolution, which keeps
  rows on their device.
  """

  features: int
  factor: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    f, half = self.factor, self.factor // 2
    (batch, rows, columns, inputs), features = x.shape, self.features
    kernel = self.param('kernel', bilinear, (2 * f, 2 * f, inputs, features))
    taps = kernel.reshape(4, half, 4, half, inputs, features)
    parts = []
    for a in range(2):
      for b in range(2):
        # Half 0 of a cell sees its own voxel and the one before, half 1 its own and the one after.
        part = taps[3 - a :: -2, :, 3 - b :: -2].transpose(0, 2, 4, 1, 3, 5)
        part = part.reshape(2, 2, inputs, half * half * features)
        padding = ((1 - a, a), (1 - b, b))
        parts.append(
          lax.conv_general_dilated(
            x, part, (1, 1), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
          )
        )
    y = jnp.stack(parts, 3).reshape(batch, rows, columns, 2, 2, half, half, features)
    y = y.transpose(0, 1, 3, 5, 2, 4, 6, 7)  # [B, Y, a, f/2, X, b, f/2, F]
    return y.reshape(batch, f * rows, f * columns, features)


class Fcn8s(nn.Module):
  """[B, Y, X, C] -> {'logits': [B, Y, X, num_classes]}, float32.

  Parameters at width 1, three input channels and one class: 134,265,699, with fc_kernel = 3
  50,379,619, and with fc_channels = 512 as well 17,338,723; batch norm adds 8,448 and
  4·fc_channels.

  Attributes:
    num_classes: channels of the logits.
    width: factor on the number of channels of every layer.
    fc_channels: of fc6 and fc7, before the factor.
    fc_kernel: of fc6; 7 is the original.
    norm: 'batch' normalises after the convolutions of VGG, fc6 and fc7.
    dropout: rate after fc6 and fc7.
    dtype: what is computed in up to the scores, which are float32.
    divisor: sizes that are not multiples of it are padded inside.
    receptive_field: (y, x), the largest span of input voxels that one output voxel depends on. It
      is also what a cell of `divisor` voxels depends on, at multiples of `divisor`. An output voxel
      sees 2 voxels at 1/8, these 2 or 3 at 1/16 and those 2 or 3 at 1/32, which fc6 makes 9 (or
      5); a pooling doubles the span and n convolutions add 2n: 24, 54, 114, 232 and 468 voxels at
      1/16 to 1/1 (or 16, 38, 82, 168 and 340).
  """

  num_classes: int
  width: Annotated[float, Field(gt=0)] = 1.0
  fc_channels: Annotated[int, Field(ge=1)] = 4096
  fc_kernel: Literal[7, 3] = 7
  norm: Literal['none', 'batch'] = 'none'
  dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
  dtype: jnp.dtype = jnp.float32

  divisor: ClassVar[tuple[int, ...]] = (32, 32)

  @property
  def receptive_field(self) -> tuple[int, ...] | None:
    span = {7: 468, 3: 340}[self.fc_kernel]
    return (span, span)

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    norm = self.norm == 'batch'
    dropout = nn.Dropout(self.dropout, deterministic=not train)
    encoder = Vgg(norm=norm, width=self.width, dtype=self.dtype, name='backbone')
    outputs = encoder(resample.pad_to_multiple(image, self.divisor), train=train)
    pool3, pool4, x = (resample.max_pool(x) for x in outputs[2:])
    for name, size in (('fc6', self.fc_kernel), ('fc7', 1)):
      features = layers.scaled(self.fc_channels, self.width)
      x = layers.ConvBlock(features, size, use_bias=True, norm=norm, dtype=self.dtype, name=name)(
        x, train=train
      )
      x = dropout(x)
    scores = layers.Conv(self.num_classes, 1, name='score_fc7')(x)
    scores = BilinearUpConv(self.num_classes, 2, name='up_fc7')(scores)
    scores += layers.Conv(self.num_classes, 1, name='score_pool4')(pool4)
    scores = BilinearUpConv(self.num_classes, 2, name='up_pool4')(scores)
    scores += layers.Conv(self.num_classes, 1, name='score_pool3')(pool3)
    logits = BilinearUpConv(self.num_classes, 8, name='up_pool3')(scores)
    return {'logits': resample.crop(logits, image.shape[1:-1])}
