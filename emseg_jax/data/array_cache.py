"""Arrays that take long to compute, kept in files that runs share."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from emseg_jax.errors import DataError, OutputError

__all__ = ['load_or_compute']


def load_or_compute(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
  """The array in a .npy file, mapped into memory; computed and written first if it is not there.

  Raises:
    DataError: the file is damaged.
    OutputError: it cannot be written.
  """
  if not path.exists():
    _save(path, compute())
  try:
    return np.load(path, mmap_mode='r')
  except (ValueError, EOFError) as error:
    raise DataError(f'{path}: is damaged ({error}); remove it, it will be computed anew') from error


def _save(path: Path, array: np.ndarray) -> None:
  """Writes the file under its name only when it is complete: other runs may look for it."""
  temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with open(temporary, 'wb') as file:
        np.save(file, array)
      os.replace(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)
  except OSError as error:
    raise OutputError(f'{path}: cannot be written: {error.strerror}') from error
