"""Layers that the networks share.

Arrays are [B, Y, X, C]; padding, pooling to bins and up-sampling take any number of spatial axes.
Parameters are float32, `dtype` is what a layer computes in. Convolutions pad symmetrically with
zeros, as PyTorch does. No layer gathers an image whose rows are split over devices: resampling is
made of products, shifts and reshapes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

__all__ = [
  'Conv',
  'ConvBlock',
  'UpConv2x2',
  'adaptive_pool',
  'batch_norm',
  'crop',
  'kaiming_fan_out',
  'max_pool_2x2',
  'pad_to_multiple',
  'scaled',
  'upsample_bilinear',
  'upsample_nearest',
]

Initializer = Callable[..., jax.Array]

kaiming_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')

# In a 2x2 up-convolution of stride 2 every output voxel sees one tap: the taps are no fan-in.
_up_init = nn.initializers.variance_scaling(2.0, 'fan_in', 'truncated_normal', batch_axis=(0, 1))


def scaled(channels: int, width: float) -> int:
  """Number of channels of a layer in a network that is `width` times as wide; at least 1."""
  return max(1, round(channels * width))


def pad_to_multiple(x: jax.Array, divisor: int) -> jax.Array:
  """Zero-pads [B, *spatial, C] at the end of each spatial axis to a multiple of `divisor`."""
  missing = [-size % divisor for size in x.shape[1:-1]]
  if not any(missing):
    return x
  return jnp.pad(x, ((0, 0), *((0, m) for m in missing), (0, 0)))


def crop(x: jax.Array, size: Sequence[int]) -> jax.Array:
  """Cuts the spatial axes of [B, *spatial, C] to their first `size` voxels."""
  if x.shape[1:-1] == tuple(size):
    return x
  return x[(slice(None), *(slice(s) for s in size))]


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
  pad = dilation * (kernel.shape[0] - 1) // 2
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    ((pad, pad), (pad, pad)),
    rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _shift(x: jax.Array, axis: int, by: int) -> jax.Array:
  """out[n] = x[n - by] along one axis, 0 where that is outside."""
  config = [(by, -by, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)]
  return lax.pad(x, jnp.zeros((), x.dtype), config)


def _kernel_gradient_on_cpu(x: jax.Array, grad: jax.Array, dilation: int, size: int) -> jax.Array:
  """The gradient of a size x size kernel, from the layer's input and the gradient of its output.

      dK[p, q, i, o] = sum_byx x[b, y + d·(p - c), x + d·(q - c), i] · grad[b, y, x, o]

  with c = (size - 1) / 2, written as one convolution along y whose channels are (b, x) and whose
  outputs are (q, o). XLA's own transposition has only b as channels, which makes its products so
  thin that they take up to four times as long on a CPU.
  """
  batch, rows, columns, inputs = x.shape
  centre = (size - 1) // 2
  lhs = x.transpose(3, 1, 0, 2).reshape(inputs, rows, batch * columns)
  moved = [_shift(grad, 2, dilation * (q - centre)) for q in range(size)]
  rhs = jnp.concatenate(moved, axis=-1).transpose(1, 0, 2, 3).reshape(rows, batch * columns, -1)
  pad = dilation * centre
  out = lax.conv_general_dilated(
    lhs, rhs, (dilation,), ((pad, pad),), dimension_numbers=('NWC', 'WIO', 'NWC')
  )
  return out.reshape(inputs, size, size, -1).transpose(1, 2, 0, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_stride_1(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
  """`_convolve` whose kernel gradient is quick on CPUs too."""
  return _convolve(x, kernel, 1, dilation)


def _convolve_fwd(x, kernel, dilation):
  return _convolve(x, kernel, 1, dilation), (x, kernel)


def _convolve_bwd(dilation, saved, grad):
  x, kernel = saved
  to_input = jax.linear_transpose(lambda x: _convolve(x, kernel, 1, dilation), x)

  def default(x, grad):
    return jax.linear_transpose(lambda k: _convolve(x, k, 1, dilation), kernel)(grad)[0]

  def cpu(x, grad):
    return _kernel_gradient_on_cpu(x, grad, dilation, kernel.shape[0])

  return to_input(grad)[0], lax.platform_dependent(x, grad, cpu=cpu, default=default)


_convolve_stride_1.defvjp(_convolve_fwd, _convolve_bwd)


class Conv(nn.Module):
  """2D convolution with an odd square kernel.

  [B, Y, X, C] -> [B, ceil(Y / stride), ceil(X / stride), features]. Parameters as in `nn.Conv`:
  kernel [k, k, C, features] and, with `use_bias`, bias [features].
  """

  features: int
  kernel_size: int = 3
  stride: int = 1
  dilation: int = 1
  use_bias: bool = True
  kernel_init: Initializer = nn.initializers.he_normal()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    k = self.kernel_size
    kernel = self.param('kernel', self.kernel_init, (k, k, x.shape[-1], self.features))
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    if k == 1:
      # The gradient of a product is a product; XLA's gradient of a 1x1 convolution is slower.
      y = x[:, :: self.stride, :: self.stride] @ kernel[0, 0]
    elif self.stride > 1:
      y = _convolve(x, kernel, self.stride, self.dilation)
    else:
      y = _convolve_stride_1(x, kernel, self.dilation)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      y += bias.astype(self.dtype).reshape(1, 1, 1, -1)
    return y


def batch_norm(*, train: bool, dtype: jnp.dtype, name: str | None = None) -> nn.BatchNorm:
  """Batch norm with PyTorch's constants (its momentum 0.1 is 0.9 here); statistics in float32."""
  return nn.BatchNorm(
    use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name
  )


class ConvBlock(nn.Module):
  """`Conv`, then batch norm and ReLU if wanted; the size changes as in `Conv`."""

  features: int
  kernel_size: int = 3
  stride: int = 1
  dilation: int = 1
  use_bias: bool = False
  norm: bool = True
  relu: bool = True
  kernel_init: Initializer = kaiming_fan_out
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
      x = batch_norm(train=train, dtype=self.dtype, name='norm')(x)
    return nn.relu(x) if self.relu else x


class UpConv2x2(nn.Module):
  """Transposed 2x2 convolution of stride 2: [B, Y, X, C] -> [B, 2Y, 2X, features].

  Parameters (kernel [2, 2, C, features], bias [features]) and result are those of
  `nn.ConvTranspose(features, (2, 2), (2, 2))`, but it is one product with a [C, 4·features] matrix
  followed by a rearrangement, which keeps rows on their device.
  """

  features: int
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    batch, rows, columns, inputs = x.shape
    kernel = self.param('kernel', _up_init, (2, 2, inputs, self.features)).astype(self.dtype)
    # lax.conv_transpose correlates: output (2y + a, 2x + b) sees tap (1 - a, 1 - b).
    taps = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(inputs, 4 * self.features)
    y = (x.astype(self.dtype) @ taps).reshape(batch, rows, columns, 2, 2, self.features)
    y = y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * rows, 2 * columns, self.features)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      y += bias.astype(self.dtype).reshape(1, 1, 1, -1)
    return y


def max_pool_2x2(x: jax.Array) -> jax.Array:
  """Largest of each 2x2 cell, [B, 2Y, 2X, C] -> [B, Y, X, C]; equal ones share the gradient."""
  batch, rows, columns, channels = x.shape
  x = x.reshape(batch, rows // 2, 2, columns, channels)
  x = jnp.maximum(x[:, :, 0], x[:, :, 1])
  x = x.reshape(batch, rows // 2, columns // 2, 2, channels)
  return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def upsample_nearest(x: jax.Array, factor: int) -> jax.Array:
  """Repeats every voxel of [B, *spatial, C] `factor` times along each spatial axis."""
  for axis in range(1, x.ndim - 1):
    x = jnp.repeat(x, factor, axis=axis)
  return x


def upsample_bilinear(x: jax.Array, factor: int) -> jax.Array:
  """Linear interpolation by an integer factor between half-pixel centres, edges repeated.

  Equals `jax.image.resize(..., 'bilinear')` and PyTorch's `align_corners=False`.

  Args:
    x: [B, *spatial, C].
    factor: 1 or more.

  Returns:
    [B, *(factor·spatial), C].
  """
  for axis in range(1, x.ndim - 1):
    position = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    before = jnp.where(position == 0, x, _shift(x, axis, 1))
    after = jnp.where(position == x.shape[axis] - 1, x, _shift(x, axis, -1))
    phases = []
    for phase in range(factor):
      offset = (phase + 0.5) / factor - 0.5  # from the centre of the input voxel, in its size
      neighbour = before if offset < 0 else after
      phases.append((1 - abs(offset)) * x + abs(offset) * neighbour)
    shape = (*x.shape[:axis], factor * x.shape[axis], *x.shape[axis + 1 :])
    x = jnp.stack(phases, axis + 1).reshape(shape)
  return x


def adaptive_pool(x: jax.Array, bins: int, *, mode: Literal['avg', 'max']) -> jax.Array:
  """Pools [B, *spatial, C] to `bins` cells along each spatial axis; the result is float32.

  Cell i of an axis of length L is floor(i·L / bins) .. ceil((i + 1)·L / bins), as in PyTorch: cells
  overlap where L is not a multiple of `bins`, and repeat voxels where it is smaller.
  """
  x = x.astype(jnp.float32)
  for axis in range(1, x.ndim - 1):
    length = x.shape[axis]
    position = jnp.arange(length)
    inside = jnp.stack(
      [
        (position >= i * length // bins) & (position < -(-(i + 1) * length // bins))
        for i in range(bins)
      ]
    )
    if mode == 'avg':
      weights = inside / jnp.sum(inside, axis=1, keepdims=True)
      x = jnp.tensordot(weights, x, axes=((1,), (axis,)), precision=lax.Precision.HIGHEST)
      x = jnp.moveaxis(x, 0, axis)
    else:
      shape = [-1 if a == axis else 1 for a in range(x.ndim)]
      cells = [jnp.max(x, axis, initial=-jnp.inf, where=cell.reshape(shape)) for cell in inside]
      x = jnp.stack(cells, axis)
  return x
