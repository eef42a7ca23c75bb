"""Batches whose arrays lie in one buffer, so that a reader process hands over one block of memory.

A block of shared memory costs more than its bytes: it is created, announced, mapped by both
processes and removed.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ['Layout', 'Packed', 'allocate', 'pack', 'unpack']

ALIGNED = 64  # bytes


@dataclasses.dataclass(frozen=True)
class Layout:
  """What lies where in a buffer: (name, shape, dtype, offset in bytes) of every array."""

  fields: tuple[tuple[str, tuple[int, ...], str, int], ...]


Packed = tuple[np.ndarray, Layout]  # a buffer, uint8, and its layout


def allocate(kinds: Mapping[str, tuple[Sequence[int], type]]) -> dict[str, np.ndarray]:
  """Arrays without values in one buffer, by name; given are their shapes and types."""
  fields, end = [], 0
  for name, (shape, dtype) in kinds.items():
    dtype = np.dtype(dtype)
    fields.append((name, tuple(shape), dtype.str, end))
    size = dtype.itemsize * int(np.prod(shape))
    end += -(-size // ALIGNED) * ALIGNED
  return unpack((np.empty(end, np.uint8), Layout(tuple(fields))))


def pack(batch: Mapping[str, np.ndarray]) -> Packed:
  """The buffer of a batch from `allocate` and its layout; nothing is copied."""
  buffer = next(iter(batch.values())).base
  start = buffer.ctypes.data
  fields = [
    (name, array.shape, array.dtype.str, array.ctypes.data - start) for name, array in batch.items()
  ]
  return buffer, Layout(tuple(fields))


def unpack(packed: Packed) -> dict[str, np.ndarray]:
  """The arrays in a buffer; nothing is copied, and it lives as long as one of them."""
  buffer, layout = packed
  return {
    name: np.ndarray(shape, dtype, buffer=buffer, offset=offset)
    for name, shape, dtype, offset in layout.fields
  }
