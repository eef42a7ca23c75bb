"""What goes wrong in electron microscopy, each in a given share of the examples.

Misaligned and shifted sections move image and labels together: that is what a stack looks like that
was labelled as it is. All others change the image alone; what was there is still to be found. Boxes
are at most half as long as the patch along each axis.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from emseg_jax import config
from emseg_jax.augment import elastic, intensity
from emseg_jax.augment.draws import Draws, Keys, uniform
from emseg_jax.augment.rounding import between, choose, normal, pick, times

__all__ = [
  'OF_VOLUMES',
  'largest_section_shift',
  'motion_blur',
  'occlude',
  'section_shifts',
]

OF_VOLUMES = 'missing_section', 'misalignment', 'slice_shift'

SMEAR = 4  # largest half length of motion blur, voxels
DIRECTIONS = 64  # of it
CURTAIN = 3  # voxels between the control points of stripes
CURTAIN_STRENGTH = 2.0  # largest offset, standard deviations of the patch
BAND_CONTRAST = 0.5  # largest relative change


def largest_section_shift(options: config.Defects) -> int:
  """How far misalignment and slice shift together move a section along y or x, voxels."""
  return options.shift * sum(name in _active(options) for name in ('misalignment', 'slice_shift'))


def _active(options: config.Defects) -> set[str]:
  return {name for name in type(options).model_fields if name != 'shift' and getattr(options, name)}


def section_shifts(
  draws: Draws, options: config.Defects, patch: Sequence[int]
) -> tuple[jax.Array, jax.Array] | None:
  """Whole voxels (y, x) by which each section of a volume is shifted, both [Z, 1, 1].

  Misalignment shifts all sections from one on, which is not the first; slice shift a single one.
  None if neither is switched on.
  """
  if not largest_section_shift(options):
    return None
  section = jnp.arange(patch[0]).reshape(-1, 1, 1)
  y = x = jnp.zeros(section.shape)
  if options.misalignment:
    first = 1 + choose(draws['misalignment_z'], max(patch[0] - 1, 1))
    moved = (section >= first) & (draws['misalignment'] < options.misalignment)
    by_y, by_x = _vector(draws['misalignment_to'], options.shift)
    y, x = y + jnp.where(moved, by_y, 0.0), x + jnp.where(moved, by_x, 0.0)
  if options.slice_shift:
    one = choose(draws['slice_shift_z'], patch[0])
    moved = (section == one) & (draws['slice_shift'] < options.slice_shift)
    by_y, by_x = _vector(draws['slice_shift_to'], options.shift)
    y, x = y + jnp.where(moved, by_y, 0.0), x + jnp.where(moved, by_x, 0.0)
  return y, x


def _vector(draw: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
  """One of all (y, x) of whole numbers within -most .. most, except (0, 0)."""
  side = 2 * most + 1
  # Counted from the one behind (0, 0), which is the middle of the square, round to that before it.
  which = (side**2 // 2 + 1 + choose(draw, side**2 - 1)) % side**2
  return (which // side - most).astype(jnp.float32), (which % side - most).astype(jnp.float32)


def motion_blur(image: jax.Array, draws: Draws, options: config.Defects) -> jax.Array:
  """The mean along a line of 3 to 9 voxels, of an image [Y, X, C] or one section of [Z, Y, X, C].

  The line has a random direction, in whole voxels; edges are mirrored.
  """
  if not options.motion_blur:
    return image
  occurs = draws['motion_blur'] < options.motion_blur
  if image.ndim == 3:
    return jnp.where(occurs, _smear(image, draws), image)
  which = choose(draws['motion_blur_z'], image.shape[0])
  smeared = _smear(jax.lax.dynamic_index_in_dim(image, which, keepdims=False), draws)
  return jnp.where(occurs & _section(image, which), smeared[None], image)


def _smear(image: jax.Array, draws: Draws) -> jax.Array:
  angle = np.pi * np.arange(DIRECTIONS) / DIRECTIONS
  direction = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
  direction /= np.max(np.abs(direction), axis=-1, keepdims=True)  # every step is another voxel
  steps = np.arange(-SMEAR, SMEAR + 1)
  line = np.rint(direction[:, None] * steps[:, None])
  line = pick(draws['motion_blur_angle'], line).astype(jnp.int32)  # [steps, 2]
  half = 1 + choose(draws['motion_blur_length'], SMEAR)
  padded = jnp.pad(image, ((SMEAR, SMEAR), (SMEAR, SMEAR), (0, 0)), mode='symmetric')
  total = jnp.zeros_like(image)
  for place, step in zip(line, steps, strict=True):
    start = (place[0] + SMEAR, place[1] + SMEAR, 0)
    shifted = jax.lax.dynamic_slice(padded, start, image.shape)
    total = total + jnp.where(abs(int(step)) <= half, shifted, 0.0)
  return times(1.0 / (2 * half + 1), total)


def _section(image: jax.Array, which: jax.Array) -> jax.Array:
  """True in one section: [Z, 1, 1, 1] of a volume [Z, Y, X, C]; True of an image."""
  if image.ndim == 3:
    return jnp.ones((1, 1, 1), bool)
  return (jnp.arange(image.shape[0]) == which).reshape(-1, 1, 1, 1)


def occlude(image: jax.Array, draws: Draws, keys: Keys, options: config.Defects) -> jax.Array:
  """Stripes, contrast bands, boxes of noise and of grey, and missing sections, in this order.

  Their grey values are those of the patch [*spatial, C] before all of them.
  """
  active = _active(options) - {'misalignment', 'slice_shift', 'motion_blur'}
  if not active:
    return image
  grey = intensity.measure(image)
  for name, change in CHANGES.items():
    if name in active:
      occurs = draws[name] < getattr(options, name)
      image = jnp.where(occurs, change(image, grey, draws, keys), image)
  return image


def _stripes(image: jax.Array, grey: intensity.Grey, draws: Draws, keys: Keys) -> jax.Array:
  """+ U(0, 2) std s(x): a smooth s within -1..1, the same for all y and z, as milling leaves it."""
  size = (image.shape[-2],)
  values = elastic.control_points(keys['stripes'], 1, size, spacing=CURTAIN)
  offset = elastic.spline(values, size, spacing=CURTAIN) / elastic.LEVELS
  offset = offset.reshape([1] * (image.ndim - 2) + [-1, 1])
  strength = CURTAIN_STRENGTH * draws['stripes_strength']
  return image + times(strength * grey.std, offset)


def _bands(image: jax.Array, grey: intensity.Grey, draws: Draws, keys: Keys) -> jax.Array:
  """Other contrast, about the mean, in some lines (up to half) of an image or one section."""
  del keys
  size = image.shape[-3]
  height = 1 + choose(draws['bands_size'], size // 2)
  first = choose(draws['bands_place'], size - height + 1)
  line = jnp.arange(size)
  inside = ((line >= first) & (line < first + height)).reshape([-1, 1, 1])
  inside = inside.reshape((1,) * (image.ndim - 3) + inside.shape)
  if image.ndim == 4:
    inside &= _section(image, choose(draws['bands_z'], image.shape[0]))
  factor = 1.0 + between(draws['bands_contrast'], -BAND_CONTRAST, BAND_CONTRAST)
  return jnp.where(inside, grey.mean + times(factor, image - grey.mean), image)


def _cut_noise(image: jax.Array, grey: intensity.Grey, draws: Draws, keys: Keys) -> jax.Array:
  """Gaussian noise of one standard deviation of the patch."""
  noise = normal(uniform(keys['cut_noise'], (*image.shape[:-1], 1)))
  return jnp.where(_box(draws, 'cut_noise', image), image + times(grey.std, noise), image)


def _cut_out(image: jax.Array, grey: intensity.Grey, draws: Draws, keys: Keys) -> jax.Array:
  del keys
  return jnp.where(_box(draws, 'cut_out', image), grey.mean, image)


def _missing_section(image: jax.Array, grey: intensity.Grey, draws: Draws, keys: Keys) -> jax.Array:
  """One section at the smallest or the mean grey value of the patch, half the time each."""
  del keys
  blank = jnp.where(draws['missing_section_grey'] < 0.5, grey.low, grey.mean)
  return jnp.where(_section(image, choose(draws['missing_section_z'], len(image))), blank, image)


def _box(draws: Draws, name: str, image: jax.Array) -> jax.Array:
  """True in a box at a random place, of 1 voxel to half the patch along each axis; bool."""
  within = True
  ndim = image.ndim - 1
  for axis, letter in enumerate('zyx'[-ndim:]):
    size = image.shape[axis]
    length = 1 + choose(draws[f'{name}_size_{letter}'], size // 2)
    first = choose(draws[f'{name}_place_{letter}'], size - length + 1)
    line = jnp.arange(size).reshape([-1 if a == axis else 1 for a in range(image.ndim)])
    within &= (line >= first) & (line < first + length)
  return within


CHANGES = {
  'stripes': _stripes,
  'bands': _bands,
  'cut_noise': _cut_noise,
  'cut_out': _cut_out,
  'missing_section': _missing_section,
}
