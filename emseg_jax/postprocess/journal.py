"""What of a pass over blocks is done, and what it found: files that survive any interruption.

A record is a number, of a block for instance, and an int64 array [rows, n]. It is appended when its
block is on disk, and counts only if it is whole, so a process may be killed at any moment. Whoever
holds the lock of a file is the only one to write it.
"""

import contextlib
import fcntl
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

__all__ = ['Journal', 'records']

HEADER = struct.Struct('<qqqI')  # number, rows, columns, checksum
Record = tuple[int, np.ndarray]


class Journal:
  """A file of records that this process may append to. Made by `locked`."""

  def __init__(self, file: IO[bytes]) -> None:
    self._file = file

  @staticmethod
  @contextlib.contextmanager
  def locked(path: Path) -> Iterator['Journal | None']:
    """Holds the lock of a file, which is created; None if another process does."""
    with open(path, 'ab') as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        yield None
        return
      whole = sum(_size(array) for _, array in records(path))
      file.truncate(whole)  # what a killed process left of a record
      yield Journal(file)

  def add(self, number: int, array: np.ndarray, *, sync: bool = False) -> None:
    """Appends a record; `sync`: it outlives a power cut before anything that follows."""
    content, about = np.ascontiguousarray(array, '<i8').tobytes(), (number, *array.shape)
    self._file.write(HEADER.pack(*about, _checksum(about, content)) + content)
    self._file.flush()
    if sync:
      os.fsync(self._file.fileno())


def records(path: Path) -> list[Record]:
  """The whole records of a file, in their order; none if there is no file."""
  try:
    content = path.read_bytes()
  except FileNotFoundError:
    return []
  found, place = [], 0
  while place + HEADER.size <= len(content):
    *about, checksum = HEADER.unpack_from(content, place)
    number, *shape = about
    stop = place + HEADER.size + 8 * math.prod(shape)
    data = content[place + HEADER.size : stop]
    if stop > len(content) or checksum != _checksum(about, data):
      break
    found.append((number, np.frombuffer(data, '<i8').reshape(shape)))
    place = stop
  return found


def _size(array: np.ndarray) -> int:
  return HEADER.size + array.nbytes


def _checksum(about: Sequence[int], content: bytes) -> int:
  return zlib.crc32(content, zlib.crc32(struct.pack('<qqq', *about)))
