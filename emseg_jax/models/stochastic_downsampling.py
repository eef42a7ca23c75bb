"""Stochastic downsampling of Cheng and Varshney (2017): halves an image at random positions."""

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ['draw_indices', 'stochastic_downsample']


def draw_indices(key: jax.Array, cells: int, cell: int) -> jax.Array:
  """For each cell of `cell` positions, half of them: sorted, distinct, all choices equally likely.

  Returns:
    [cells, cell // 2], counted from the cell's start.
  """
  order = jnp.argsort(jax.random.uniform(key, (cells, cell)), axis=-1)
  return jnp.sort(order[:, : cell // 2], axis=-1)


def stochastic_downsample(x: jax.Array, key: jax.Array | None, *, cell: int = 4) -> jax.Array:
  """Halves each spatial axis of [B, *spatial, C] by keeping half of each cell's positions.

  One draw per axis and cell holds for the whole batch and all channels.

  Args:
    x: its spatial sizes are multiples of `cell`, or of 2 without a key.
    key: of the draw; None keeps the even positions, as in evaluation.
    cell: the paper's t, an even number: the larger it is, the more random are the positions.
  """
  for axis in range(1, x.ndim - 1):
    length = x.shape[axis]
    if key is None:
      x = lax.slice_in_dim(x, 0, length, stride=2, axis=axis)
      continue
    cells = length // cell
    kept = draw_indices(jax.random.fold_in(key, axis), cells, cell)
    shape = (*x.shape[:axis], cells, cell, *x.shape[axis + 1 :])
    positions = [lax.index_in_dim(x.reshape(shape), i, axis + 1) for i in range(cell)]
    # Selections between the positions of a cell, not a gather, keep split rows on their device.
    kept = kept.reshape((1,) * axis + kept.shape + (1,) * (len(shape) - axis - 2))
    x = positions[0]
    for i in range(1, cell):
      x = jnp.where(kept == i, positions[i], x)
    x = x.reshape(*x.shape[:axis], length // 2, *x.shape[axis + 2 :])
  return x
