"""Smooth random displacements: cubic B-splines through random values on a coarse grid.

Everything is computed in whole numbers that float32 holds exactly, so that the matrix products give
the same bits in whatever order they are summed.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from emseg_jax.augment.draws import uniform

__all__ = ['LEVELS', 'control_points', 'spline']

LEVELS = 2**11  # of values in 0..1; displacements of up to 8 voxels are rounded to 0.004
SHARES = 2**12  # of weights, which add up to it or 1 more or less: sums have 23 bits


def control_points(key: jax.Array, count: int, sizes: Sequence[int], *, spacing: int) -> jax.Array:
  """Random whole numbers within -LEVELS..LEVELS for `spline`: [count, *grid]."""
  grid = [math.ceil(size / spacing) + 3 for size in sizes]
  return jnp.round(LEVELS * (2 * uniform(key, (count, *grid)) - 1))


def spline(values: jax.Array, sizes: Sequence[int], *, spacing: int) -> jax.Array:
  """Uniform cubic B-spline with `spacing` voxels between the control points, at voxel centres.

  A weighted mean of 4 control points per axis, so never beyond their range, and with a slope of at
  most the difference of two neighbours over `spacing`.

  Args:
    values: [N, *grid] whole numbers within -LEVELS..LEVELS: N fields with ceil(size / spacing) + 3
      points along each axis.
    sizes: of the result, voxels.
    spacing: voxels.

  Returns:
    [N, *sizes], rounded to whole numbers.
  """
  for size in sizes:
    weights = _weights(size, values.shape[1], spacing)
    # Contracts the first axis of the grid and appends its voxels: all come round in order.
    values = jnp.tensordot(values, weights, ((1,), (0,)), precision=jax.lax.Precision.HIGHEST)
    values = jnp.round(values / SHARES)
  return values


def _weights(size: int, points: int, spacing: int) -> np.ndarray:
  """Weight of every control point in every voxel, in SHARES: [points, size] float32."""
  knot, phase = np.divmod(np.arange(size), spacing)
  t = (phase + 0.5) / spacing
  s = 1 - t
  basis = s**3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (3 * s**3 - 6 * s**2 + 4) / 6, t**3 / 6
  weights = np.zeros((points, size), np.float32)
  for k, share in enumerate(basis):
    weights[knot + k, np.arange(size)] = np.rint(SHARES * share)
  return weights
