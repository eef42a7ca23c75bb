"""The same volume read with PyTorch, to compare with: what a careful user would write.

Files are opened once per worker and only the patch is read, or for TIFF the sections of the patch.
PyTorch is imported when batches are asked for; nothing else needs it.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from emseg_jax.config import Source

__all__ = ['Case', 'RandomPatches', 'batches']


@dataclasses.dataclass(frozen=True)
class Case:
  """One measurement.

  Attributes:
    storage: where the volume lies: memory, tiff, hdf5, zarr or tfds.
    source: its files; None for memory.
    arrays: image and label, uint8 [Z, Y, X].
    patch: (y, x) or (z, y, x).
    batch_size: patches per batch.
    workers: reader processes; 0: none beside the main one.
  """

  storage: str
  source: Source | None
  arrays: tuple[np.ndarray, np.ndarray]
  patch: tuple[int, ...]
  batch_size: int
  workers: int


def batches(case: Case) -> Iterator[Any]:
  """Endless batches [image f32 [B, 1, *patch], label i64 [B, *patch]] of a DataLoader."""
  import torch.utils.data

  loader = torch.utils.data.DataLoader(
    RandomPatches(case),
    batch_size=case.batch_size,
    num_workers=case.workers,
    multiprocessing_context='spawn' if case.workers else None,
    persistent_workers=case.workers > 0,
    prefetch_factor=4 if case.workers else None,
  )
  return iter(loader)


class RandomPatches:
  """A map-style data set for PyTorch's DataLoader: image f32, label i64, of random places."""

  def __init__(self, case: Case) -> None:
    source = case.source
    self._storage = case.storage
    self._paths = None if source is None else (source.images, source.labels)
    self._opened = case.arrays if source is None else None  # by each worker, at its first patch
    self._size = (1,) * (3 - len(case.patch)) + case.patch
    self._flat = len(case.patch) == 2

  def __len__(self) -> int:
    return 2**20

  def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    if self._opened is None:
      self._opened = tuple(_open_plainly(self._storage, path) for path in self._paths)
    rng = np.random.default_rng(index)
    shape = self._opened[0].shape
    start = [int(rng.integers(0, n - s + 1)) for n, s in zip(shape, self._size, strict=True)]
    window = tuple(slice(a, a + s) for a, s in zip(start, self._size, strict=True))
    image, label = (np.asarray(array[window]) for array in self._opened)
    if self._flat:
      image, label = image[0], label[0]
    return image.astype(np.float32)[None] / 255, label.astype(np.int64)


class _TiffSections:
  """Decodes the sections of a box."""

  def __init__(self, path: str) -> None:
    import tifffile

    self._file = tifffile.TiffFile(path)
    self.shape = self._file.series[0].shape

  def __getitem__(self, window: tuple[slice, slice, slice]) -> np.ndarray:
    z, *rest = window
    sections = [self._file.pages[i].asarray()[tuple(rest)] for i in range(z.start, z.stop)]
    return np.stack(sections)


def _open_plainly(storage: str, path: str) -> Any:
  """As a user without this package opens a file."""
  if storage == 'tiff':
    return _TiffSections(path)
  if storage == 'hdf5':
    import h5py

    return h5py.File(path, 'r')['data']
  import tensorstore

  store = {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': f'{path}/0/'}}
  return _Tensorstore(tensorstore.open(store).result())


class _Tensorstore:
  def __init__(self, array: Any) -> None:
    self._array, self.shape = array, array.shape

  def __getitem__(self, window: tuple[slice, ...]) -> np.ndarray:
    return self._array[window].read().result()
