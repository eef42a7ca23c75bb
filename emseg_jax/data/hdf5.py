"""HDF5 files (h5py): one dataset of a file as a volume.

The dataset is named behind the file, 'file.h5:/volumes/raw', unless there is only one with three or
more axes. Axes are those of its dimension labels or of `axistags` (ilastik); without them three
axes are Z, Y, X, two are Y, X, and more are not guessed. Uncompressed datasets in one piece are
mapped into memory; others are read through the library, which opens the file for each read, so that
the same file may be written to in between; decoded chunks are kept for the next section. Chunks
that were never written hold the fill value, as the format has it.
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import json
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from emseg_jax.config import Reading
from emseg_jax.data import arrays
from emseg_jax.data.chunk_cache import CACHE_BYTES, ChunkCache, cells
from emseg_jax.data.units import to_nanometres
from emseg_jax.data.volume import Volume, VoxelSize, stem
from emseg_jax.errors import DataError

__all__ = ['MAGIC', 'open_hdf5']

MAGIC = b'\x89HDF\r\n\x1a\n'
MOST_LISTED = 12
MOST_CHUNKS = 1024  # of a box; beyond, they are tiny, and it is read at once
CHUNKS = ChunkCache()


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A dataset that only the library can read; `chunks` is the size of one, None without chunks."""

  file: str
  name: str
  dtype: np.dtype
  chunks: tuple[int, ...] | None

  def read(self, index: tuple[slice, ...]) -> np.ndarray:
    if self.chunks is None or not self._worth_keeping(index):
      with self._open() as dataset:
        return dataset[index]
    found = np.empty([i.stop - i.start for i in index], self.dtype)
    state = os.stat(self.file)
    version = (state.st_ino, state.st_mtime_ns, state.st_size)
    with contextlib.ExitStack() as stack:
      opened = functools.cache(lambda: stack.enter_context(self._open()))  # if it is needed
      for part, place in cells(index, self.chunks):
        starts = [p.start // c * c for p, c in zip(part, self.chunks, strict=True)]
        whole = tuple(slice(s, s + c) for s, c in zip(starts, self.chunks, strict=True))
        key = (self.file, self.name, version, *starts)
        chunk = CHUNKS.get(key, lambda whole=whole: opened()[whole])
        inside = (slice(p.start - s, p.stop - s) for p, s in zip(part, starts, strict=True))
        found[place] = chunk[tuple(inside)]
    return found

  def _worth_keeping(self, index: tuple[slice, ...]) -> bool:
    """Whether the chunks of a box are neither tiny nor more than fit into the cache."""
    touched = math.prod(
      (i.stop - 1) // c - i.start // c + 1 for i, c in zip(index, self.chunks, strict=True)
    )
    size = math.prod(self.chunks) * self.dtype.itemsize
    return touched <= MOST_CHUNKS and touched * size <= CACHE_BYTES

  @contextlib.contextmanager
  def _open(self) -> Iterator[Any]:
    import h5py

    with h5py.File(self.file, 'r') as file:
      yield file[self.name]


def open_hdf5(path: str, file: str, name: str | None, *, reading: Reading) -> Volume:
  """Reads the description of a dataset.

  Args:
    path: as the user gave it.
    file: the file in it.
    name: the dataset in it; None: the only one there is.
    reading: what the file does not say.

  Raises:
    DataError: no such dataset, several to choose from, voxels that are no numbers, an unknown
      compression, or parts of it that are missing.
  """
  import h5py

  with h5py.File(file, 'r') as opened:
    dataset = _find(opened, name, path)
    where = f'{file}:{dataset.name}'
    arrays.check_type(dataset.dtype, where)
    if dataset.shape is None:
      raise DataError(f'{where}: is empty')
    layout = arrays.find_layout(_axes(dataset), dataset.shape, reading, where)
    _check_storage(dataset, where)
    return arrays.StoredVolume(
      path,
      _place(dataset, file),
      kind='hdf5',
      layout=layout,
      dtype=dataset.dtype,
      name=stem(file),
      files=(file,),
      voxel_size_zyx=reading.voxel_size or _voxel_size(dataset),
    )


def _find(opened: Any, name: str | None, path: str) -> Any:
  import h5py

  if name is not None and isinstance(opened.get(name), h5py.Dataset):
    return opened[name]
  found: list[Any] = []

  def visit(_: str, item: Any) -> None:
    if isinstance(item, h5py.Dataset) and len(item.shape or ()) > 1 and item.dtype.kind in 'buif':
      found.append(item)

  opened.visititems(visit)
  deep = [item for item in found if len(item.shape) > 2]
  candidates = deep or found
  if name is None and len(candidates) == 1:
    return candidates[0]
  listed = [f'{item.name} {item.shape} {item.dtype}' for item in found]
  more = ', ...' if len(listed) > MOST_LISTED else ''
  there = f'it has {", ".join(listed[:MOST_LISTED])}{more}' if found else 'it has none of numbers'
  if name is None:
    hint = f'; name one as in {path}:{candidates[0].name}' if found else ''
    raise DataError(f'{path}: one dataset must be chosen, {there}{hint}')
  raise DataError(f'{path}: has no dataset {name}; {there}')


def _axes(dataset: Any) -> str | None:
  """One letter per axis, from `axistags` or the labels of the dimensions; None if not all have."""
  try:
    tags = json.loads(dataset.attrs['axistags'])
    keys = [str(axis['key']) for axis in tags['axes']]
  except (KeyError, TypeError, ValueError):  # none, or not those of ilastik
    keys = [dimension.label for dimension in dataset.dims]
  letters = ''.join(keys).upper()
  return letters if len(letters) == len(dataset.shape) and all(map(len, keys)) else None


def _check_storage(dataset: Any, where: str) -> None:
  """Refuses what would fail later, or read as something else."""
  import h5py

  description = dataset.id.get_create_plist()
  for number in range(description.get_nfilters()):
    code, _, _, name = description.get_filter(number)
    if not h5py.h5z.filter_avail(code) and importlib.util.find_spec('hdf5plugin'):
      importlib.import_module('hdf5plugin')
    if not h5py.h5z.filter_avail(code):
      raise DataError(
        f'{where}: is compressed by filter {code} ({name.decode(errors="replace") or "no name"}), '
        'which h5py lacks; pip install ".[hdf5plugin]", or save it with gzip'
      )
  if dataset.chunks is not None:
    arrays.check_chunk(dataset.chunks, dataset.dtype, where)
  if dataset.is_virtual:
    folder = os.path.dirname(dataset.file.filename)
    for source in dataset.virtual_sources():
      # Without its source the library would read the fill value, and say nothing.
      if source.file_name != '.' and not os.path.exists(os.path.join(folder, source.file_name)):
        raise DataError(f'{where}: its part {source.file_name} is missing; copy it, too')
  elif dataset.chunks is None and dataset.id.get_storage_size() not in (0, dataset.nbytes):
    raise DataError(
      f'{where}: announces {dataset.nbytes} bytes of voxels, but {dataset.id.get_storage_size()} '
      'are stored; its header is damaged'
    )


def _place(dataset: Any, file: str) -> arrays.Stored:
  offset = dataset.id.get_offset()  # None unless in one piece
  if offset is not None and dataset.external is None and dataset.dtype.kind != 'b':
    return arrays.Mapped(file, dataset.dtype, dataset.shape, offset)
  return Dataset(file, dataset.name, dataset.dtype, dataset.chunks)


def _voxel_size(dataset: Any) -> VoxelSize | None:
  """(z, y, x) in nm from `resolution` (CREMI: nm) or `element_size_um` (Fiji: µm).

  Both list Z, Y, X, whatever the order of the axes is.
  """
  for name, unit in (('resolution', 'nm'), ('element_size_um', 'um')):
    numbers = np.atleast_1d(dataset.attrs.get(name, ()))
    if numbers.dtype.kind in 'iuf' and numbers.shape in ((2,), (3,)):
      y, x = (float(f'{to_nanometres(unit) * float(n):.7g}') for n in numbers[-2:])
      z = float(f'{to_nanometres(unit) * float(numbers[0]):.7g}') if numbers.size == 3 else None
      return z, y, x
  return None
