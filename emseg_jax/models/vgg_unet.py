"""U-Net whose encoder is VGG: Simonyan and Zisserman 2015 inside Ronneberger et al. 2015.

The common recipe of Keras: block 5 of VGG is the bridge, its last pooling is absent. The encoder
takes weights of ImageNet; the decoder has batch norm with the constants of Keras.
"""

from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from emseg_jax.models import layers, resample
from emseg_jax.models.backbones.vgg import Vgg, VggDepth

__all__ = ['VggUNet']

DECODER = (64, 128, 256, 512)  # channels of each level, that of full size first

glorot_uniform = nn.initializers.glorot_uniform()


class DecoderBlock(nn.Module):
  """Twice 3x3 convolution, batch norm if wanted, ReLU: [B, Y, X, C] -> [B, Y, X, features]."""

  features: int
  norm: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    for i in (1, 2):
      x = layers.Conv(self.features, kernel_init=glorot_uniform, dtype=self.dtype, name=f'conv{i}')(
        x
      )
      if self.norm:
        x = layers.batch_norm(
          train=train, momentum=0.99, epsilon=1e-3, dtype=self.dtype, name=f'norm{i}'
        )(x)
      x = nn.relu(x)
    return x


class VggUNet(nn.Module):
  """[B, Y, X, C] -> {'logits': [B, Y, X, num_classes]}, float32.

  With 16 layers, width 1, three input channels and one class it has 25,858,497 parameters, 3,840
  running statistics beside them, and 25,854,657 parameters without norm. With 19 layers there are
  5,309,696 parameters more.

  Attributes:
    num_classes: channels of the logits.
    width: factor on the number of channels of every layer.
    depth: of VGG.
    norm: 'batch' normalises after the 3x3 convolutions of the decoder; the encoder has no norm.
    dtype: what is computed in, except for the last layer.
    divisor: sizes that are not multiples of it are padded inside.
    receptive_field: (y, x), the largest span of input voxels that one output voxel depends on. It
      is also what a cell of `divisor` voxels depends on, at multiples of `divisor`: the cell and
      122 voxels on each side, 150 with 19 layers. From the output to the bridge the reach beyond
      the cell is halved, rounded up, and grows by 2 per level: 2, 3, 4, 4; the bridge has 3 or 4
      convolutions: 5 or 6. Back to full size it doubles and grows by the convolutions of the
      encoder's level: 13, 29, 60, 122 or 16, 36, 74, 150.
  """

  num_classes: int
  width: Annotated[float, Field(gt=0)] = 1.0
  depth: VggDepth = 16
  norm: Literal['batch', 'none'] = 'batch'
  dtype: jnp.dtype = jnp.float32

  divisor: ClassVar[tuple[int, ...]] = (16, 16)

  @property
  def receptive_field(self) -> tuple[int, ...] | None:
    span = 16 + 2 * {16: 122, 19: 150}[self.depth]
    return (span, span)

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    x = resample.pad_to_multiple(image, self.divisor)
    encoder = Vgg(self.depth, width=self.width, dtype=self.dtype, name='backbone')
    *skips, x = encoder(x, train=train)
    for i, channels in reversed(tuple(enumerate(DECODER))):
      features = layers.scaled(channels, self.width)
      x = layers.UpConv(features, dtype=self.dtype, name=f'upconv{i + 1}')(x)
      x = DecoderBlock(features, self.norm == 'batch', self.dtype, name=f'up{i + 1}')(
        jnp.concatenate([x, skips[i]], -1), train=train
      )
    logits = layers.Conv(self.num_classes, 1, kernel_init=glorot_uniform, name='head')(x)
    return {'logits': resample.crop(logits, image.shape[1:-1])}
