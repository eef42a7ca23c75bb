"""Layers that the networks share.

Arrays are [B, *spatial, C] with two or three spatial axes; a kernel size or stride is one number
for all of them or one per axis. Parameters are float32, `dtype` is what a layer computes in.
Convolutions pad with zeros, symmetrically as PyTorch does; an even kernel gets the odd voxel at the
end, as in Keras. No layer gathers an image whose rows are split over devices.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from emseg_jax.models import convolution
from emseg_jax.models.resample import PerAxis, per_axis

__all__ = [
  'Conv',
  'ConvBlock',
  'DepthwiseConv',
  'Initializer',
  'UpConv',
  'batch_norm',
  'kaiming_fan_out',
  'keras_conv_block',
  'scaled',
]

Initializer = Callable[..., jax.Array]

kaiming_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def scaled(channels: int, width: float) -> int:
  """Number of channels of a layer in a network that is `width` times as wide; at least 1."""
  return max(1, round(channels * width))


class Conv(nn.Module):
  """Convolution.

  [B, *spatial, C] -> [B, *ceil(spatial / stride), features]. Parameters as in `nn.Conv`: kernel
  [*kernel_size, C / groups, features] and, with `use_bias`, bias [features].
  """

  features: int
  kernel_size: PerAxis = 3
  stride: PerAxis = 1
  dilation: int = 1
  groups: int = 1
  use_bias: bool = True
  kernel_init: Initializer = nn.initializers.he_normal()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    size, stride = per_axis(self.kernel_size, x), per_axis(self.stride, x)
    shape = (*size, x.shape[-1] // self.groups, self.features)
    kernel = self.param('kernel', self.kernel_init, shape).astype(self.dtype)
    x = x.astype(self.dtype)
    y = convolution.convolve(x, kernel, stride, self.dilation, self.groups)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      y += bias.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
    return y


class DepthwiseConv(nn.Module):
  """Convolution of each channel on its own, [B, *spatial, C] -> the same shape.

  The kernel is [*kernel_size, 1, C], as in `nn.Conv` with as many groups as channels.
  """

  kernel_size: PerAxis = 3
  dilation: int = 1
  kernel_init: Initializer = nn.initializers.he_normal()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (*per_axis(self.kernel_size, x), 1, x.shape[-1])
    kernel = self.param('kernel', self.kernel_init, shape).astype(self.dtype)
    return convolution.convolve_depthwise(x.astype(self.dtype), kernel, self.dilation)


def batch_norm(
  *,
  train: bool,
  dtype: jnp.dtype,
  momentum: float = 0.9,
  epsilon: float = 1e-5,
  name: str | None = None,
) -> nn.BatchNorm:
  """Batch norm, statistics in float32.

  The defaults are PyTorch's (its momentum 0.1 is 0.9 here); Keras has 0.99 and 1e-3.
  """
  return nn.BatchNorm(
    use_running_average=not train, momentum=momentum, epsilon=epsilon, dtype=dtype, name=name
  )


class ConvBlock(nn.Module):
  """`Conv`, then batch norm and ReLU if wanted; the size changes as in `Conv`."""

  features: int
  kernel_size: PerAxis = 3
  stride: PerAxis = 1
  dilation: int = 1
  use_bias: bool = False
  norm: bool = True
  relu: bool = True
  kernel_init: Initializer = kaiming_fan_out
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = Conv(
      self.features,
      self.kernel_size,
      stride=self.stride,
      dilation=self.dilation,
      use_bias=self.use_bias,
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      name='conv',
    )(x)
    if self.norm:
      x = batch_norm(
        train=train,
        dtype=self.dtype,
        momentum=self.momentum,
        epsilon=self.epsilon,
        name='norm',
      )(x)
    return nn.relu(x) if self.relu else x


# What Keras makes of a convolution, batch norm and ReLU with their defaults.
keras_conv_block = functools.partial(
  ConvBlock,
  use_bias=True,
  kernel_init=nn.initializers.he_normal(),
  momentum=0.99,
  epsilon=1e-3,
)


class UpConv(nn.Module):
  """Transposed convolution whose stride is its kernel size.

  [B, *spatial, C] -> [B, *(factor·spatial), features]. Parameters (kernel [*factor, C, features],
  bias [features]) and result are those of `nn.ConvTranspose(features, factor, factor)`, but it is
  one product with a [C, prod(factor)·features] matrix followed by a rearrangement, which keeps rows
  on their device.
  """

  features: int
  factor: PerAxis = 2
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    spatial, inputs = x.shape[1:-1], x.shape[-1]
    factor = per_axis(self.factor, x)
    axes = tuple(range(len(factor)))
    # Every output voxel sees one tap: the taps are no fan-in.
    init = nn.initializers.variance_scaling(2.0, 'fan_in', 'truncated_normal', batch_axis=axes)
    kernel = self.param('kernel', init, (*factor, inputs, self.features)).astype(self.dtype)
    # lax.conv_transpose correlates: the first output voxel of a cell sees the last tap.
    taps = jnp.moveaxis(jnp.flip(kernel, axes), -2, 0).reshape(inputs, -1)
    y = (x.astype(self.dtype) @ taps).reshape(x.shape[0], *spatial, *factor, self.features)
    # [B, Z, Y, X, a, b, c, F] -> [B, Z, a, Y, b, X, c, F]
    n = len(factor)
    y = y.transpose(0, *(1 + i + j for i in range(n) for j in (0, n)), 2 * n + 1)
    y = y.reshape(x.shape[0], *(s * f for s, f in zip(spatial, factor, strict=True)), self.features)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      y += bias.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
    return y
