"""Padding, pooling and up-sampling, without parameters.

Arrays are [B, *spatial, C] with any number of spatial axes; a factor or window is one number for
all of them or one per axis. Nothing here gathers an image whose rows are split over devices
(`resize_align_corners` excepted): it is made of products, shifts and reshapes.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = [
  'PerAxis',
  'adaptive_pool',
  'crop',
  'max_pool',
  'pad_to_multiple',
  'per_axis',
  'resize_align_corners',
  'shift',
  'upsample_linear',
  'upsample_nearest',
]

PerAxis = int | tuple[int, ...]


def per_axis(value: PerAxis, x: jax.Array) -> tuple[int, ...]:
  """One number per spatial axis of x [B, *spatial, C]."""
  return (value,) * (x.ndim - 2) if isinstance(value, int) else value


def pad_to_multiple(x: jax.Array, divisor: PerAxis) -> jax.Array:
  """Zero-pads [B, *spatial, C] at the end of each spatial axis to a multiple of `divisor`."""
  missing = [-size % d for size, d in zip(x.shape[1:-1], per_axis(divisor, x), strict=True)]
  if not any(missing):
    return x
  return jnp.pad(x, ((0, 0), *((0, m) for m in missing), (0, 0)))


def crop(x: jax.Array, size: Sequence[int]) -> jax.Array:
  """Cuts the spatial axes of [B, *spatial, C] to their first `size` voxels."""
  if x.shape[1:-1] == tuple(size):
    return x
  return x[(slice(None), *(slice(s) for s in size))]


def shift(x: jax.Array, axis: int, by: int) -> jax.Array:
  """out[n] = x[n - by] along one axis, 0 where that is outside."""
  config = [(by, -by, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)]
  return lax.pad(x, jnp.zeros((), x.dtype), config)


def max_pool(x: jax.Array, window: PerAxis = 2) -> jax.Array:
  """Largest voxel of each cell of `window` voxels; equal ones share the gradient.

  [B, *spatial, C] -> [B, *(spatial // window), C]; a rest that fills no cell is left out.
  """
  for axis, w in enumerate(per_axis(window, x), start=1):
    if w == 1:
      continue
    cells = x.shape[axis] // w
    x = lax.slice_in_dim(x, 0, cells * w, axis=axis)
    x = x.reshape(*x.shape[:axis], cells, w, *x.shape[axis + 1 :])
    largest = lax.index_in_dim(x, 0, axis + 1, keepdims=False)
    for i in range(1, w):
      largest = jnp.maximum(largest, lax.index_in_dim(x, i, axis + 1, keepdims=False))
    x = largest
  return x


def upsample_nearest(x: jax.Array, factor: PerAxis) -> jax.Array:
  """Repeats every voxel of [B, *spatial, C] `factor` times along each spatial axis."""
  for axis, f in enumerate(per_axis(factor, x), start=1):
    x = jnp.repeat(x, f, axis=axis)
  return x


def upsample_linear(x: jax.Array, factor: PerAxis) -> jax.Array:
  """Linear interpolation by integer factors between half-pixel centres, edges repeated.

  Equals `jax.image.resize(..., 'linear')` and PyTorch's `align_corners=False`.

  Args:
    x: [B, *spatial, C].
    factor: 1 or more.

  Returns:
    [B, *(factor·spatial), C].
  """
  for axis, f in enumerate(per_axis(factor, x), start=1):
    if f == 1:
      continue
    position = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    before = jnp.where(position == 0, x, shift(x, axis, 1))
    after = jnp.where(position == x.shape[axis] - 1, x, shift(x, axis, -1))
    # All phases at once, along a new axis: one expression, however large the factor.
    offset = (np.arange(f) + 0.5) / f - 0.5  # from the centre of the input voxel, in its size
    along = [-1 if a == axis + 1 else 1 for a in range(x.ndim + 1)]
    share = jnp.asarray(np.abs(offset), x.dtype).reshape(along)
    first_half = (offset < 0).reshape(along)
    x, before, after = (jnp.expand_dims(y, axis + 1) for y in (x, before, after))
    x = (1 - share) * x + share * jnp.where(first_half, before, after)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
  return x


def resize_align_corners(x: jax.Array, size: Sequence[int]) -> jax.Array:
  """Linear interpolation in which first and last voxels of both grids coincide.

  PyTorch's `align_corners=True`. The positions depend on the whole extent, so a part of an image is
  not resized like the whole.

  Args:
    x: [B, *spatial, C].
    size: of the spatial axes of the result.
  """
  for axis, out in enumerate(size, start=1):
    length = x.shape[axis]
    position = np.linspace(0, length - 1, out) if out > 1 else np.zeros(1)
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(length)))
    x = jnp.tensordot(jnp.asarray(weights, x.dtype), x, axes=((1,), (axis,)))
    x = jnp.moveaxis(x, 0, axis)
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
