"""Segmenter (Strudel et al. 2021): ViT-B/16 and the mask transformer.

102,383,620 parameters for 3 input channels, 2 classes and images of 512 x 512 pixels; 102,497,580
for 150 classes.
"""

from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from emseg_jax.models import resample
from emseg_jax.models.backbones import vit

__all__ = ['MaskTransformer', 'Segmenter']

EPSILON = 1e-5


def _unit(x: jax.Array) -> jax.Array:
  """Divides vectors by their length."""
  return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


class MaskTransformer(nn.Module):
  """Tokens [B, gy, gx, C] -> logits [B, gy, gx, num_classes], float32.

  A learnt embedding of every class joins the tokens in `depth` blocks. A logit is the cosine of a
  patch and a class after a projection of each, normalised over the classes; hence there have to be
  two at least, and two give nearly the same logits (plus and minus 1, times the norm's scale)
  wherever their cosines differ by much more than 0.006, twice the root of the norm's epsilon.
  """

  num_classes: int
  depth: int
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    batch, *grid, channels = x.shape
    x = vit.Dense(channels, dtype=self.dtype, name='proj')(x.reshape(batch, -1, channels))
    embedding = self.param('class_embed', vit.small_normal, (1, self.num_classes, channels))
    embedding = embedding.astype(self.dtype)
    embedding = jnp.broadcast_to(embedding, (batch, self.num_classes, channels))
    x = jnp.concatenate([x, embedding], 1)
    for i in range(self.depth):
      x = vit.Block(EPSILON, self.dropout, self.dtype, name=f'block{i}')(x, train=train)
    x = vit.layer_norm(epsilon=EPSILON, dtype=jnp.float32, name='norm')(x)
    init = nn.initializers.normal(channels**-0.5)
    patches, classes = x[:, : -self.num_classes], x[:, -self.num_classes :]
    patches = nn.Dense(channels, use_bias=False, kernel_init=init, name='patch_proj')(patches)
    classes = nn.Dense(channels, use_bias=False, kernel_init=init, name='class_proj')(classes)
    masks = jnp.einsum('bnc,bkc->bnk', _unit(patches), _unit(classes))
    masks = vit.layer_norm(epsilon=EPSILON, dtype=jnp.float32, name='mask_norm')(masks)
    return masks.reshape(batch, *grid, self.num_classes)


class Segmenter(nn.Module):
  """[B, Y, X, C] -> {'logits': [B, Y, X, num_classes]}, float32.

  One class alone would be normalised to a constant. For num_classes = 1 there are two inside, and
  the logit is that of the second minus that of the first, whose sigmoid is their softmax.

  Attributes:
    num_classes: channels of the logits.
    width: factor on the number of channels of every layer, rounded to multiples of the 12 heads.
    depth: blocks of the backbone.
    decoder_depth: blocks of the mask transformer.
    dropout: rate in the mask transformer's blocks.
    grid: size of the grid of learnt positions, in patches of 16 pixels; they are interpolated to
      the image's.
    dtype: what is computed in, except for the cosines and their norm.
    divisor: sizes that are not multiples of it are padded inside.
    receptive_field: None, the attention sees the whole image.
  """

  num_classes: int
  width: Annotated[float, Field(gt=0)] = 1.0
  depth: Annotated[int, Field(ge=1)] = 12
  decoder_depth: Annotated[int, Field(ge=1)] = 2
  dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
  grid: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (32, 32)
  dtype: jnp.dtype = jnp.float32

  divisor: ClassVar[tuple[int, ...]] = (vit.PATCH, vit.PATCH)
  receptive_field: ClassVar[tuple[int, ...] | None] = None

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    x = resample.pad_to_multiple(image, self.divisor)
    (x,) = vit.Vit(
      taps=(self.depth - 1,),
      width=self.width,
      depth=self.depth,
      grid=self.grid,
      cls_token=True,
      final_norm=True,
      dtype=self.dtype,
      name='backbone',
    )(x)
    decoder = MaskTransformer(
      max(2, self.num_classes), self.decoder_depth, self.dropout, self.dtype, name='decoder'
    )
    logits = decoder(x, train=train)
    if self.num_classes == 1:
      logits = logits[..., 1:] - logits[..., :1]
    logits = resample.upsample_linear(logits, self.divisor)
    return {'logits': resample.crop(logits, image.shape[1:-1])}
