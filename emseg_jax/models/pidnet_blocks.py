"""Parts of PIDNet (Xu et al. 2023): residual blocks, pyramid pooling, fusion of the branches.

Every module takes and returns [B, Y, X, C].
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from emseg_jax.models import layers, resample

__all__ = [
  'BasicBlock',
  'Bottleneck',
  'BoundaryFusion',
  'Head',
  'LightBoundaryFusion',
  'NormReluConv',
  'PixelAttention',
  'PyramidPooling',
  'average_pool',
]

# (window, stride) of the pooled levels; the last level is the mean of the image.
POOLS = ((5, 2), (9, 4), (17, 8))
LEVELS = len(POOLS) + 1


def average_pool(x: jax.Array, window: int, stride: int) -> jax.Array:
  """Means of odd windows, float32; zeros beyond the image count, as by default in PyTorch.

  [B, Y, X, C] -> [B, ceil(Y / stride), ceil(X / stride), C].
  """
  pad = (window // 2, window // 2)
  x = x.astype(jnp.float32)
  return nn.avg_pool(x, (window, window), (stride, stride), padding=(pad, pad))


class NormReluConv(nn.Module):
  """Batch norm, ReLU and a convolution without bias."""

  features: int
  kernel_size: int = 1
  groups: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = nn.relu(layers.batch_norm(train=train, dtype=self.dtype, name='norm')(x))
    return layers.Conv(
      self.features,
      self.kernel_size,
      groups=self.groups,
      use_bias=False,
      kernel_init=layers.kaiming_fan_out,
      dtype=self.dtype,
      name='conv',
    )(x)


class BasicBlock(nn.Module):
  """Two 3x3 convolutions plus shortcut, [B, Y, X, C] -> [B, Y / stride, X / stride, features].

  The shortcut is a 1x1 convolution where the shape changes.
  """

  features: int
  stride: int = 1
  relu: bool = True  # at the end
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    def block(x: jax.Array, size: int, stride: int, relu: bool, name: str) -> jax.Array:
      return layers.ConvBlock(
        self.features, size, stride=stride, relu=relu, dtype=self.dtype, name=name
      )(x, train=train)

    shortcut = x
    if self.stride != 1 or x.shape[-1] != self.features:
      shortcut = block(x, 1, self.stride, False, 'shortcut')
    x = block(x, 3, self.stride, True, 'conv1')
    x = block(x, 3, 1, False, 'conv2') + shortcut
    return nn.relu(x) if self.relu else x


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolution plus shortcut, without a ReLU at the end.

  [B, Y, X, C] -> [B, Y / stride, X / stride, 2·channels]. The shortcut is a 1x1 convolution where
  the shape changes.
  """

  channels: int
  stride: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    def block(
      x: jax.Array, features: int, size: int, stride: int, relu: bool, name: str
    ) -> jax.Array:
      return layers.ConvBlock(
        features, size, stride=stride, relu=relu, dtype=self.dtype, name=name
      )(x, train=train)

    shortcut, out = x, 2 * self.channels
    if self.stride != 1 or x.shape[-1] != out:
      shortcut = block(x, out, 1, self.stride, False, 'shortcut')
    x = block(x, self.channels, 1, 1, True, 'conv1')
    x = block(x, self.channels, 3, self.stride, True, 'conv2')
    return block(x, out, 1, 1, False, 'conv3') + shortcut


class PyramidPooling(nn.Module):
  """Context from the mean over 5, 9 and 17 voxels and over the image.

  [B, Y, X, C] -> [B, Y, X, features]. `parallel` is PAPPM: each level is added to the level that
  is not pooled, and one convolution in four groups smooths them. Otherwise it is DAPPM (Hong et al.
  2021), in which each level is added to the one before it and has a convolution of its own.

  The pooled levels grow back by their stride and are cut to Y and X. That is what is published
  where these are multiples of 8; elsewhere the published code stretches the levels to Y and X.
  """

  channels: int  # of a level
  features: int
  parallel: bool
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    def conv(x: jax.Array, features: int, name: str, size: int = 1, groups: int = 1) -> jax.Array:
      return NormReluConv(features, size, groups, self.dtype, name=name)(x, train=train)

    shape = (*x.shape[:-1], self.channels)
    first = conv(x, self.channels, 'scale0')
    pooled = []
    for i, (window, stride) in enumerate(POOLS):
      level = conv(average_pool(x, window, stride), self.channels, f'scale{i + 1}')
      pooled.append(resample.crop(resample.upsample_linear(level, stride), shape[1:-1]))
    mean = jnp.mean(x.astype(jnp.float32), axis=(1, 2), keepdims=True)
    pooled.append(jnp.broadcast_to(conv(mean, self.channels, f'scale{LEVELS}'), shape))
    if self.parallel:
      joined = jnp.concatenate([level + first for level in pooled], -1)
      levels = [first, conv(joined, LEVELS * self.channels, 'process', 3, LEVELS)]
    else:
      levels = [first]
      for i, level in enumerate(pooled):
        levels.append(conv(level + levels[-1], self.channels, f'process{i + 1}', 3))
    compressed = conv(jnp.concatenate(levels, -1), self.features, 'compress')
    return compressed + conv(x, self.features, 'shortcut')


class PixelAttention(nn.Module):
  """Pixel-attention-guided fusion (Pag) of a branch x with a smaller one, y.

  x [B, factor·Y, factor·X, C] and y [B, Y, X, C] -> the shape of x: (1 - σ) x + σ y, where
  σ = sigmoid(k · q), and k and q are projections of x and y to `channels`.
  """

  channels: int
  factor: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, y: jax.Array, *, train: bool) -> jax.Array:
    def project(x: jax.Array, name: str) -> jax.Array:
      return layers.ConvBlock(self.channels, 1, relu=False, dtype=self.dtype, name=name)(
        x, train=train
      )

    k = project(x, 'key')
    q = resample.upsample_linear(project(y, 'query'), self.factor)
    similarity = jnp.sum(k.astype(jnp.float32) * q.astype(jnp.float32), -1, keepdims=True)
    sigma = nn.sigmoid(similarity).astype(self.dtype)
    return (1 - sigma) * x + sigma * resample.upsample_linear(y, self.factor)


class LightBoundaryFusion(nn.Module):
  """Light-Bag: the P branch gets I off the boundary, the I branch gets P on it.

  p, i and d [B, Y, X, C] -> [B, Y, X, features]. The boundary is where d is positive.
  """

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, p: jax.Array, i: jax.Array, d: jax.Array, *, train: bool) -> jax.Array:
    def project(x: jax.Array, name: str) -> jax.Array:
      return layers.ConvBlock(self.features, 1, relu=False, dtype=self.dtype, name=name)(
        x, train=train
      )

    sigma = nn.sigmoid(d)
    return project(p + (1 - sigma) * i, 'detail') + project(i + sigma * p, 'context')


class BoundaryFusion(nn.Module):
  """Bag: P on the boundary and I elsewhere, then batch norm, ReLU and a 3x3 convolution.

  p, i and d [B, Y, X, C] -> [B, Y, X, features].
  """

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, p: jax.Array, i: jax.Array, d: jax.Array, *, train: bool) -> jax.Array:
    sigma = nn.sigmoid(d)
    x = sigma * p + (1 - sigma) * i
    return NormReluConv(self.features, 3, dtype=self.dtype, name='conv')(x, train=train)


class Head(nn.Module):
  """Batch norm, ReLU, 3x3 convolution, the same and 1x1: [B, Y, X, C] -> logits, float32."""

  num_classes: int
  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = NormReluConv(self.features, 3, dtype=self.dtype, name='conv')(x, train=train)
    x = nn.relu(layers.batch_norm(train=train, dtype=self.dtype, name='norm')(x))
    return layers.Conv(self.num_classes, 1, name='head')(x)
