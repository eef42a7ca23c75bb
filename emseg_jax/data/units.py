"""Lengths and their units, as the file formats spell them."""

import math
import re
from collections.abc import Sequence

__all__ = ['VoxelSize', 'known_size', 'to_nanometres']

VoxelSize = tuple[float | None, float | None, float | None]

# Nanometres per unit, in the spellings of ImageJ (any), OME (the symbols, in Zarr the words) and
# N5.
NANOMETRES = {
  'pm': 1e-3,
  'picometer': 1e-3,
  'å': 0.1,
  'angstrom': 0.1,
  'nm': 1.0,
  'nanometer': 1.0,
  'nanometre': 1.0,
  'um': 1e3,
  '\N{MICRO SIGN}m': 1e3,
  '\N{GREEK SMALL LETTER MU}m': 1e3,
  'micron': 1e3,
  'micrometer': 1e3,
  'micrometre': 1e3,
  'mm': 1e6,
  'millimeter': 1e6,
  'millimetre': 1e6,
  'm': 1e9,
  'meter': 1e9,
  'metre': 1e9,
}


def to_nanometres(unit: str) -> float | None:
  """Nanometres in one `unit`; None where it is no known length."""
  # ImageJ escapes the micro sign, as in a Java source file.
  unit = re.sub(r'\\u([0-9a-fA-F]{4})', lambda m: chr(int(m[1], 16)), unit).strip().lower()
  return NANOMETRES.get(unit) or NANOMETRES.get(unit.removesuffix('s'))


def known_size(size: Sequence[float | None]) -> VoxelSize | None:
  """(z, y, x) with None for what cannot be a length; None if nothing is left."""
  z, y, x = (s if s is not None and math.isfinite(s) and s > 0 else None for s in size)
  return None if z is y is x is None else (z, y, x)
