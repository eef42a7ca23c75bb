"""What of a long computation is done: a folder beside the output that survives any interruption.

`manifest.json` says what is being computed; `finished-PART.txt` gets the number of a block, one a
line, once the block is on disk. A block counts only if its line is whole, so that a process may be
killed at any moment. Each process writes a file of its own.
"""

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emseg_jax.errors import OutputError

__all__ = ['Manifest']


class Manifest:
  """Progress of one output.

  Args:
    folder: created if missing.
    record: what is computed; a folder of another computation is refused.
    part: which of several processes this is.

  Raises:
    OutputError: the folder belongs to another computation, is damaged, or cannot be written.
  """

  def __init__(self, folder: Path, record: Mapping[str, Any], *, part: int = 0) -> None:
    self.folder = folder
    self._file = folder / f'finished-{part}.txt'
    path = folder / 'manifest.json'
    try:
      folder.mkdir(parents=True, exist_ok=True)
      if path.exists():
        _compare(json.loads(path.read_text(encoding='utf-8')), record, folder)
      else:
        temporary = folder / f'manifest-{uuid.uuid4().hex}.tmp'  # others may be starting, too
        temporary.write_text(json.dumps(record, indent=2) + '\n', encoding='utf-8')
        os.replace(temporary, path)
      _cut_to_lines(self._file)
    except OSError as error:
      raise OutputError(f'{folder}: cannot be written: {error.strerror}') from error
    except ValueError as error:
      raise OutputError(f'{path}: is damaged ({error}); delete {folder} to start anew') from error

  def finished(self) -> set[int]:
    """Numbers of the blocks that any process has finished."""
    found = set()
    for file in self.folder.glob('finished-*.txt'):
      text = file.read_text(encoding='ascii')
      found |= {int(line) for line in text[: text.rfind('\n') + 1].split()}
    return found

  def add(self, number: int) -> None:
    """A block is on disk.

    Raises:
      OutputError: the line cannot be written.
    """
    try:
      with open(self._file, 'a', encoding='ascii') as file:
        file.write(f'{number}\n')
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
      raise OutputError(f'{self._file}: cannot be written: {error.strerror}') from error


def _compare(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
  wanted = json.loads(json.dumps(wanted))  # tuples are lists there
  for key in {**found, **wanted}:
    if found.get(key) != wanted.get(key):
      raise OutputError(
        f'{folder}: holds unfinished work on another {key} ({found.get(key)}, now '
        f'{wanted.get(key)}); delete the folder, or give another --output'
      )


def _cut_to_lines(path: Path) -> None:
  """Drops what a killed process left of a line, which the next number would be joined to."""
  if not path.exists():
    return
  content = path.read_bytes()
  whole = content.rfind(b'\n') + 1
  if whole < len(content):
    os.truncate(path, whole)
