"""Arrays in chunks, read with tensorstore: Zarr 2 and 3, N5, and neuroglancer's precomputed.

Only the chunks that a box touches are read; a bounded number of decoded ones is kept in memory.
Processes that share a volume must be spawned: after a fork, tensorstore's threads are gone.
"""

import logging
import math
from typing import Any, Literal

import numpy as np

from emseg_jax.data import arrays
from emseg_jax.data.store import Store, context, wait
from emseg_jax.errors import DataError

__all__ = ['Chunked', 'open_chunked']

Driver = Literal['zarr', 'zarr3', 'n5', 'neuroglancer_precomputed']
Missing = Literal['error', 'fill']

DESCRIPTIONS: dict[Driver, str] = {
  'zarr': '.zarray',
  'zarr3': 'zarr.json',
  'n5': 'attributes.json',
  'neuroglancer_precomputed': 'info',
}
LOGGER = logging.getLogger(__name__)


class Chunked:
  """An array in chunks, its first voxel at 0.

  Attributes:
    shape: in the order of the format.
    dtype: native.
  """

  def __init__(self, array: Any, filling: Any, driver: Driver, store: Store) -> None:
    self._array, self._filling, self._driver, self._store = array, filling, driver, store
    self._reported = 0
    self.shape: tuple[int, ...] = tuple(array.shape)
    self.dtype: np.dtype = array.dtype.numpy_dtype

  def read(self, index: tuple[slice, ...]) -> np.ndarray:
    try:
      return wait(self._array[index].read(), self._store.url)
    except DataError as error:
      if not _is_missing(error):
        raise
      if self._filling is None:
        raise DataError(
          f'{error}; copy it again, or set reading.missing=fill if its writer left out chunks that '
          f'hold the fill value {self._fill_value} only'
        ) from error
      if self._store.read_json(DESCRIPTIONS[self._driver]) is None:
        raise DataError(f'{self._store.url}: is no longer there') from error
      self._report(str(error))
    return wait(self._filling[index].read(), self._store.url)

  @property
  def _fill_value(self) -> Any:
    value = self._array.fill_value
    return self.dtype.type(0) if value is None else np.asarray(value)[()]

  def _report(self, missing: str) -> None:
    """Says so when the number of such boxes has doubled, not at every box."""
    before, self._reported = self._reported, self._reported + 1
    if self._reported.bit_length() > before.bit_length():
      LOGGER.warning(
        '%s; read as the fill value %s, so far %d times in this volume',
        missing,
        self._fill_value,
        self._reported,
      )


def open_chunked(driver: Driver, store: Store, *, missing: Missing, level: int = 0) -> Chunked:
  """Opens an array; reads its description only.

  Args:
    driver: the format, by its name in tensorstore.
    store: where it is.
    missing: what a missing chunk means.
    level: of a precomputed volume, which has all its levels in one description.

  Raises:
    DataError: a description that cannot be read, an unknown compression, absurd chunks.
  """
  spec: dict[str, Any] = {
    'driver': driver,
    'kvstore': store.kvstore(),
    'fill_missing_data_reads': False,
  }
  if driver == 'neuroglancer_precomputed':
    spec['scale_index'] = level
  array = _open(spec, store)
  if array.rank == 0 or 0 in array.shape:
    raise DataError(f'{store.url}: is empty, its shape is {tuple(array.shape)}')
  dtype = arrays.check_type(np.dtype(array.dtype.numpy_dtype), store.url)
  layout = array.chunk_layout
  arrays.check_chunk(layout.read_chunk.shape, dtype, store.url)
  # A shard begins or ends with two numbers per chunk.
  per_shard = [
    w // r for w, r in zip(layout.write_chunk.shape, layout.read_chunk.shape, strict=True)
  ]
  if math.prod(per_shard) > 1:
    arrays.check_chunk((*per_shard, 2), np.dtype('u8'), store.url)
  filling = None
  if missing == 'fill':
    filling = _open(spec | {'fill_missing_data_reads': True}, store)
  return Chunked(array, filling, driver, store)


def _open(spec: dict[str, Any], store: Store) -> Any:
  import tensorstore

  array = wait(tensorstore.open(spec, read=True, open=True, context=context()), store.url)
  return array[tensorstore.d[:].translate_to[0]]


def _is_missing(error: DataError) -> bool:
  return str(error.__cause__).startswith('NOT_FOUND: chunk')
