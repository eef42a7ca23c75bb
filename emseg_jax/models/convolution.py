"""Convolutions of arrays with kernels, with gradients that are quick on CPUs too.

x is [B, *spatial, C] with two or three spatial axes, a kernel [*k, C / groups, F]. Padding is with
zeros: (k - 1)·dilation in all, half of it rounded down at the start.
"""

import functools

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
  if groups == 1 and set(stride) == {1} and x.ndim == 4:
    return _convolve_stride_1(x, kernel, dilation)
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
def _convolve_stride_1(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
  """`_plain` in two dimensions, whose kernel gradient is quick on CPUs too."""
  return _plain(x, kernel, (1, 1), dilation, 1)


def _convolve_fwd(x, kernel, dilation):
  return _plain(x, kernel, (1, 1), dilation, 1), (x, kernel)


def _convolve_bwd(dilation, saved, grad):
  x, kernel = saved
  to_input = jax.linear_transpose(lambda x: _plain(x, kernel, (1, 1), dilation, 1), x)

  def default(x, grad):
    return jax.linear_transpose(lambda k: _plain(x, k, (1, 1), dilation, 1), kernel)(grad)[0]

  def cpu(x, grad):
    return _kernel_gradient_on_cpu(x, grad, dilation, kernel.shape[:2])

  return to_input(grad)[0], lax.platform_dependent(x, grad, cpu=cpu, default=default)


_convolve_stride_1.defvjp(_convolve_fwd, _convolve_bwd)


def convolve_depthwise(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
  """Each channel with its own kernel: [B, *spatial, C], [*k, 1, C] -> [B, *spatial, C]."""
  return _plain(x, kernel, (1,) * (x.ndim - 2), dilation, x.shape[-1])
