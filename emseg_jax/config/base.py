"""What the sections of a configuration are made of: their base class and the types of fields."""

from typing import Annotated, Any

import pydantic
from pydantic import Field

from emseg_jax.errors import ConfigError

__all__ = [
  'BelowOne',
  'Colour',
  'NonNegative',
  'Positive',
  'Range',
  'Section',
  'Size',
  'SizeYX',
  'parse_arg',
]

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Colour = Annotated[str, Field(pattern='^#[0-9a-fA-F]{6}$')]
SizeYX = tuple[Positive, Positive]
Size = Annotated[tuple[Positive, ...], Field(min_length=2, max_length=3)]
Range = tuple[float, float]


class Section(pydantic.BaseModel):
  """Base of all sections: frozen, no unknown fields, finite numbers only."""

  model_config = pydantic.ConfigDict(
    extra='forbid', frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True
  )


def parse_arg(arg: str, **defaults: str | bool) -> dict[str, Any]:
  """Parses the part of `--config=FILE:ARG` behind the colon: 'key=value,switch,...'.

  Args:
    arg: the text; empty gives the defaults.
    **defaults: known keys; those with a boolean default are switches, named alone.

  Raises:
    ConfigError: a key is not known.
  """
  found = dict(defaults)
  for part in filter(None, arg.split(',')):
    key, equals, value = part.partition('=')
    if key not in defaults or isinstance(defaults[key], bool) == bool(equals):
      forms = [k if isinstance(v, bool) else f'{k}=...' for k, v in defaults.items()]
      raise ConfigError(f'--config=...:{arg}: {part!r} is not one of: {", ".join(forms)}')
    found[key] = value if equals else True
  return found
