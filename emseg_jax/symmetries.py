"""Mirrored and turned copies of an image, whose predictions are averaged.

A symmetry permutes spatial axes and then mirrors some of them. What a network says of such a copy
is brought back, so that all copies say something of the same voxels.
"""

import dataclasses
import itertools
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ['Symmetry', 'symmetries']


@dataclasses.dataclass(frozen=True)
class Symmetry:
  """Attributes:
  axes: the i-th axis of the copy is the axes[i]-th of the image; spatial axes, from 0.
  flips: which axes of the copy are mirrored then.
  """

  axes: tuple[int, ...]
  flips: tuple[bool, ...]

  def apply(self, image: jax.Array) -> jax.Array:
    """[B, *spatial, C] -> its copy."""
    return _mirrored(_permuted(image, self.axes), self.flips)

  def undo(self, copy: jax.Array) -> jax.Array:
    """What is said of a copy, [B, *spatial, K], as it lies in the image."""
    return _permuted(_mirrored(copy, self.flips), tuple(np.argsort(self.axes)))


def _permuted(x: jax.Array, axes: Sequence[int]) -> jax.Array:
  return jnp.transpose(x, (0, *(int(axis) + 1 for axis in axes), x.ndim - 1))


def _mirrored(x: jax.Array, flips: Sequence[bool]) -> jax.Array:
  axes = tuple(axis + 1 for axis, flip in enumerate(flips) if flip)
  return jnp.flip(x, axes) if axes else x


def symmetries(names: Collection[str], ndim: int) -> tuple[Symmetry, ...]:
  """All different combinations of what is named, the image itself first.

  Args:
    names: 'flips' mirrors every axis or not; 'rotations' turns by quarters about z; 'views' looks
      at a volume along each of its axes.
    ndim: number of spatial axes, 2 or 3.
  """
  straight = tuple(range(ndim))
  views = [straight]
  if 'views' in names:
    views = [(0, 1, 2), (1, 0, 2), (2, 1, 0)]
  found = []
  for view, turned in itertools.product(views, (False, True)):
    # A quarter turn is y and x exchanged, and one of them mirrored; half a turn mirrors both.
    axes = (*view[:-2], view[-1], view[-2]) if turned else view
    for flips in itertools.product((False, True), repeat=ndim):
      is_rotation = turned == (flips[-1] != flips[-2]) and not any(flips[:-2])
      if 'rotations' not in names:
        wanted = not turned and ('flips' in names or not any(flips))
      else:
        wanted = 'flips' in names or is_rotation
      if wanted:
        found.append(Symmetry(axes, flips))
  return tuple(found)
