"""Hybrid convolutions of EM-Net (Yuan et al. 2020), the parts of `emnet_hvec.EmNetHvec`.

An HVEC sub-block sends a quarter of the channels through a flat kernel in each of the three planes,
and a quarter through the plane (y, x) at half its resolution; each quarter also gets what the one
before it put out. Arrays are [B, Z, Y, X, C].
"""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from emseg_jax.models import layers, resample

__all__ = [
  'Hvec',
  'HvecSubBlock',
  'InstanceNorm',
  'Statistics',
  'channel_shuffle',
  'pool_in_plane',
  'prelu',
  'uniform_fan_in',
  'unpool_in_plane',
]

Statistics = Literal['block', 'volume']

# Of the four groups of channels; the last sees the plane at half its resolution.
KERNELS = ((1, 3, 3), (3, 1, 3), (3, 3, 1), (1, 3, 3))
GROUPS = len(KERNELS)
MOMENTUM = 0.9
EPSILON = 1e-5

# U(-1/√n, 1/√n), n = fan-in: PyTorch's default, which the authors train from.
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def prelu(x: jax.Array, slope: jax.Array) -> jax.Array:
  """x where that is positive, else `slope` times x; the slope is a scalar."""
  return jnp.where(x >= 0, x, slope.astype(x.dtype) * x)


def channel_shuffle(x: jax.Array, groups: int) -> jax.Array:
  """Interleaves groups of channels: out[..., j·groups + g] = x[..., g·(C / groups) + j]."""
  grouped = x.reshape(*x.shape[:-1], groups, -1)
  return jnp.swapaxes(grouped, -1, -2).reshape(x.shape)


def pool_in_plane(x: jax.Array) -> jax.Array:
  """Largest voxel of cells of 1x2x2; an axis of length 1 stays, an odd last voxel is left out."""
  return resample.max_pool(x, (1, *(min(2, length) for length in x.shape[2:4])))


def unpool_in_plane(x: jax.Array, size: Sequence[int]) -> jax.Array:
  """Repeats voxels of what `pool_in_plane` made of an image of `size` (z, y, x), to that size.

  Voxel i of an axis is voxel floor(i·l / L) of the pooled one, l and L being their lengths, as in
  PyTorch's 'nearest': every voxel twice, and with L = 2·l + 1 the first one three times.
  """
  for axis, length in ((2, size[1]), (3, size[2])):
    if length > 1:
      first = [jax.lax.slice_in_dim(x, 0, 1, axis=axis)] * (length % 2)
      x = jnp.concatenate([*first, jnp.repeat(x, 2, axis=axis)], axis)
  return x


class InstanceNorm(nn.Module):
  """Makes the mean of every channel of every image 0 and its variance 1; nothing is learnt.

  Attributes:
    statistics: 'block' takes mean and variance from the array at hand. 'volume' does so in training
      only, and keeps running averages of both, one per channel, for evaluation.
    dtype: of the result; the statistics are float32.
  """

  statistics: Statistics = 'block'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = x.astype(jnp.float32)
    everywhere = (1,) * (x.ndim - 1) + (-1,)
    if self.statistics == 'volume':
      running_mean = self.variable('batch_stats', 'mean', jnp.zeros, x.shape[-1:])
      running_var = self.variable('batch_stats', 'var', jnp.ones, x.shape[-1:])
    if self.statistics == 'volume' and not train:
      mean, var = running_mean.value.reshape(everywhere), running_var.value.reshape(everywhere)
    else:
      spatial = tuple(range(1, x.ndim - 1))
      mean = jnp.mean(x, spatial, keepdims=True)
      var = jnp.mean(jnp.square(x - mean), spatial, keepdims=True)
      if self.statistics == 'volume' and not self.is_initializing():
        for running, new in ((running_mean, mean), (running_var, var)):
          new = jnp.mean(new, axis=0).reshape(-1)
          running.value = MOMENTUM * running.value + (1 - MOMENTUM) * new
    return ((x - mean) * jax.lax.rsqrt(var + EPSILON)).astype(self.dtype)


class HvecSubBlock(nn.Module):
  """Four convolutions in series, each of a quarter of the channels, joined by a 1x1x1 convolution.

  [B, Z, Y, X, C] -> [B, Z, Y, X, features]; with x1 .. x4 the quarters of the input,

      y1 = IN(W1 * x1),  y2 = IN(W2 * (x2 + T(y1))),  y3 = IN(W3 * (x3 + T(y2))),
      y4 = IN(up(W4 * pool(x4 + T(y3)))).

  Attributes:
    features: a multiple of 4.
    transform: T is a 1x1x1 convolution, from features / 4 to C / 4 channels; otherwise it is the
      identity, and C must be `features`.
    statistics: of the instance norm.
    dtype: what is computed in.
  """

  features: int
  transform: bool
  statistics: Statistics = 'block'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    def conv(features, size, use_bias, name):
      return layers.Conv(
        features,
        size,
        use_bias=use_bias,
        kernel_init=uniform_fan_in,
        dtype=self.dtype,
        name=name,
      )

    size, outputs = x.shape[1:-1], []
    for i, (quarter, kernel) in enumerate(zip(jnp.split(x, GROUPS, -1), KERNELS, strict=True)):
      if outputs:
        y = outputs[-1]
        if self.transform:
          y = conv(quarter.shape[-1], 1, True, f'transform{i}')(y)
        quarter += y
      last = i == GROUPS - 1
      y = pool_in_plane(quarter) if last else quarter
      y = conv(self.features // GROUPS, kernel, False, f'conv{i + 1}')(y)
      if last:
        y = unpool_in_plane(y, size)
      outputs.append(InstanceNorm(self.statistics, self.dtype, name=f'norm{i + 1}')(y, train=train))
    return conv(self.features, 1, True, 'join')(jnp.concatenate(outputs, -1))


class Hvec(nn.Module):
  """Two sub-blocks with a shuffle of channels between them, and a 1x1x1 shortcut.

  [B, Z, Y, X, C] -> [B, Z, Y, X, features]; C and features are multiples of 4. Each of the two ends
  in instance norm and PReLU, the second after the shortcut is added. The slope of the PReLU is an
  argument, a scalar, since all modules of the network share it.
  """

  features: int
  statistics: Statistics = 'block'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, slope: jax.Array, *, train: bool) -> jax.Array:
    def sub_block(transform, name):
      return HvecSubBlock(self.features, transform, self.statistics, self.dtype, name=name)

    def norm(name):
      return InstanceNorm(self.statistics, self.dtype, name=name)

    shortcut = layers.Conv(
      self.features,
      1,
      use_bias=False,
      kernel_init=uniform_fan_in,
      dtype=self.dtype,
      name='shortcut',
    )(x)
    x = sub_block(True, 'block1')(x, train=train)
    x = prelu(norm('norm1')(x, train=train), slope)
    x = sub_block(False, 'block2')(channel_shuffle(x, GROUPS), train=train)
    return prelu(norm('norm2')(x + shortcut, train=train), slope)
