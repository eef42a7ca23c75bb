"""Where every voxel of a patch comes from: all geometric changes as one map of coordinates.

  source = centre + L (voxel - middle of the patch + shift + elastic displacement) + shifted section
  L = rotation · shear · mirrorings · quarter turns / zoom

Coordinates are voxels of the region, 0 at the centre of its first one; angles turn y towards x.
Rotation, shear and shift act in the plane; zoom and elastic displacement on z only if isotropic.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from emseg_jax import config
from emseg_jax.augment import defects, elastic
from emseg_jax.augment.draws import Draws
from emseg_jax.augment.rounding import between, choose, pick, spread, times

__all__ = ['copies', 'read_size', 'source']

# Row a, entry b: how far a step along axis b of the patch goes along axis a of the region. Absent
# entries are 0.
Linear = list[dict[int, jax.Array]]


def read_size(options: config.Augment, patch: Sequence[int]) -> tuple[int, ...]:
  """Size in voxels of the region (y, x) or (z, y, x) that the host has to read for one patch.

  As large as the largest box around the turned, sheared and shifted patch, over the smallest zoom:
  zooming out by 2 shows twice the extent. The patch itself if nothing looks beyond it.
  """
  smallest = min(1.0, options.resize[0])
  y, x = (n / 2 + options.elastic + _largest_shift(options, n) for n in patch[-2:])
  x_sheared = x + math.tan(math.radians(options.shear)) * y
  margin = defects.largest_section_shift(options.defects)
  plane = (
    2 * _widest(a, b, options.rotate) / smallest + 2 * margin
    for a, b in ((y, x_sheared), (x_sheared, y))
  )
  depth = list(patch[:-2])
  if options.isotropic:
    depth = [(n + 2 * options.elastic) / smallest for n in depth]
  # Rounding first, or 90 / 0.3 = 300.00000000000006 would cost a voxel.
  return tuple(math.ceil(round(size, 6)) for size in (*depth, *plane))


def _widest(a: float, b: float, degrees: float) -> float:
  """max a |cos t| + b |sin t| over |t| <= degrees, for a, b > 0; it grows up to tan t = b / a."""
  t = min(math.radians(degrees), math.atan2(b, a))
  return a * math.cos(t) + b * math.sin(t)


def _largest_shift(options: config.Augment, size: int) -> int:
  return round(options.shift * size)


def copies(options: config.Augment, patch: Sequence[int]) -> tuple[bool, ...]:
  """Which axes have whole-voxel coordinates, so that nothing is interpolated along them."""
  scaled = options.resize != (1.0, 1.0) or options.elastic > 0
  plane = not (scaled or options.rotate or options.shear)
  depth = not (scaled and options.isotropic)
  return (depth,) * (len(patch) - 2) + (plane, plane)


def source(
  draws: Draws,
  elastic_key: jax.Array,
  valid: jax.Array,
  *,
  options: config.Augment,
  patch: Sequence[int],
) -> list[jax.Array]:
  """The coordinate along each axis that every voxel of the patch is taken from.

  The patch is placed at random where the box around it fits into the image, in the middle of it
  along an axis where it does not.

  Args:
    draws: of `draws.draw`.
    elastic_key: for the displacements.
    valid: [ndim], the extent of the region that is image.
    options: which changes.
    patch: size of the patch, voxels.

  Returns:
    One float32 array per axis, of ndim axes, together broadcastable to the patch: (z, y, x) have
    shapes [Z, 1, 1], [1, Y, X], [1, Y, X] unless sections or elastic displacements differ.
  """
  ndim = len(patch)
  linear = _linear(draws, options, ndim)
  shift = [_shift(draws, options, axis, n) for axis, n in zip('zyx'[-ndim:], patch, strict=True)]
  reach = [n / 2 + jnp.abs(s) for n, s in zip(patch, shift, strict=True)]
  warped = _warped_axes(options, ndim)
  reach = [r + options.elastic if a in warped else r for a, r in enumerate(reach)]
  half = _apply([{b: jnp.abs(v) for b, v in row.items()} for row in linear], reach)
  offset = [
    (jnp.arange(n) - (n - 1) / 2).reshape([-1 if a == axis else 1 for a in range(ndim)])
    for axis, n in enumerate(patch)
  ]
  for a, displacement in _displacements(draws, elastic_key, warped, options, patch).items():
    offset[a] = offset[a] + displacement
  coordinates = _apply(linear, offset)
  moved = _apply(linear, shift)
  sections = defects.section_shifts(draws, options.defects, patch)
  whole = copies(options, patch)
  for a, name in enumerate('zyx'[-ndim:]):
    in_plane = a >= ndim - 2
    margin = defects.largest_section_shift(options.defects) if in_plane else 0
    centre = _place(draws[f'corner_{name}'], valid[a], half[a] + margin, whole=whole[a])
    coordinates[a] = coordinates[a] + (centre + moved[a])
    if in_plane and sections is not None:
      coordinates[a] = coordinates[a] + sections[a - ndim]
  return coordinates


def _apply(linear: Linear, vector: Sequence[jax.Array]) -> list[jax.Array]:
  return [sum(times(v, vector[b]) for b, v in row.items()) for row in linear]


def _linear(draws: Draws, options: config.Augment, ndim: int) -> Linear:
  """L: mirrorings and quarter turns first, all 8 ways alike; then shear, rotation and zoom."""
  sign = {
    axis: jnp.where((axis in options.flip) & (draws[f'mirror_{axis}'] < 0.5), -1.0, 1.0)
    for axis in 'zyx'
  }
  half, quarter = (options.rotate90 & (draws[f'{part}_turn'] < 0.5) for part in ('half', 'quarter'))
  turned = jnp.where(half, -1.0, 1.0)
  y, x = sign['y'] * turned, sign['x'] * turned
  # A quarter turn as rot90 makes it: out[i, j] = in[j, n - 1 - i].
  plane = [
    [jnp.where(quarter, 0.0, y), jnp.where(quarter, y, 0.0)],
    [jnp.where(quarter, -x, 0.0), jnp.where(quarter, 0.0, x)],
  ]
  if options.shear:
    slope = pick(draws['shear'], np.tan(np.radians(spread(options.shear))))
    plane[1] = [v + times(slope, u) for u, v in zip(*plane, strict=True)]
  if options.rotate:
    angle = np.radians(spread(options.rotate))
    cos, sin = pick(draws['rotation'], np.stack([np.cos(angle), np.sin(angle)], axis=1))
    upper = [times(cos, u) - times(sin, v) for u, v in zip(*plane, strict=True)]
    lower = [times(sin, u) + times(cos, v) for u, v in zip(*plane, strict=True)]
    plane = [upper, lower]
  linear = [dict(enumerate(row, start=ndim - 2)) for row in plane]
  if ndim == 3:
    linear.insert(0, {0: sign['z']})
  if options.resize != (1.0, 1.0):
    zoom = between(draws['zoom'], *options.resize)
    first = 0 if options.isotropic else ndim - 2
    linear[first:] = [{b: v / zoom for b, v in row.items()} for row in linear[first:]]
  return linear


def _shift(draws: Draws, options: config.Augment, axis: str, size: int) -> jax.Array:
  """Whole voxels of the patch."""
  if axis == 'z' or not options.shift:
    return jnp.zeros(())
  most = _largest_shift(options, size)
  return (choose(draws[f'shift_{axis}'], 2 * most + 1) - most).astype(jnp.float32)


def _place(draw: jax.Array, extent: jax.Array, half: jax.Array, *, whole: bool) -> jax.Array:
  """Coordinate of the middle of a box, 2 `half` long, at a random place within 0 .. extent."""
  room = extent - 2 * half
  if whole:
    corner = choose(draw, jnp.maximum(room, 0) + 1) + jnp.floor(jnp.minimum(room, 0) / 2)
  else:
    corner = times(draw, jnp.maximum(room, 0.0)) + jnp.minimum(room, 0.0) / 2
  return corner + (half - 0.5)


def _warped_axes(options: config.Augment, ndim: int) -> range:
  if not options.elastic:
    return range(0)
  return range(0 if options.isotropic else ndim - 2, ndim)


def _displacements(
  draws: Draws, key: jax.Array, axes: range, options: config.Augment, patch: Sequence[int]
) -> dict[int, jax.Array]:
  """Elastic displacement along each of `axes`, voxels of the patch; in the plane that of all z."""
  if not axes:
    return {}
  sizes, spacing = [patch[a] for a in axes], options.elastic_spacing
  step = draws['elastic'] * (options.elastic / elastic.LEVELS)
  shape = [n if a in axes else 1 for a, n in enumerate(patch)]
  controls = elastic.control_points(key, len(axes), sizes, spacing=spacing)
  fields = times(step, elastic.spline(controls, sizes, spacing=spacing))
  return {a: field.reshape(shape) for a, field in zip(axes, fields, strict=True)}
