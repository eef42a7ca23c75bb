"""Post-processing of a file, or of maps of affinities, into a file, block by block.

Instances get a table beside it.
"""

import dataclasses
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from emseg_jax.config.postprocess import Postprocess
from emseg_jax.data import array_writers, identity, volumes
from emseg_jax.data.volume import Volume, VoxelSize
from emseg_jax.errors import ConfigError, DataError, OutputError
from emseg_jax.manifest import Manifest
from emseg_jax.postprocess import affinities
from emseg_jax.postprocess.grid import Grid, Place, Read, Scratch
from emseg_jax.postprocess.links import Links, Offset
from emseg_jax.postprocess.output import Output
from emseg_jax.postprocess.steps import Steps, border
from emseg_jax.postprocess.work import Gone, Work, nothing

__all__ = ['Result', 'postprocess']

LOGGER = logging.getLogger(__name__)
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

  What was interrupted is gone on with by the same call. The same call at the same time, by any
  number of processes that share a file system, divides the blocks among them.

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
    Interrupted: `should_stop` said so; what is done is kept.
    OutputError: the output cannot be written, or cannot hold instances, or an unfinished one is of
      another input or of other options.
  """
  opened = _open({None: source} if maps is None else maps, options)
  volume = next(iter(opened.values()))
  target = Output(volume, output, numbered=options.instances != 'none')
  dimensions = _dimensions(volume, maps, options)
  known = {'voxel_size': _voxel_size(volume, dimensions, options), 'dimensions': dimensions}
  record = {
    'input': [identity.describe(v) for v in opened.values()],
    'content': [identity.digest(v) for v in opened.values()],
    **{f'postprocess.{k}': v for k, v in options.model_dump(mode='json').items()},
  }
  if (found := target.completed(record)) is not None:
    LOGGER.info('%s: is complete, 0 blocks to process', target.path)
    return Result(target.path, target.table, found['instances'])
  target.check()
  shape = _shape(volume)
  grid = Grid(shape, _block(shape, options.block), should_stop)
  try:
    return _process(opened, options, grid, target, record, **known)
  except Gone:
    return _of_others(target, record)
  except OSError as error:
    raise OutputError(f'{target.path}: cannot be written: {error.strerror or error}') from error


def _process(
  opened: Mapping[Offset | None, Volume],
  options: Postprocess,
  grid: Grid,
  target: Output,
  record: Mapping[str, Any],
  **known: Any,
) -> Result:
  Manifest(target.folder, record)
  if target.completed(record) is not None:  # by another process, in this very moment
    return _of_others(target, record)
  work = Work(grid, target.folder)
  read, count = _compute(opened, options, work, **known)
  if count > np.iinfo(target.dtype).max:
    shutil.rmtree(target.folder, ignore_errors=True)  # it would be so again
    raise DataError(
      f'{target.path}: would have {count} instances, more than {target.dtype} holds; set '
      'postprocess.min_voxels'
    )
  target.write(work, read, count, border(grid.shape, known['dimensions']), record)
  LOGGER.info('%s: %s', target.path, 'mask' if target.table is None else f'{count} instances')
  return Result(target.path, target.table, None if target.table is None else count)


def _of_others(target: Output, record: Mapping[str, Any]) -> Result:
  """What another process completed while this one worked at it, too."""
  found = target.completed(record)
  if found is None:
    raise OutputError(f'{target.folder}: was removed while it was needed; start again')
  LOGGER.info('%s: was completed by another process', target.path)
  return Result(target.path, target.table, found['instances'])


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
  opened: Mapping[Offset | None, Volume], options: Postprocess, work: Work, **known: Any
) -> tuple[Read, int]:
  """The result, and how many instances there are, 0 of a mask."""
  reads = {
    key: v.box if v.cheap_boxes else _copy(v, work, f'input{number}')
    for number, (key, v) in enumerate(opened.items())
  }
  if None not in opened:
    links = Links(reads, work.grid.shape, next(iter(opened.values())).dtype)
    return affinities.instances(options, work, links, **known)
  steps = Steps(options, work, reads[None], **known)
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


def _copy(volume: Volume, work: Work, name: str) -> Read:
  """Sections are decoded once, not again for each block."""
  work.check_there()
  _, height, width = work.grid.block
  store = Scratch(work.folder / name, work.grid.shape, volume.dtype, (1, height, width))

  def copy(z: int) -> np.ndarray:
    work.grid.check_to_stop()
    store.write((z, 0, 0), volume.section(z)[None])
    return nothing()

  work.tasks(name, len(volume), copy)
  return store.read
