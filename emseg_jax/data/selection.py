"""Which sections of a source are used: by name, list, random part, slice, share, in this order."""

import fnmatch
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emseg_jax import config
from emseg_jax.errors import DataError

__all__ = ['select']


def select(names: Sequence[str], source: config.Source, *, path: str) -> list[int]:
  """Indices of the used sections, increasing.

  Args:
    names: of all sections, in order.
    source: its `include`, `listed`, `part`, `slices` and `fraction` are applied.
    path: for messages.

  Raises:
    DataError: nothing is left, a pattern fits nothing, or a list names what is not there.
  """
  found = list(range(len(names)))
  if source.include:
    found = _by_pattern(names, source.include, path)
  if source.listed:
    found = sorted(set(found) & _by_list(names, source.listed, path))
  if source.part:
    found = _by_part(found, source.part)
  found = found[parse_slice(source.slices)]
  if not found:
    given = {k: getattr(source, k) for k in ('include', 'listed', 'part', 'slices')}
    chosen = ', '.join(f'{key}={value}' for key, value in given.items() if value)
    raise DataError(f'{path}: {chosen} leaves none of its {len(names)} sections')
  return found[: max(1, round(source.fraction * len(found)))]


def parse_slice(text: str | None) -> slice:
  """'2:10:2' -> slice(2, 10, 2); None -> everything."""
  return slice(*(int(part) if part else None for part in text.split(':'))) if text else slice(None)


def _by_pattern(names: Sequence[str], patterns: Sequence[str], path: str) -> list[int]:
  kept: set[int] = set()
  for pattern in patterns:
    fits = {i for i, name in enumerate(names) if fnmatch.fnmatchcase(name, pattern)}
    if not fits:
      raise DataError(
        f'{path}: include={pattern} fits none of its sections {names[0]} to {names[-1]}'
      )
    kept |= fits
  return sorted(kept)


def _by_list(names: Sequence[str], file: str, path: str) -> set[int]:
  try:
    lines = Path(file).read_text(encoding='utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise DataError(f'{file}: cannot be read as a list of section names: {error}') from error
  wanted = {line.strip() for line in lines if line.strip() and not line.startswith('#')}
  place = {name: i for i, name in enumerate(names)}
  unknown = sorted(wanted - place.keys())
  if unknown:
    raise DataError(
      f'{file}: {unknown[0]} is not one of the sections of {path} ({names[0]} to {names[-1]})'
    )
  return {place[name] for name in wanted}


def _by_part(found: Sequence[int], part: str) -> list[int]:
  """'0.8:1@7': of the order that seed 7 draws, what lies between these shares."""
  shares, _, seed = part.partition('@')
  start, stop = (round(float(share) * len(found)) for share in shares.split(':'))
  order = np.random.default_rng(int(seed)).permutation(len(found))
  return sorted(found[i] for i in order[start:stop])
