"""What a mode found out: a text for people or one JSON document for scripts, on stdout.

Messages of all kinds go to stderr. Numbers that JSON does not know, such as NaN, become null.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emseg_jax.errors import EmsegError

__all__ = ['Outcome', 'to_json']


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The result of a mode.

  Attributes:
    record: for --json, keys of text to what `to_json` takes.
    text: for people; empty where the result are the files that were written.
    error: the result is complete, but bad: to be raised after it is shown.
  """

  record: Mapping[str, Any]
  text: str = ''
  error: EmsegError | None = None

  def show(self, *, as_json: bool) -> None:
    """Prints it.

    Raises:
      EmsegError: `error`, if there is one.
    """
    text = to_json(self.record) if as_json else self.text
    if text:
      print(text, flush=True)
    if self.error is not None:
      raise self.error


def to_json(value: Any) -> str:
  """JSON as the standard has it."""
  return json.dumps(_plain(value), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
  if dataclasses.is_dataclass(value):
    value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
  if isinstance(value, Mapping):
    return {str(key): _plain(v) for key, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if isinstance(value, Path):
    return str(value)
  if isinstance(value, np.ndarray | np.generic):
    return _plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
