"""Post-processing of a file, or of maps of affinities, into a file, block by block.

Instances get a table beside it.
"""

import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from emseg_jax.config.postprocess import Postprocess
from emseg_jax.data import array_writers, recognise, volumes, writers
from emseg_jax.data.volume import Volume, VoxelSize, number, stem
from emseg_jax.errors import ConfigError, DataError, OutputError
from emseg_jax.postprocess import affinities
from emseg_jax.postprocess.grid import Grid, Place, Read, Scratch
from emseg_jax.postprocess.links import Links, Offset
from emseg_jax.postprocess.steps import Steps, border
from emseg_jax.postprocess.table import Statistics

__all__ = ['Result', 'check_output', 'postprocess']

LOGGER = logging.getLogger(__name__)
LAYER = 16  # sections that are held at once, for files that are written section by section
NO_SIZE = (None, None, None)


@dataclasses.dataclass(frozen=True)
class Result:
  """Attributes:
  path: the mask, or the ids of instances.
  table: the CSV file, see `table.Statistics.write`; None for a mask.
  count: how many instances there are; None for a mask.
  """

  path: Path
  table: Path | None
  count: int | None


def postprocess(
  source: str | Path,
  output: str | Path,
  options: Postprocess,
  *,
  maps: Mapping[Offset, str | Path] | None = None,
  should_stop: Callable[[], bool] | None = None,
) -> Result:
  """Makes a clean mask or instances of labels or probabilities; the result is that of the whole
  volume, whatever the blocks are.

  Steps, in this order: foreground (a label, or probabilities above a threshold), hysteresis,
  filling of holes, removal of small objects, instances (connected components, or a marker
  watershed, see `flood`). A mask is uint8, 0 and 1. Instances are uint32, 1 to n by the first voxel
  of each (along x first, z last), or of its marker, and get the table `OUTPUT.csv`.

  Args:
    source: what `volumes.open_volume` reads: labels, or probabilities scaled to the full range of
      their integer type, or floats from 0 to 1. Images of a folder must be of one size.
    output: TIFF, HDF5 ('out.h5:/name' names the dataset), '.zarr', '.n5', '.precomputed' or '.nii',
      masks also MRC; without an extension as the source, TIFF for images.
    options: the section `postprocess` of a configuration.
    maps: offset -> map of its affinities, which are then what is read, see `affinities`; the source
      is only how messages call them. Offsets of two axes take each section by itself.
    should_stop: asked before each block.

  Raises:
    ConfigError: a step needs a voxel size that is unknown, or is not for affinities.
    DataError: the source cannot be read or is no volume.
    Interrupted: `should_stop` said so; nothing is left behind.
    OutputError: the output cannot be written, or cannot hold instances.
  """
  opened = _open({None: source} if maps is None else maps, options)
  volume = next(iter(opened.values()))
  shape = _shape(volume)
  dimensions = _dimensions(volume, maps, options)
  voxel_size = _voxel_size(volume, dimensions, options)
  form = _Form(volume)
  numbered = options.instances != 'none'
  dtype = np.dtype('u4' if numbered else 'u1')
  target, writer = writers.target_of(form, output)
  writers.check_target(form, target, writer)
  writers.check_type(form, target, writer, dtype)
  grid = Grid(shape, _block(shape, options.block), should_stop)
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f'.{target.name}.') as name:
      folder = Path(name)
      known = {'voxel_size': voxel_size, 'dimensions': dimensions, 'folder': folder}
      result, count = _compute(opened, options, grid, **known)
      if count > np.iinfo(dtype).max:
        raise DataError(f'{source}: has {count} instances, more than {dtype}; set min_voxels')
      statistics = Statistics(count, shape, border(shape, dimensions)) if numbered else None
      made = _write(form, output, folder, grid, result, dtype, statistics)
      table = _publish(made, target, statistics, volume.voxel_size_zyx)
  except OSError as error:
    raise OutputError(f'{target}: cannot be written: {error.strerror or error}') from error
  LOGGER.info('%s: %s', target, f'{count} instances' if numbered else 'mask')
  return Result(target, table, count if numbered else None)


def check_output(volume: Volume, output: str | Path) -> Path:
  """Where instances of a volume go, if they may be written there.

  Args:
    volume: what they are in.
    output: as in `postprocess`.

  Raises:
    OutputError: they may not, or the format cannot hold them.
  """
  form = _Form(volume)
  target, writer = writers.target_of(form, output)
  writers.check_type(form, target, writer, np.dtype('u4'))
  return target


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


def _dimensions(
  volume: Volume, maps: Mapping[Offset, Any] | None, options: Postprocess
) -> Literal[2, 3]:
  """2: each section by itself; networks of sections know nothing across them."""
  if maps is None:
    return options.dimensions or (2 if volume.axes.startswith('N') else 3)
  affinities.check_options(options)
  rank = min(map(len, maps))
  return min(rank, options.dimensions or rank)


def _compute(
  opened: Mapping[Offset | None, Volume], options: Postprocess, grid: Grid, **known: Any
) -> tuple[Read, int]:
  """The result, and how many instances there are, 0 of a mask."""
  reads = {
    key: v.box if v.cheap_boxes else _copy(v, grid, known['folder'] / f'input{number}')
    for number, (key, v) in enumerate(opened.items())
  }
  if None not in opened:
    links = Links(reads, grid.shape, next(iter(opened.values())).dtype)
    return affinities.instances(options, grid, links, **known)
  steps = Steps(options, grid, reads[None], **known)
  return steps.instances() if options.instances != 'none' else (steps.clean()[0], 0)


def _open(
  sources: Mapping[Offset | None, str | Path], options: Postprocess
) -> dict[Offset | None, Volume]:
  """The input, or the maps, which must be alike."""
  opened = {
    key: volumes.open_volume(path, palette='index', reading=options.reading)
    for key, path in sources.items()
  }
  first = next(iter(opened.values()))
  for volume in opened.values():
    if (_shape(volume), volume.dtype) != (_shape(first), first.dtype):
      raise DataError(
        f'{volume.path}: is {_shape(volume)} {volume.dtype}, but {first.path} is {_shape(first)} '
        f'{first.dtype}; the maps of one prediction must be alike'
      )
  return opened


def _shape(volume: Volume) -> Place:
  if volume.channels != 1:
    raise DataError(f'{volume.path}: is colour, but labels or probabilities are needed')
  sizes = {volume.section_shape(i) for i in range(len(volume))}
  if len(sizes) > 1:
    raise DataError(
      f'{volume.path}: images of {len(sizes)} sizes cannot be processed together, {min(sizes)} to '
      f'{max(sizes)}; process them one by one'
    )
  return (len(volume), *sizes.pop())


def _voxel_size(volume: Volume, dimensions: int, options: Postprocess) -> VoxelSize | None:
  """In nm; None unless all that matters is known: in single sections, z does not."""
  z, y, x = volume.voxel_size_zyx or NO_SIZE
  if dimensions == 2:
    z = 1.0
  if None not in (z, y, x):
    return z, y, x
  if options.min_volume is not None:
    raise ConfigError(
      f'postprocess.min_volume={options.min_volume:g}: the voxel size of {volume.path} is unknown; '
      'set min_voxels instead, or postprocess.reading.voxel_size'
    )
  return None


def _block(shape: Place, block: tuple[int, ...]) -> Place:
  """Rounded up to chunks of the output, so that no two blocks write into one."""
  chunk, full = array_writers.CHUNK, (*(1,) * (3 - len(block)), *block)
  return tuple(min(n, -(-b // chunk) * chunk) for n, b in zip(shape, full, strict=True))


def _copy(volume: Volume, grid: Grid, path: Path) -> Read:
  """Sections are decoded once, not again for each block."""
  _, height, width = grid.block
  store = Scratch(path, grid.shape, volume.dtype, (1, height, width))
  for (z, _, _), _ in Grid(grid.shape, (1, *grid.shape[1:]), grid.should_stop).boxes():
    store.write((z, 0, 0), volume.section(z)[None])
  return store.read


def _write(
  form: Volume,
  output: str | Path,
  folder: Path,
  grid: Grid,
  read: Read,
  dtype: np.dtype,
  statistics: Statistics | None,
) -> Path:
  """Writes the result into the folder, as it will be, and adds up the table on the way."""
  target, writer = writers.target_of(form, output)
  dataset = recognise.split_dataset(os.fspath(output))[1]
  if writer not in writers.STORES:
    made = folder / 'result' / target.name
    boxes = _boxes(Grid(grid.shape, (LAYER, *grid.block[1:]), grid.should_stop), read, dtype)
    named = made if dataset is None else f'{made}:{dataset}'
    return writers.write_like(form, named, _sections(_counted(boxes, statistics), grid.shape))
  made = folder / 'result'
  size = form.voxel_size_zyx or NO_SIZE
  about = array_writers.About(size, form.offset_zyx, dataset, box=grid.block)
  array = array_writers.WRITERS[writer](made, grid.shape, dtype, about)
  for start, box in _counted(_boxes(grid, read, dtype), statistics):
    array.put_box(start, box)
  return made


def _publish(
  made: Path, target: Path, statistics: Statistics | None, voxel_size: VoxelSize | None
) -> Path | None:
  """Puts the finished result where it belongs, after its table: where the one is, both are."""
  table = None
  if statistics is not None:
    table = target.with_name(f'{target.name}.csv')
    temporary = made.with_name(table.name)
    statistics.write(temporary, voxel_size)
    os.replace(temporary, table)
  if target.is_dir():
    target.rmdir()  # empty, as checked
  os.replace(made, target)
  return table


def _boxes(grid: Grid, read: Read, dtype: np.dtype) -> Iterator[tuple[Place, np.ndarray]]:
  for start, stop in grid.boxes():
    yield start, read(start, stop).astype(dtype)


def _counted(
  boxes: Iterator[tuple[Place, np.ndarray]], statistics: Statistics | None
) -> Iterator[tuple[Place, np.ndarray]]:
  for start, box in boxes:
    if statistics is not None:
      statistics.add(start, box)
    yield start, box


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
