"""Where a result is gathered block by block, and how it becomes the output.

`.NAME.partial` beside the output holds the blocks so far and what is known of them. When all are
there, `NAME.json` says what the output was made from, and the folder is gone.
"""

import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from emseg_jax import config_io
from emseg_jax.data import array_writers, recognise, writers
from emseg_jax.data.volume import Volume, number, stem
from emseg_jax.postprocess.grid import Box, Grid, Place, Read
from emseg_jax.postprocess.table import Statistics, measure
from emseg_jax.postprocess.work import Work, nothing

__all__ = ['Output']

LAYER = 16  # sections that are held at once, for files that are written section by section
NO_SIZE = (None, None, None)
COUNT = 'instances'  # in the record beside the output


class Output:
  """The file or folder that a volume is processed into.

  Args:
    volume: the input, whose form the output has.
    path: as the caller gave it, perhaps with the name of a dataset.
    numbered: instances with a table, uint32; else a mask, uint8.

  Raises:
    OutputError: the path has an extension of another format.
  """

  def __init__(self, volume: Volume, path: str | os.PathLike, *, numbered: bool) -> None:
    self._form = _Form(volume)
    self.path, self._writer = writers.target_of(self._form, path)
    self._dataset = recognise.split_dataset(os.fspath(path))[1]
    self.dtype = np.dtype('u4' if numbered else 'u1')
    self.folder = self.path.with_name(f'.{self.path.name}.partial')
    self.table = self.path.with_name(f'{self.path.name}.csv') if numbered else None
    self._record_path = self.path.with_name(f'{self.path.name}.json')
    whole = self._writer not in writers.STORES
    self._made = self.folder / 'result' / self.path.name if whole else self.folder / 'result'

  def check(self) -> None:
    """Makes sure that it may be written, without writing anything.

    Raises:
      OutputError: it exists and would not be replaced, or cannot hold instances.
    """
    writers.check_target(self._form, self.path, self._writer)
    self.check_type()

  def check_type(self) -> None:
    """Makes sure that the format can hold the result.

    Raises:
      OutputError: it cannot hold instances.
    """
    writers.check_type(self._form, self.path, self._writer, self.dtype)

  def completed(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record beside an output that was made from just this; None if there is none."""
    try:
      found = json.loads(self._record_path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
      return None
    wanted = json.loads(json.dumps(record)) | {COUNT: found.get(COUNT)}
    there = self.path.exists() and (self.table is None or self.table.exists())
    if found != wanted or not there or self._made.exists():
      return None
    for left in self.path.parent.glob(f'{glob.escape(self.folder.name)}*'):
      shutil.rmtree(left, ignore_errors=True)  # where an earlier start was stopped at that
    return found

  def write(
    self, work: Work, read: Read, count: int, border: tuple[int, ...], record: Mapping[str, Any]
  ) -> None:
    """Writes the result, and its table, and puts both where they belong.

    Args:
      work: the blocks, and what is done.
      read: the result.
      count: of instances.
      border: axes at whose ends the volume has a border, for the table.
      record: what it is made from.

    Raises:
      Gone, Interrupted: as `Work.tasks`.
      OSError, OutputError: it cannot be written.
    """
    found = self._write_store(work, read) if self._writer in writers.STORES else []

    def publish(task: int) -> np.ndarray:
      del task  # there is but one
      statistics = None
      if self.table is not None:
        statistics = Statistics(count, work.grid.shape, border)
        for rows in found:
          statistics.add(rows)
      if self._writer not in writers.STORES:
        self._write_whole(work.grid, read, statistics)
      self._publish(statistics, dict(record) | {COUNT: None if statistics is None else count})
      return nothing()

    work.tasks('publish', 1, publish)

  def _write_store(self, work: Work, read: Read) -> list[np.ndarray]:
    """Block by block; returns what `measure` found in each."""
    size = self._form.voxel_size_zyx or NO_SIZE
    about = array_writers.About(size, self._form.offset_zyx, self._dataset, box=work.grid.block)
    array = array_writers.WRITERS[self._writer](self._made, work.grid.shape, self.dtype, about)

    def write(box: Box) -> np.ndarray:
      values = read(*box).astype(self.dtype)
      array.put_box(box[0], values)
      return nothing() if self.table is None else measure(box[0], values)

    return work.blocks('output', write)

  def _write_whole(self, grid: Grid, read: Read, statistics: Statistics | None) -> None:
    """Section by section, and adds up the table on the way."""
    layers = Grid(grid.shape, (LAYER, *grid.block[1:]), grid.should_stop)

    def boxes() -> Iterator[tuple[Place, np.ndarray]]:
      for start, stop in layers.boxes():
        box = read(start, stop).astype(self.dtype)
        if statistics is not None:
          statistics.add(measure(start, box))
        yield start, box

    named = self._made if self._dataset is None else f'{self._made}:{self._dataset}'
    writers.write_like(self._form, named, _sections(boxes(), grid.shape))

  def _publish(self, statistics: Statistics | None, record: Mapping[str, Any]) -> None:
    """The output comes last: where it is new, so are its table and record."""
    if statistics is not None:
      temporary = self.folder / self.table.name
      statistics.write(temporary, self._form.voxel_size_zyx)
      os.replace(temporary, self.table)
    config_io.write_text(self._record_path, json.dumps(record, indent=2) + '\n')
    if self.path.is_dir():
      self.path.rmdir()  # empty, as checked
    os.replace(self._made, self.path)
    gone = self.folder.with_name(f'{self.folder.name}.{uuid.uuid4().hex[:8]}')
    os.replace(self.folder, gone)  # at once, so that no other process sees half of it
    shutil.rmtree(gone, ignore_errors=True)  # another process may be at it, see `completed`


class _Form(Volume):
  """What a result is like: one volume, in the input's format if that is one for volumes."""

  def __init__(self, volume: Volume) -> None:
    image = volume.kind in ('image', 'folder', 'stack', 'memory')
    self.path, self.kind = volume.path, 'memory' if image else volume.kind
    self.files = () if image else volume.files
    self.axes, self.dtype, self.channels = 'ZYX', volume.dtype, 1
    self.voxel_size_zyx = volume.voxel_size_zyx
    self.names = number(stem(volume.path), len(volume))
    self._size = volume.section_shape(0)

  def section_shape(self, index: int) -> tuple[int, int]:
    del index
    return self._size

  def _read(self, index: int) -> np.ndarray:
    raise NotImplementedError(f'{self.path}: section {index} is not there yet')


def _sections(boxes: Iterator[tuple[Place, np.ndarray]], shape: Place) -> Iterator[np.ndarray]:
  """Section by section, from boxes in order, along x first."""
  layer = None
  for (_, y, x), box in boxes:
    if layer is None:
      layer = np.empty((len(box), *shape[1:]), box.dtype)
    layer[:, y : y + box.shape[1], x : x + box.shape[2]] = box
    if y + box.shape[1] == shape[1] and x + box.shape[2] == shape[2]:
      yield from layer
      layer = None
