"""Scalars over steps: metrics.jsonl, which is the record, and TensorBoard events, which are a view
of it.

On a restart both are cut back to the restored step, so that a curve never shows work that was
thrown away.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emseg_jax.errors import OutputError

__all__ = ['MetricWriter', 'NoWriter', 'read_records']


def read_records(path: Path) -> list[dict[str, Any]]:
  """Reads metrics.jsonl; a last line cut off by a crash is left out."""
  records = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      records.append(json.loads(line))
    except ValueError:  # only the line being written when the process died
      break
  return records


class MetricWriter:
  """Appends records to a work directory.

  Args:
    workdir: the run's folder.
    restored_step: step that training starts from; later records are removed.
    evaluated_step: last step whose evaluation belongs to the restored state.
    tensorboard: also write event files.
  """

  def __init__(self, workdir: Path, *, restored_step: int, evaluated_step: int, tensorboard: bool):
    path = workdir / 'metrics.jsonl'
    kept = [
      r
      for r in read_records(path)
      if r['step'] <= (evaluated_step if _is_evaluation(r) else restored_step)
    ]
    try:
      temporary = path.with_name(path.name + '.tmp')
      temporary.write_text(''.join(json.dumps(r) + '\n' for r in kept))
      os.replace(temporary, path)
      self._file = path.open('a')
    except OSError as error:
      raise OutputError(f'{path}: cannot be written: {error.strerror}') from error
    self._path = path
    self._events = _open_events(workdir / 'tensorboard', kept) if tensorboard else None

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Appends one record.

    Raises:
      OutputError: the file cannot be written, for example because the disk is full.
    """
    record = {'step': step, 'wall_time': time.time(), **scalars}
    try:
      self._file.write(json.dumps(record) + '\n')
      self._file.flush()
    except OSError as error:
      raise OutputError(f'{self._path}: cannot be written: {error.strerror}') from error
    if self._events is not None:
      _add(self._events, record)

  def close(self) -> None:
    self._file.close()
    if self._events is not None:
      self._events.close()


class NoWriter:
  """Of processes that leave it to the first one."""

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    pass

  def close(self) -> None:
    pass


def _is_evaluation(record: Mapping[str, Any]) -> bool:
  return any(key.startswith('validation/') for key in record)


def _open_events(folder: Path, records: list[dict[str, Any]]):
  """Starts the event files afresh from the kept records."""
  from tensorboardX import SummaryWriter

  shutil.rmtree(folder, ignore_errors=True)
  events = SummaryWriter(str(folder), flush_secs=10)
  for record in records:
    _add(events, record)
  return events


def _add(events, record: Mapping[str, Any]) -> None:
  for key, value in record.items():
    if key not in ('step', 'wall_time') and value is not None:
      events.add_scalar(key, value, record['step'], walltime=record['wall_time'])
