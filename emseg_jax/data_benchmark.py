"""How fast training data are read: patches per second from memory and from files.

A synthetic volume is written in each format; the training input draws random patches from it as in
training, normalised, with labels and weights, and next to it a PyTorch DataLoader does so from the
same files, where PyTorch is installed. Its data set is what a careful user would write: files are
opened once per worker and only the patch is read, or for TIFF the sections of the patch.
"""

import dataclasses
import importlib.util
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from emseg_jax import config as config_lib
from emseg_jax import torch_reading
from emseg_jax.data import (
  array_writers,
  labels,
  normalise,
  pairs,
  phantom,
  pipeline,
  volumes,
)
from emseg_jax.torch_reading import Case

__all__ = ['FORMATS', 'PATCHES', 'Row', 'benchmark_data', 'format_markdown', 'format_text']

FORMATS = ('memory', 'tiff', 'hdf5', 'zarr', 'tfds')
PATCHES = ((128, 128), (512, 512), (64, 128, 128))
SHAPE = (64, 1024, 1024)
TILE = 256  # side of the synthetic tissue that is repeated
LEAST_SECONDS = 4.0
THREADS = 4


@dataclasses.dataclass(frozen=True)
class Row:
  """Attributes:
  storage: where the volume lies, one of `FORMATS`.
  patch: (y, x) or (z, y, x).
  workers: reader processes; 0: threads of the main process for us, the main thread for PyTorch.
  patches_per_second: of the training input.
  megabytes_per_second: of image and label as stored, in 10^6 bytes.
  torch_patches_per_second: of the DataLoader; None without PyTorch, or where it does not read.
  """

  storage: str
  patch: tuple[int, ...]
  workers: int
  patches_per_second: float
  megabytes_per_second: float
  torch_patches_per_second: float | None

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def benchmark_data(
  *,
  shape: tuple[int, int, int] = SHAPE,
  formats: tuple[str, ...] = FORMATS,
  patches: tuple[tuple[int, ...], ...] = PATCHES,
  workers: tuple[int, ...] = (0, 1, 2),
  seconds: float = LEAST_SECONDS,
  report: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
  """Writes the volume in a temporary folder and measures all combinations.

  Args:
    shape: (z, y, x) of the volume; y and x are multiples of 256.
    formats: some of `FORMATS`.
    patches: sizes to draw.
    workers: numbers of reader processes.
    seconds: least time to measure one number.
    report: called with each row when it is there.

  Raises:
    OutputError: the volume cannot be written.
  """
  image, label = _volume(shape)
  rows = []
  with tempfile.TemporaryDirectory(prefix='emseg_') as name:
    folder = Path(name)
    for storage in formats:
      source = _write(storage, folder, image, label)
      for patch, count in itertools.product(patches, workers):
        batch_size = 2 if len(patch) == 3 else 8
        case = Case(storage, source, (image, label), patch, batch_size, count)
        ours = _rate(_ours(case), batch_size, seconds)
        theirs = None
        if importlib.util.find_spec('torch') and storage != 'tfds':
          theirs = _rate(torch_reading.batches(case), batch_size, seconds)
        megabytes = ours * 2 * float(np.prod(patch)) / 1e6
        rows.append(Row(storage, patch, count, ours, megabytes, theirs))
        report(rows[-1])
  return rows


def _volume(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
  z, y, x = shape
  made = phantom.make_volume(shape=(z, TILE, TILE), seed=0)
  return tuple(np.tile(array, (1, y // TILE, x // TILE)) for array in made)


def _write(
  storage: str, folder: Path, image: np.ndarray, label: np.ndarray
) -> config_lib.Source | None:
  """The volume in a format; None for memory."""
  if storage == 'memory':
    return None
  if storage == 'tfds':
    return _write_tfds(folder, image, label)
  paths = []
  for name, array in (('image', image), ('label', label)):
    if storage == 'tiff':
      import tifffile

      path = folder / f'{name}.tif'
      tifffile.imwrite(path, array, photometric='minisblack', metadata={'axes': 'ZYX'})
    else:
      path = folder / f'{name}.{storage}'
      cls = array_writers.WRITERS[storage]
      writer = cls(path, array.shape, array.dtype, array_writers.About(labels=False))
      for start in range(0, len(array), writer.depth):
        writer.put(start, array[start : start + writer.depth])
      writer.close()
    paths.append(str(path))
  return config_lib.Source(images=paths[0], labels=paths[1])


def _write_tfds(folder: Path, image: np.ndarray, label: np.ndarray) -> config_lib.Source:
  from emseg_jax import prepare

  source = _write('tiff', folder, image, label)
  config = config_lib.Config(data=config_lib.Data(train=(source,), validation=()))
  prepare.prepare_sources(config, output=folder / 'sections')
  return config_lib.Source(images=f'tfds://sections?split=train&dir={folder}')


def _ours(case: Case) -> Iterator[Any]:
  """Batches of the training input."""
  # Large volumes are the case to measure: the cache holds nothing of those that need none.
  cache_gb = 0.0 if case.storage in ('hdf5', 'zarr') else 2.0
  data = config_lib.Data(patch=case.patch, cache_gb=cache_gb)
  task = config_lib.Task()
  if case.source is None:
    image, label = (volumes.ArrayVolume(array) for array in case.arrays)
    sections = [pairs.Section(n, image, i, label, i) for i, n in enumerate(image.names)]
    split = pairs.Split(sections, rules=labels.Rules(task, data), cache_bytes=2**31)
  else:
    split = pairs.open_split([case.source], task=task, data=data)
  dataset = pipeline.train_dataset(
    split,
    data,
    region=case.patch,
    normalisation=normalise.Normalisation('scale', 1, 0.0, 1.0, 'uint8'),
    seed=0,
    batch_size=case.batch_size,
  )
  threads = 1 if case.workers else pipeline.useful_threads(split, case.patch, THREADS)
  return pipeline.train_iterator(
    dataset, start_step=0, threads=threads, prefetch=4, workers=case.workers
  )


def _rate(batches: Iterator[Any], batch_size: int, seconds: float) -> float:
  """Patches per second, after what is read ahead at the start is gone."""
  for _ in range(12):
    next(batches)
  count, start = 0, time.perf_counter()
  while count < 8 or time.perf_counter() - start < seconds:
    next(batches)
    count += 1
  return count * batch_size / (time.perf_counter() - start)


def _cells(row: Row) -> list[str]:
  theirs = row.torch_patches_per_second
  readers = 'threads' if not row.workers else f'{row.workers} workers'
  return [
    row.storage,
    ' x '.join(map(str, row.patch)),
    readers,
    f'{row.patches_per_second:.1f}',
    f'{row.megabytes_per_second:.1f}',
    '-' if theirs is None else f'{theirs:.1f}',
    '-' if theirs is None else f'{row.patches_per_second / theirs:.2f}',
  ]


HEAD = ('from', 'patch', 'readers', 'patches/s', 'MB/s', 'PyTorch, patches/s', 'ratio')


def format_text(rows: list[Row]) -> str:
  """One line per row."""
  table = [list(HEAD), *map(_cells, rows)]
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  return '\n'.join('  '.join(map(str.ljust, line, widths)).rstrip() for line in table)


def format_markdown(rows: list[Row]) -> str:
  """The same as a Markdown table."""
  lines = [HEAD, ['---'] * len(HEAD), *map(_cells, rows)]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'
