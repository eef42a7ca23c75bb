"""Fields at given coordinates, mirrored beyond the image.

Fields are [*region] with any number of axes behind; coordinates one array per axis of the region,
of as many axes, together broadcastable to the patch.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from emseg_jax.augment.rounding import between

__all__ = ['inside', 'linear', 'mirrored', 'nearest']


def mirrored(coordinates: Sequence[jax.Array], extent: jax.Array) -> list[jax.Array]:
  """Folds coordinates into -0.5 .. extent - 0.5: a b c is followed by c b a, and so on."""
  folded = []
  for coordinate, n in zip(coordinates, extent, strict=True):
    # All of this is exact for whole and half voxels.
    from_edge = jnp.abs(coordinate + 0.5)
    within = from_edge - 2 * n * jnp.floor(from_edge / (2 * n))
    folded.append(jnp.where(within < n, within, 2 * n - within) - 0.5)
  return folded


def inside(coordinates: Sequence[jax.Array], extent: jax.Array) -> jax.Array:
  """Which coordinates, before they are mirrored, are those of a voxel of the image; bool."""
  within = True
  for coordinate, n in zip(coordinates, extent, strict=True):
    near = jnp.floor(coordinate + 0.5)
    within &= (near >= 0) & (near < n)
  return within


def nearest(field: jax.Array, coordinates: Sequence[jax.Array], extent: jax.Array) -> jax.Array:
  """The voxel nearest to every coordinate; [*patch, ...]."""
  index = [jnp.floor(c + 0.5).astype(jnp.int32) for c in coordinates]
  return _gather(field, index, extent)


def linear(
  field: jax.Array, coordinates: Sequence[jax.Array], extent: jax.Array, whole: Sequence[bool]
) -> jax.Array:
  """Interpolates [*region, C] linearly along the axes whose coordinates are not `whole` voxels."""
  lower = [jnp.floor(c) for c in coordinates]
  share = [(c - low)[..., None] for c, low in zip(coordinates, lower, strict=True)]

  def along(axis: int, index: list[jax.Array]) -> jax.Array:
    if axis == len(lower):
      return _gather(field, index, extent)
    first = lower[axis].astype(jnp.int32)
    if whole[axis]:
      return along(axis + 1, [*index, first])
    before, after = (along(axis + 1, [*index, first + step]) for step in (0, 1))
    return between(share[axis], before, after)

  return along(0, [])


def _gather(field: jax.Array, index: Sequence[jax.Array], extent: jax.Array) -> jax.Array:
  """field[index]; beyond the image its edge is repeated."""
  # Clipped here, since mode='clip' first lets negative indices count from the end.
  index = [jnp.clip(i, 0, n - 1) for i, n in zip(index, extent, strict=True)]
  return field.at[tuple(index)].get(mode='promise_in_bounds')
