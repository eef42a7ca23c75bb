"""One finding of the data doctor, and how lists in its messages are cut short."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

__all__ = ['SHOWN', 'SPLITS', 'Place', 'Problem', 'count', 'shorten']

SPLITS = ('train', 'validation', 'test')
SHOWN = 10  # items of a list, and problems of one kind, that are printed

Place = tuple[str, int]  # split, number among the sections of it that were read


@dataclasses.dataclass(frozen=True)
class Problem:
  """One finding.

  Attributes:
    severity: 'error' where training would stop or learn something wrong, 'warning' where a person
      should look, 'note' for what is merely worth knowing.
    split: where it is.
    kind: groups those of one cause.
    message: a sentence: where, what, and what to do.
    places: the sections to look at; empty if none in particular.
  """

  severity: Literal['error', 'warning', 'note']
  split: str
  kind: str
  message: str
  places: tuple[Place, ...] = ()


def count(number: int, noun: str) -> str:
  """'1 section', '2 sections'."""
  return f'1 {noun}' if number == 1 else f'{number} {noun}s'


def shorten(items: Iterable[Any], limit: int = SHOWN) -> str:
  """'a, b, c and 4 more'."""
  texts = [str(item) for item in items]
  rest = f' and {len(texts) - limit} more' if len(texts) > limit else ''
  return ', '.join(texts[:limit]) + rest
