"""What the sections of a configuration are made of: their base class and the types of fields."""

import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

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
  'pick',
]

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Colour = Annotated[str, Field(pattern='^#[0-9a-fA-F]{6}$')]
SizeYX = tuple[Positive, Positive]
Size = Annotated[tuple[Positive, ...], Field(min_length=2, max_length=3)]
Range = tuple[float, float]
T = TypeVar('T')


class Section(pydantic.BaseModel):
  """Base of all sections: frozen, no unknown fields, finite numbers only."""

  model_config = pydantic.ConfigDict(
    extra='forbid', frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True
  )

  @pydantic.field_validator('*', mode='before')
  @classmethod
  def _check_truth(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
    """`true` is no number, though Python and pydantic take it for 1."""
    annotation = cls.model_fields[info.field_name].annotation
    if _has_truth(value) and not _takes_truth(annotation):
      raise ValueError('should be a number or text, not true or false')
    return value


def _has_truth(value: Any) -> bool:
  """Whether a boolean is in it."""
  inside = value.values() if isinstance(value, Mapping) else value
  return isinstance(value, bool) or (
    isinstance(inside, Iterable) and not isinstance(value, str) and any(map(_has_truth, inside))
  )


def _takes_truth(annotation: Any) -> bool:
  """Whether a type has a place for booleans, or for sections, which check their own fields."""
  if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
    return True
  return annotation in (bool, Any) or any(map(_takes_truth, typing.get_args(annotation)))


def parse_arg(arg: str, *, choices: tuple[str, ...] = (), **defaults: str | bool) -> dict[str, Any]:
  """Parses the part of `--config=FILE:ARG` behind the colon: 'choice,key=value,switch,...'.

  Args:
    arg: the text; empty gives the defaults.
    choices: words of which one may come first; found under 'choice', the first if none is given.
    **defaults: known keys; those with a boolean default are switches, named alone.

  Raises:
    ConfigError: a key is not known.
  """
  found = dict(defaults)
  parts = [part for part in arg.split(',') if part]
  if choices:
    found['choice'] = parts.pop(0) if parts and parts[0] in choices else choices[0]
  for part in parts:
    key, equals, value = part.partition('=')
    if key not in defaults or isinstance(defaults[key], bool) == bool(equals):
      forms = [k if isinstance(v, bool) else f'{k}=...' for k, v in defaults.items()]
      first = f'first one of {", ".join(choices)}; then ' if choices else ''
      raise ConfigError(f'--config=...:{arg}: {part!r} is not one of: {first}{", ".join(forms)}')
    found[key] = value if equals else True
  return found


def pick(arg: str, options: Mapping[str, T], key: str) -> T:
  """options[key]; a ConfigError that lists the keys if there is none.

  Raises:
    ConfigError: no such key.
  """
  if key not in options:
    raise ConfigError(f'--config=...:{arg}: {key!r} is not one of: {", ".join(options)}')
  return options[key]
