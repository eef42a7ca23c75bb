"""What is drawn for every example: numbers in [0, 1), and keys for what differs between voxels.

All of it is drawn whether an option uses it or not: switching one change on or off leaves the
others as they were.
"""

import math
from collections.abc import Sequence

import jax

__all__ = ['Draws', 'Keys', 'draw', 'uniform']

Draws = dict[str, jax.Array]
Keys = dict[str, jax.Array]

NUMBERS = (
  *(f'mirror_{axis}' for axis in 'zyx'),
  'half_turn',
  'quarter_turn',
  'rotation',
  'shear',
  *(f'shift_{axis}' for axis in 'yx'),
  'zoom',
  *(f'corner_{axis}' for axis in 'zyx'),
  'elastic',
  'blur',
  'gamma',
  'contrast',
  'brightness',
  'noise',
  # Under the name of a defect: whether it occurs.
  *('missing_section', 'missing_section_z', 'missing_section_grey'),
  *('misalignment', 'misalignment_z', 'misalignment_to'),
  *('slice_shift', 'slice_shift_z', 'slice_shift_to'),
  *('motion_blur', 'motion_blur_z', 'motion_blur_angle', 'motion_blur_length'),
  *('cut_out', *(f'cut_out_{part}_{axis}' for part in ('size', 'place') for axis in 'zyx')),
  *('cut_noise', *(f'cut_noise_{part}_{axis}' for part in ('size', 'place') for axis in 'zyx')),
  *('stripes', 'stripes_strength'),
  *('bands', 'bands_z', 'bands_size', 'bands_place', 'bands_contrast'),
)
FIELDS = ('elastic', 'noise', 'cut_noise', 'stripes')


def draw(key: jax.Array) -> tuple[Draws, Keys]:
  """The draws of one example: float32 scalars in [0, 1), and keys."""
  number_key, *keys = jax.random.split(key, 1 + len(FIELDS))
  numbers = jax.random.uniform(number_key, (len(NUMBERS),))
  return dict(zip(NUMBERS, numbers, strict=True)), dict(zip(FIELDS, keys, strict=True))


def uniform(key: jax.Array, shape: Sequence[int]) -> jax.Array:
  """Independent numbers in [0, 1), float32."""
  # Drawn flat: the numbers are the same, and the program compiles several times as fast.
  return jax.random.uniform(key, (math.prod(shape),)).reshape(shape)
