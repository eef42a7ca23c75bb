"""The files of a work directory that reports are made of."""

import json
from pathlib import Path
from typing import Any

from emseg_jax.errors import DataError

__all__ = ['Json', 'read_json', 'read_records']

Json = dict[str, Any]


def read_json(path: Path) -> Json | None:
  """The object in a JSON file; None if there is no file."""
  try:
    content = json.loads(path.read_text('utf-8'))
  except FileNotFoundError:
    return None
  except OSError as error:
    raise DataError(f'{path}: cannot be read ({error.strerror})') from error
  except ValueError as error:  # also a UnicodeDecodeError
    raise DataError(f'{path}: is not valid JSON ({error}); delete it or write it again') from error
  if not isinstance(content, dict):
    raise DataError(f'{path}: holds a JSON {type(content).__name__}, an object is needed')
  return content


def read_records(path: Path) -> tuple[list[Json], bool]:
  """Records of metrics.jsonl, and whether a last line that a kill cut short was left out."""
  try:
    lines = path.read_text('utf-8', errors='replace').split('\n')
  except FileNotFoundError:
    return [], False
  except OSError as error:
    raise DataError(f'{path}: cannot be read ({error.strerror})') from error
  records = []
  for number, line in enumerate(lines, 1):
    try:
      record = json.loads(line) if line.strip() else {}
    except ValueError as error:
      if number == len(lines):  # complete records end in a newline, so this one is not complete
        return records, True
      raise DataError(f'{path}: line {number} is not valid JSON ({error})') from error
    if isinstance(record, dict) and 'step' in record:
      records.append(record)
  return records, False
