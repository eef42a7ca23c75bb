"""Colours of classes: what the user chose, or a palette that the colour-blind can tell apart."""

from collections.abc import Sequence

import numpy as np

from emseg_jax.errors import ConfigError

__all__ = ['PALETTE', 'UNSCORED', 'class_colours']

# Okabe & Ito (2008), "Color universal design", without black, which vanishes on dark pages; then
# two of Paul Tol's muted scheme (2021) for tasks with many classes.
PALETTE = (
  *('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#f0e442'),
  *('#999933', '#aa4499'),
)
UNSCORED = '#808080'


def class_colours(colours: Sequence[str] | None, count: int) -> tuple[str, ...]:
  """'#rrggbb' for each of `count` classes; None takes the palette, darkened when it repeats.

  Raises:
    ConfigError: a colour cannot be read, or there are fewer colours than classes.
  """
  from matplotlib import colors

  if colours is None:
    shades = [1.0 - 0.4 * (i // len(PALETTE)) for i in range(count)]
    base = [np.array(colors.to_rgb(PALETTE[i % len(PALETTE)])) for i in range(count)]
    return tuple(colors.to_hex(c * max(s, 0.2)) for c, s in zip(base, shades, strict=True))
  if len(colours) < count:
    raise ConfigError(f'task.colours has {len(colours)} colours for {count} classes')
  for colour in colours:
    if not colors.is_color_like(colour):
      raise ConfigError(f"task.colours: '{colour}' is not a colour; write '#rrggbb'")
  return tuple(colors.to_hex(colour) for colour in colours[:count])
