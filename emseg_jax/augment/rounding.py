"""Arithmetic that gives the same bits however it is compiled.

Programs compiled for another batch size or device count add up in another order, contract other
pairs of a product and a sum to one rounding (FMA), and may round a sine or a logarithm otherwise in
vectors of another length. So products that are added to something go through `times`, means through
`mean`, and functions of a draw are looked up in a table that numpy made (`pick`).
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

__all__ = ['between', 'choose', 'mean', 'normal', 'pick', 'spread', 'times']

LEVELS = 4096  # of tables: angles within 180 degrees are 0.09 apart


def times(a: jax.Array | np.ndarray, b: jax.Array) -> jax.Array:
  """a · b, rounded to 22 bits of mantissa before anything is added to it."""
  return jax.lax.reduce_precision(a * b, exponent_bits=8, mantissa_bits=22)


def between(share: jax.Array, low: jax.Array | float, high: jax.Array | float) -> jax.Array:
  """low + share (high - low); exactly `low` where both are equal."""
  return low + times(share, high - low)


def mean(values: jax.Array) -> jax.Array:
  """Mean over the spatial axes of [*spatial, C] within 0..1, to 2^-17, as a sum of integers.

  Axes have at most 8192 voxels. Returns [1, ..., 1, C].
  """
  *spatial, last = values.shape[:-1]
  levels = jnp.round(values * 2**17).astype(jnp.int32)
  for axis, size in enumerate(spatial):
    levels = jnp.sum(levels, axis, keepdims=True) // size  # keeps the next sum within int32
  return jnp.sum(levels, axis=-2, keepdims=True) / (last * 2**17)


def choose(draw: jax.Array, count: jax.Array | int) -> jax.Array:
  """One of 0 .. count - 1, all alike, from a draw in [0, 1); int32."""
  return jnp.floor(draw * count).astype(jnp.int32)


def pick(draw: jax.Array, table: np.ndarray) -> jax.Array:
  """One row of a table [N, ...], all alike, for each draw in [0, 1); float32."""
  rows = jnp.asarray(table, jnp.float32).at[choose(draw, len(table))]
  return rows.get(mode='promise_in_bounds')


def spread(limit: float) -> np.ndarray:
  """A table of numbers within -limit..limit, symmetric about 0 and evenly spaced."""
  return limit * ((2 * np.arange(LEVELS) + 1) / LEVELS - 1)


def normal(draw: jax.Array) -> jax.Array:
  """Numbers of N(0, 1) from draws in [0, 1), in steps of equal probability, up to 3.7."""
  return pick(draw, special.ndtri((np.arange(LEVELS) + 0.5) / LEVELS))
