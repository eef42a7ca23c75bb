"""Classifiers that several networks put on their features."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from emseg_jax.models import layers

__all__ = ['FcnHead']


class FcnHead(nn.Module):
  """Auxiliary classifier of mmsegmentation: 3x3 convolution, dropout 0.1, 1x1 convolution.

  [B, Y, X, C] -> logits [B, Y, X, num_classes], float32.
  """

  num_classes: int
  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = layers.ConvBlock(self.features, dtype=self.dtype, name='block')(x, train=train)
    x = nn.Dropout(0.1, deterministic=not train)(x)
    return layers.Conv(self.num_classes, 1, name='head')(x)
