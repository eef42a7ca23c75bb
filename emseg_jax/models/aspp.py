"""Atrous spatial pyramid pooling and the decoder of DeepLabv3+ (Chen et al. 2018).

Both are written in terms of the blocks they are given, so that networks with different
convolutions (separable or dense, PyTorch's or Keras' batch norm) share them.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from emseg_jax.models import layers, resample

__all__ = ['Aspp', 'Block', 'Decoder', 'SeparableBlock']

# (features, kernel_size, dilation=..., name=...) -> module, called with (x, train=...).
Block = Callable[..., nn.Module]


class SeparableBlock(nn.Module):
  """Depthwise and then 1x1 convolution, batch norm and ReLU after each.

  [B, Y, X, C] -> [B, Y, X, features].
  """

  features: int
  kernel_size: int = 3
  dilation: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = layers.DepthwiseConv(self.kernel_size, self.dilation, dtype=self.dtype, name='depthwise')(x)
    x = nn.relu(layers.batch_norm(train=train, dtype=self.dtype, name='depthwise_norm')(x))
    return layers.ConvBlock(self.features, 1, dtype=self.dtype, name='pointwise')(x, train=train)


class Aspp(nn.Module):
  """The mean of the image, a 1x1 and dilated 3x3 convolutions side by side, then a projection.

  [B, Y, X, C] -> [B, Y, X, features].

  Attributes:
    features: channels of each branch and of the result.
    rates: dilations of the 3x3 convolutions.
    block: of the image's mean, the 1x1 convolution and the projection.
    atrous: of the dilated convolutions.
    projection: kernel size of the projection.
  """

  features: int
  rates: tuple[int, ...]
  block: Block
  atrous: Block
  projection: int

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    mean = jnp.mean(x.astype(jnp.float32), axis=(1, 2), keepdims=True)
    pooled = self.block(self.features, 1, name='pool')(mean, train=train)
    branches = [
      # Linear interpolation of one voxel.
      jnp.broadcast_to(pooled, (*x.shape[:-1], self.features)),
      self.block(self.features, 1, name='point')(x, train=train),
    ]
    for rate in self.rates:
      branch = self.atrous(self.features, 3, dilation=rate, name=f'rate{rate}')
      branches.append(branch(x, train=train))
    joined = jnp.concatenate(branches, -1)
    return self.block(self.features, self.projection, name='project')(joined, train=train)


class Decoder(nn.Module):
  """Deep features, up-sampled, beside low-level ones of few channels, refined twice.

  low [B, factor·Y, factor·X, C] and deep [B, Y, X, D] -> [B, factor·Y, factor·X, features].

  Attributes:
    features: channels of the result.
    low_features: to which `low` is reduced.
    factor: by which `deep` is smaller.
    block: that reduces `low`.
    refine: of the two 3x3 convolutions.
  """

  features: int
  low_features: int
  factor: int
  block: Block
  refine: Block

  @nn.compact
  def __call__(self, low: jax.Array, deep: jax.Array, *, train: bool) -> jax.Array:
    low = self.block(self.low_features, 1, name='low')(low, train=train)
    x = jnp.concatenate([low, resample.upsample_linear(deep, self.factor)], -1)
    for i in range(2):
      x = self.refine(self.features, 3, name=f'refine{i + 1}')(x, train=train)
    return x
