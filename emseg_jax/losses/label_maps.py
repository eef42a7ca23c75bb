"""Targets made from labels on the device, after augmentation: boundaries and affinities.

Labels are [B, *spatial] integer, weights [B, *spatial]; a voxel of weight 0 is the neighbour of
none.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

__all__ = ['affinities', 'boundary_map']

# (y, x) from a voxel to those that it is compared with: every pair of neighbours once.
PAIRS = ((-1, 0), (0, 1), (1, 1), (1, -1))


def boundary_map(labels: jax.Array, weights: jax.Array, *, width: int = 4) -> jax.Array:
  """Where classes meet, for PIDNet's boundary head (MMSegmentation's GenerateEdge).

  An edge is a voxel whose label differs from that above it, right of it, or diagonally below it.
  Edges are widened to a square of `width` voxels; an even one reaches further down and right.
  Sections of a volume are taken one by one.

  Args:
    labels: [B, *spatial] integer.
    weights: [B, *spatial]; there is no edge at a voxel of weight 0.
    width: side of the square.

  Returns:
    [B, *spatial] float32, 1 on a boundary, else 0.

  Raises:
    ValueError: `width` is not a positive integer.
  """
  if not isinstance(width, int) or width < 1:
    raise ValueError(f'width is {width!r}, must be an integer of 1 or more')
  valid = weights > 0
  edge = jnp.zeros(labels.shape, bool)
  for pair in PAIRS:
    offset = (0,) * (labels.ndim - 3) + pair
    differs = labels != _neighbour(labels, offset)
    edge |= differs & valid & _neighbour(valid, offset)
  window = (1,) * (labels.ndim - 2) + (width, width)
  padding = [(w // 2, w - 1 - w // 2) for w in window]
  ones = (1,) * labels.ndim
  return jax.lax.reduce_window(edge.astype(jnp.float32), 0.0, jax.lax.max, window, ones, padding)


def affinities(
  labels: jax.Array, weights: jax.Array, *, offsets: Sequence[Sequence[int]]
) -> tuple[jax.Array, jax.Array]:
  """Whether a voxel and its neighbour at each offset belong to one object.

  Args:
    labels: [B, *spatial] integer; 0 is background.
    weights: [B, *spatial].
    offsets: A offsets in voxels, each with one number per spatial axis.

  Returns:
    Affinities [B, *spatial, A] float32: 1 where both labels are the same and not background, else
    0. Their weights [B, *spatial, A]: that of the voxel, 0 where the neighbour's is 0 or the
    neighbour is outside.

  Raises:
    ValueError: there are no offsets, one is 0, or one has another number of axes than the labels.
  """
  offsets = [tuple(offset) for offset in offsets]
  if not offsets or not all(any(offset) for offset in offsets):
    raise ValueError(f'offsets is {offsets}, must be one or more offsets other than 0')
  axes = labels.ndim - 1
  if any(len(offset) != axes for offset in offsets):
    raise ValueError(f'offsets is {offsets}, each must have {axes} numbers, one per axis')
  w = jnp.where(weights > 0, weights, 0.0).astype(jnp.float32)
  same, counted = [], []
  for offset in offsets:
    same.append((labels > 0) & (labels == _neighbour(labels, offset)))
    counted.append(jnp.where(_neighbour(w, offset) > 0, w, 0.0))
  return jnp.stack(same, axis=-1).astype(jnp.float32), jnp.stack(counted, axis=-1)


def _neighbour(x: jax.Array, offset: Sequence[int]) -> jax.Array:
  """x [B, *spatial] at each voxel's place plus `offset`; 0 or False outside."""
  padding = [(0, 0)] + [(max(-o, 0), max(o, 0)) for o in offset]
  start = [0] + [max(o, 0) for o in offset]
  stop = [s + n for s, n in zip(start, x.shape, strict=True)]
  return jax.lax.slice(jnp.pad(x, padding), start, stop)
