"""Decoded chunks that are kept for the next box, up to a number of bytes per process."""

import collections
import itertools
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

__all__ = ['CACHE_BYTES', 'ChunkCache', 'cells']

CACHE_BYTES = 2**27

Index = tuple[slice, ...]


class ChunkCache:
  """The chunks used last; threads can share it."""

  def __init__(self, limit: int = CACHE_BYTES) -> None:
    self._limit = limit
    self._used = 0
    self._chunks: collections.OrderedDict[Hashable, np.ndarray] = collections.OrderedDict()
    self._lock = threading.Lock()

  def get(self, key: Hashable, read: Callable[[], np.ndarray]) -> np.ndarray:
    """The chunk under `key`; read, and kept, if it is not there."""
    with self._lock:
      if key in self._chunks:
        self._chunks.move_to_end(key)
        return self._chunks[key]
    chunk = read()  # outside the lock: two threads may read the same, none waits
    with self._lock:
      if key not in self._chunks:
        self._chunks[key] = chunk
        self._used += chunk.nbytes
        while self._used > self._limit:
          _, old = self._chunks.popitem(last=False)
          self._used -= old.nbytes
    return chunk


def cells(
  index: Index, chunks: Sequence[int], origin: Sequence[int] | None = None
) -> Iterator[tuple[Index, Index]]:
  """The parts of a box that lie in one chunk each.

  Args:
    index: the box.
    chunks: size of a chunk per axis.
    origin: where the first chunk begins; 0.

  Yields:
    The part, and its place in the box.
  """
  axes = []
  for part, size, first in zip(index, chunks, origin or [0] * len(index), strict=True):
    starts = range(first + (part.start - first) // size * size, part.stop, size)
    axes.append([slice(max(a, part.start), min(a + size, part.stop)) for a in starts])
  for cell in itertools.product(*axes):
    place = (slice(c.start - i.start, c.stop - i.start) for c, i in zip(cell, index, strict=True))
    yield cell, tuple(place)
