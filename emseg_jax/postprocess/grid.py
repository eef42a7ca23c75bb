"""Blocks of a volume, and stores on disk that are read and written in boxes.

Positions and sizes are (z, y, x); a box goes from `start` up to before `stop`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from emseg_jax.errors import Interrupted

__all__ = ['Box', 'Grid', 'Place', 'Read', 'Scratch', 'grown', 'window']

Place = tuple[int, int, int]
Box = tuple[Place, Place]
Read = Callable[[Place, Place], np.ndarray]  # (start, stop) -> the voxels of a box, [z, y, x]


@dataclasses.dataclass(frozen=True)
class Grid:
  """A volume cut into blocks; those at the far ends may be smaller.

  Attributes:
    shape: of the volume.
    block: size of a block.
    should_stop: asked before each block.
  """

  shape: Place
  block: Place
  should_stop: Callable[[], bool] | None = None

  @property
  def counts(self) -> Place:
    """Blocks along each axis."""
    return tuple(-(-n // b) for n, b in zip(self.shape, self.block, strict=True))

  def places(self) -> Iterator[Place]:
    """Which block along each axis, for all blocks, along x first."""
    return itertools.product(*(range(n) for n in self.counts))

  def place(self, number: int) -> Place:
    """That of a block, if they are numbered along x first."""
    return tuple(int(i) for i in np.unravel_index(number, self.counts))

  def box(self, place: Place) -> Box:
    """The box of the block with this number along each axis.

    Raises:
      Interrupted: `should_stop` said so.
    """
    self.check_to_stop()
    start = tuple(i * b for i, b in zip(place, self.block, strict=True))
    stop = tuple(min(a + b, n) for a, b, n in zip(start, self.block, self.shape, strict=True))
    return start, stop

  def check_to_stop(self) -> None:
    """Raises `Interrupted` if `should_stop` says so."""
    if self.should_stop is not None and self.should_stop():
      raise Interrupted('stopped between two blocks; start the same command again')

  def boxes(self) -> Iterator[Box]:
    """All blocks, along x first.

    Raises:
      Interrupted: `should_stop` said so.
    """
    return (self.box(place) for place in self.places())


class Scratch:
  """A Zarr array that is there for the time of a computation; what is not written is 0.

  One that is there already, of an earlier start or another process, is gone on with.
  """

  def __init__(self, path: Path, shape: Place, dtype: np.dtype | str, chunk: Place) -> None:
    import tensorstore

    metadata = {
      'shape': shape,
      'chunks': [min(n, c) for n, c in zip(shape, chunk, strict=True)],
      'dtype': np.dtype(dtype).newbyteorder('<').str,
      'compressor': {'id': 'blosc', 'cname': 'lz4', 'clevel': 1, 'shuffle': 1},
      'fill_value': 0,
    }
    store = {'driver': 'file', 'path': str(path)}
    spec = {'driver': 'zarr', 'kvstore': store, 'metadata': metadata, 'create': True, 'open': True}
    self._array = tensorstore.open(spec).result()
    self.dtype = np.dtype(dtype)

  def read(self, start: Place, stop: Place) -> np.ndarray:
    return self._array[window(start, stop)].read().result()

  def write(self, start: Place, box: np.ndarray) -> None:
    """On disk when this returns."""
    stop = tuple(a + n for a, n in zip(start, box.shape, strict=True))
    self._array[window(start, stop)].write(box).result()


def window(start: Place, stop: Place) -> tuple[slice, ...]:
  """A box as an index."""
  return tuple(slice(a, b) for a, b in zip(start, stop, strict=True))


def grown(box: Box, by: Place, shape: Place) -> tuple[Box, tuple[slice, ...]]:
  """A larger box, as far as the volume goes, and where the old one lies in it."""
  (start, stop), axes = box, range(3)
  low = tuple(max(start[i] - by[i], 0) for i in axes)
  high = tuple(min(stop[i] + by[i], shape[i]) for i in axes)
  return (low, high), tuple(slice(start[i] - low[i], stop[i] - low[i]) for i in axes)
