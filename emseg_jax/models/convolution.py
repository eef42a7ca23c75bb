"""Convolutions of arrays with kernels, with gradients that are quick on CPUs too.

x is [B, *spatial, C] with two or three spatial axes, a kernel [*k, C / groups, F]. Padding is with
zeros: (k - 1)·dilation in all, half of it rounded down at the start.
"""

import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from emseg_jax.models.resample import shift

__all__ = ['convolve', 'convolve_depthwise']

_LAYOUT = {4: ('NHWC', 'HWIO', 'NHWC'), 5: ('NDHWC', 'DHWIO', 'NDHWC')}


def _padding(size: tuple[int, ...], dilation: int) -> tuple[tuple[int, int], ...]:
  """Voxels of zero before and after each axis."""
  totals = [dilation * (k - 1) for k in size]
  return tuple((total // 2, total - total // 2) for total in totals)


def _plain(
  x: jax.Array, kernel: jax.Array, stride: tuple[int, ...], dilation: int, groups: int
) -> jax.Array:
  return lax.conv_general_dilated(
    x,
    kernel,
    stride,
    _padding(kernel.shape[:-2], dilation),
    rhs_dilation=(dilation,) * len(stride),
    dimension_numbers=_LAYOUT[x.ndim],
    feature_group_count=groups,
  )


def convolve(
  x: jax.Array, kernel: jax.Array, stride: tuple[int, ...], dilation: int, groups: int
) -> jax.Array:
  """[B, *spatial, C] -> [B, *ceil(spatial / stride), F]."""
  size = kernel.shape[:-2]
  if groups == 1 and set(size) == {1}:
    # The gradient of a product is a product; XLA's gradient of a 1x1 convolution is slower.
    strided = x[(slice(None), *(slice(None, None, s) for s in stride))]
    return strided @ kernel.reshape(kernel.shape[-2:])
  if groups == 1 and set(stride) == {1}:
    return (_convolve_plane if x.ndim == 4 else _convolve_volume)(x, kernel, dilation)
  return _plain(x, kernel, stride, dilation, groups)


def _kernel_gradient_on_cpu(
  x: jax.Array, grad: jax.Array, dilation: int, size: tuple[int, int]
) -> jax.Array:
  """The gradient of a kernel of `size`, from the layer's input and the gradient of its output.

      dK[p, q, i, o] = sum_byx x[b, y + d·(p - c), x + d·(q - c), i] · grad[b, y, x, o]

  with d·c the zeros before an axis, written as one convolution along y whose channels are (b, x)
  and whose outputs are (q, o). XLA's own transposition has only b as channels, which makes its
  products so thin that they take up to four times as long on a CPU.
  """
  batch, rows, columns, inputs = x.shape
  pad_y, pad_x = _padding(size, dilation)
  lhs = x.transpose(3, 1, 0, 2).reshape(inputs, rows, batch * columns)
  moved = [shift(grad, 2, dilation * q - pad_x[0]) for q in range(size[1])]
  rhs = jnp.concatenate(moved, axis=-1).transpose(1, 0, 2, 3).reshape(rows, batch * columns, -1)
  out = lax.conv_general_dilated(
    lhs, rhs, (dilation,), (pad_y,), dimension_numbers=('NWC', 'WIO', 'NWC')
  )
  return out.reshape(inputs, *size, -1).transpose(1, 2, 0, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_plane(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
  """`_plain` in two dimensions and with stride 1, whose kernel gradient is quick on CPUs too."""
  return _plain(x, kernel, (1, 1), dilation, 1)


def _plane_fwd(x, kernel, dilation):
  return _plain(x, kernel, (1, 1), dilation, 1), (x, kernel)


def _plane_bwd(dilation, saved, grad):
  x, kernel = saved
  to_input = jax.linear_transpose(lambda x: _plain(x, kernel, (1, 1), dilation, 1), x)

  def default(x, grad):
    return jax.linear_transpose(lambda k: _plain(x, k, (1, 1), dilation, 1), kernel)(grad)[0]

  def cpu(x, grad):
    return _kernel_gradient_on_cpu(x, grad, dilation, kernel.shape[:2])

  return to_input(grad)[0], lax.platform_dependent(x, grad, cpu=cpu, default=default)


_convolve_plane.defvjp(_plane_fwd, _plane_bwd)


def _volume_default(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
  return _plain(x, kernel, (1, 1, 1), dilation, 1)


def _volume_on_cpu(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
  """The taps along z as further input channels of a convolution of planes.

  XLA's convolution of volumes is several times slower on CPUs than that of planes. Planes are in
  the order (z, b): rows split along z then stay on their device.
  """
  batch, depth, *plane, inputs = x.shape
  taps, *size, _, features = kernel.shape
  start = _padding((taps,), dilation)[0][0]
  x = jnp.concatenate([shift(x, 1, start - dilation * p) for p in range(taps)], axis=-1)
  x = x.swapaxes(0, 1).reshape(depth * batch, *plane, taps * inputs)
  kernel = kernel.transpose(1, 2, 0, 3, 4).reshape(*size, taps * inputs, features)
  y = convolve(x, kernel, (1, 1), dilation, 1)
  return y.reshape(depth, batch, *plane, features).swapaxes(0, 1)


def _volume_without_gradient_on_cpu(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
  """The same as a sum over the taps along z, which needs no copy of the input with all of them.

  In a whole 3D U-Net that is up to 1.4 times as fast with two thirds of the memory. With its
  gradient it gains nothing, and planes of (3, 1) or (1, 1) are too little work for a sum.
  """
  batch, depth, *plane, inputs = x.shape
  taps, *size, _, features = kernel.shape
  if math.prod(size) < 9:
    return _volume_on_cpu(x, kernel, dilation)
  start = _padding((taps,), dilation)[0][0]
  x = x.swapaxes(0, 1)
  y = sum(
    convolve(
      shift(x, 0, start - dilation * p).reshape(depth * batch, *plane, inputs),
      kernel[p],
      (1, 1),
      dilation,
      1,
    )
    for p in range(taps)
  )
  return y.reshape(depth, batch, *plane, features).swapaxes(0, 1)


def _volume_on_any(
  cpu: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array, dilation: int
) -> jax.Array:
  cpu, default = (functools.partial(f, dilation=dilation) for f in (cpu, _volume_default))
  return lax.platform_dependent(x, kernel, cpu=cpu, default=default)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_volume(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
  """`_plain` in three dimensions and with stride 1, quick on CPUs too."""
  return _volume_on_any(_volume_without_gradient_on_cpu, x, kernel, dilation)


def _volume_fwd(x, kernel, dilation):
  return _volume_on_any(_volume_on_cpu, x, kernel, dilation), (x, kernel)


def _volume_bwd(dilation, saved, grad):
  def gradient(function, x, kernel, grad):
    return jax.vjp(functools.partial(function, dilation=dilation), x, kernel)[1](grad)

  cpu, default = (functools.partial(gradient, f) for f in (_volume_on_cpu, _volume_default))
  return lax.platform_dependent(*saved, grad, cpu=cpu, default=default)


_convolve_volume.defvjp(_volume_fwd, _volume_bwd)


def convolve_depthwise(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
  """Each channel with its own kernel: [B, *spatial, C], [*k, 1, C] -> [B, *spatial, C]."""
  if x.ndim == 4:
    return _depthwise(x, kernel, dilation)
  return _plain(x, kernel, (1,) * (x.ndim - 2), dilation, x.shape[-1])


def _windows(
  x: jax.Array, size: tuple[int, ...], dilation: int
) -> Callable[[jax.Array | int, jax.Array | int], jax.Array]:
  """(p, q) -> what tap (p, q) of a kernel sees at every voxel, [B, Y, X, C]."""
  padded = jnp.pad(x, ((0, 0), *_padding(size, dilation), (0, 0)))
  return lambda p, q: lax.dynamic_slice(padded, (0, p * dilation, q * dilation, 0), x.shape)


def _depthwise_on_cpu(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
  """A sum of shifted products, which XLA computes in one loop: 30 times as fast as its grouped
  convolution, which is not vectorised on CPUs.
  """
  window = _windows(x, kernel.shape[:2], dilation)
  taps = itertools.product(*map(range, kernel.shape[:2]))
  return sum(window(p, q) * kernel[p, q].reshape(1, 1, 1, -1) for p, q in taps)


def _depthwise_kernel_gradient_on_cpu(
  x: jax.Array, grad: jax.Array, dilation: int, size: tuple[int, int]
) -> jax.Array:
  """dK[p, q, c] = sum_byx window_pq[b, y, x, c] · grad[b, y, x, c], tap by tap in a loop.

  Rows are first added to each other eight at a time: a sum over all voxels is not vectorised.
  """
  window = _windows(x, size, dilation)
  batch, rows, columns, channels = x.shape
  parts = math.gcd(batch * rows, 8)

  def one_tap(_, tap):
    product = (window(tap // size[1], tap % size[1]) * grad).reshape(parts, -1, columns * channels)
    folded = sum(product[i] for i in range(parts))
    return None, jnp.sum(folded.reshape(-1, channels), axis=0)

  _, sums = lax.scan(one_tap, None, jnp.arange(math.prod(size)))
  return sums.reshape(*size, 1, channels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
  """`convolve_depthwise` in two dimensions, quick on CPUs too."""
  return lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(_depthwise_on_cpu, dilation=dilation),
    default=lambda x, kernel: _plain(x, kernel, (1, 1), dilation, x.shape[-1]),
  )


def _depthwise_fwd(x, kernel, dilation):
  return _depthwise(x, kernel, dilation), (x, kernel)


def _depthwise_bwd(dilation, saved, grad):
  x, kernel = saved

  def default(x, kernel, grad):
    _, transpose = jax.vjp(lambda x, k: _plain(x, k, (1, 1), dilation, x.shape[-1]), x, kernel)
    return transpose(grad)

  def cpu(x, kernel, grad):
    # The transposed convolution of an odd kernel is the convolution with the kernel turned around.
    to_input = _depthwise_on_cpu(grad, kernel[::-1, ::-1], dilation)
    return to_input, _depthwise_kernel_gradient_on_cpu(x, grad, dilation, kernel.shape[:2])

  if any(k % 2 == 0 for k in kernel.shape[:2]):
    return default(x, kernel, grad)
  return lax.platform_dependent(x, kernel, grad, cpu=cpu, default=default)


_depthwise.defvjp(_depthwise_fwd, _depthwise_bwd)
