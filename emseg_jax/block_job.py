"""What a block-wise prediction reads, computes and writes: settled before anything is computed."""

import dataclasses
import datetime
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emseg_jax import block_plan, memory, tiling
from emseg_jax import config as config_lib
from emseg_jax.data import (
  array_writers,
  blocks,
  cropped,
  identity,
  pairs,
  resampled,
  volumes,
  writers,
)
from emseg_jax.errors import ConfigError, DataError
from emseg_jax.predict import Predictor, file_values, open_input

__all__ = [
  'Job',
  'block_memory',
  'describe',
  'format_size',
  'is_volume',
  'lay_out',
  'map_type',
  'plan_job',
]

Box = Sequence[int]


def map_type(config: config_lib.Config) -> str | None:
  """Of probability maps; None: none are made."""
  return config.predict.probabilities or ('uint8' if config.task.affinities else None)


def is_volume(predictor: Predictor, volume: volumes.Volume) -> bool:
  """Whether the sections belong together: by their file, or because the network wants a volume."""
  return volume.axes.startswith('Z') or len(predictor.config.data.patch) == 3


@dataclasses.dataclass(frozen=True)
class Job:
  """Attributes:
  volume: what the network sees.
  given: the input as it is, or the box of it that is predicted: what the output is like.
  split, group: the sections of `volume`.
  plan: geometry.
  mask: (start, size) -> bool [z, y, x]; None: everything is predicted.
  output: as the caller gave it, perhaps with the name of a dataset.
  targets: (suffix, path, writer) of the labels, which affinities do not have, and of each map.
  held: what a block and the images of two take on the device, bytes.
  record: all that decides what the output is.
  """

  volume: volumes.Volume
  given: volumes.Volume
  split: pairs.Split
  group: blocks.Group
  plan: block_plan.Plan
  mask: Callable[[Box, Box], np.ndarray] | None
  output: Path
  targets: tuple[tuple[str, Path, str | None], ...]
  held: int
  record: dict[str, Any]

  @property
  def folder(self) -> Path:
    path = self.targets[0][1]
    return path.with_name(f'.{path.name}.partial')

  @property
  def record_path(self) -> Path:
    path = self.targets[0][1]
    return path.with_name(f'{path.name}.json')

  @property
  def as_is(self) -> bool:
    """Whether blocks are voxels of the output, not of a resampled volume."""
    return not isinstance(self.volume, resampled.Resampled)

  def store(self, number: int) -> tuple[Path, str]:
    """Where blocks are gathered, and in which form: that of the output if it has chunks."""
    writer = self.targets[number][2]
    direct = self.as_is and writer in writers.STORES
    return self.folder / str(number), writer if direct else 'zarr'


def plan_job(predictor: Predictor, source: str | Path, output: Path) -> Job:
  """Opens the input and lays out blocks; reads no voxels and writes nothing.

  Raises:
    ConfigError, DataError: the source cannot be read, or predict.roi or mask does not fit it.
    OutputError: the output has an extension of another format.
  """
  config = predictor.config
  options = config.predict
  given, volume = open_input(predictor, source)
  cache = 0 if volume.cheap_boxes else int(config.data.cache_gb * 1e9)
  split = pairs.Split.of_images(volume, cache_bytes=cache)
  joined = len(config.data.patch) == 3 or config.data.neighbours > 0
  group = blocks.groups(split, 3)[0] if joined else tuple(range(len(split)))
  # Sums and their share of the result; the image of this block and of the next.
  voxel_bytes = 8 * (len(config.task.channels) + predictor.channels)
  plan = block_plan.make_plan(
    lay_out(predictor, blocks.shape(split, group)),
    voxel_bytes=voxel_bytes,
    memory=block_memory(),
    chunk=array_writers.CHUNK,
    block=options.block,
    roi=block_plan.parse_roi(options.roi) if options.roi else None,
  )
  if options.roi:
    if volume is not given:
      raise ConfigError(
        'predict.roi: cannot be used together with data.voxel_size, its voxels would be ambiguous'
      )
    given = cropped.Cropped(volume, plan.start, plan.stop)
  suffixes = [f'_prob_{name}' for name in config.task.channels if map_type(config)]
  if not config.task.affinities:  # objects are made when all maps are there
    suffixes = ['', *suffixes]
  form = options.zarr_format
  targets = [(s, *writers.target_of(given, output, suffix=s, zarr_format=form)) for s in suffixes]
  record = {
    'input': identity.describe(volume),
    'network': _fingerprint(predictor),
    'geometry': plan.to_json(),
    'mask': options.mask,
    'augment': options.augment,
    'probabilities': map_type(config),
    'values': file_values(config).tolist(),
  }
  if form is not None:
    record['zarr_format'] = form
  mask = _open_mask(options.mask, volume) if options.mask else None
  held = math.prod(plan.extent) * voxel_bytes
  return Job(volume, given, split, group, plan, mask, output, tuple(targets), held, record)


def lay_out(predictor: Predictor, shape: tuple[int, int, int]) -> tiling.Layout:
  """The tiles of a volume; those of networks for sections have one section."""
  if len(predictor.config.data.patch) == 3:
    return predictor.layout(shape)
  flat = predictor.layout(shape[1:])
  return dataclasses.replace(
    flat,
    shape=shape,
    tile=(1, *flat.tile),
    origins=(tuple(range(shape[0])), *flat.origins),
    halo=(0, *flat.halo),
  )


def _open_mask(path: str, volume: volumes.Volume) -> Callable[[Box, Box], np.ndarray]:
  mask = volumes.open_volume(path, palette='index')
  shape, own = ((len(v), *v.section_shape(0)) for v in (volume, mask))
  if shape != own:
    raise DataError(
      f'{path}: the mask is {format_size(own)} (z y x), the volume is {format_size(shape)}'
    )

  def read(start: Box, size: Box) -> np.ndarray:
    stop = tuple(a + n for a, n in zip(start, size, strict=True))
    return mask.box(tuple(start), stop) != 0

  return read


def block_memory() -> int:
  """What a block may take, bytes: a quarter of the device's memory, on CPUs an eighth."""
  limit = memory.device_memory()
  if limit and jax.default_backend() != 'cpu':
    return limit // 4
  return memory.host_memory() // 8


def _fingerprint(predictor: Predictor) -> dict[str, Any]:
  config, meta = predictor.config, predictor.meta
  return {
    'step': None if meta is None else meta.step,
    'arrays': hashlib.sha256(str(predictor.digests()).encode()).hexdigest(),
    'model': config.model.model_dump(mode='json'),
    'normalisation': predictor.normalisation.to_json(),
    'neighbours': config.data.neighbours,
    'voxel_size': config.data.voxel_size,
  }


def describe(predictor: Predictor, source: str | Path, output: Path) -> dict[str, str]:
  """What a prediction would do, and about how long it would take; writes nothing.

  Raises:
    ConfigError, DataError, OutputError: as `plan_job`.
  """
  job = plan_job(predictor, source, output)
  plan, classes = job.plan, len(predictor.config.task.channels)
  tiles = sum(len(block.tiles) for block in plan.blocks())
  batches = sum(-(-len(block.tiles) // predictor.batch_size) for block in plan.blocks())
  tile = plan.tile[-len(predictor.config.data.patch) :]
  image = np.zeros((predictor.batch_size, *tile, predictor.channels), np.float32)
  jax.block_until_ready(predictor.apply(image))  # compiles
  began = time.perf_counter()
  jax.block_until_ready(predictor.apply(image))
  seconds = batches * (time.perf_counter() - began)
  voxels = math.prod(plan.shape)
  held = math.prod(plan.extent)
  return {
    'output': f'{format_size(plan.shape)}, {voxels / 1e9:.4g} Gvoxel, {job.targets[0][1]}',
    'blocks': f'{len(plan)} of {format_size(plan.block)}',
    'tiles': f'{tiles} of {format_size(plan.tile)}, {plan.effort:.2f} times the fewest',
    'memory': f'{held * classes * 8 / 1e9:.3g} GB for the probabilities of a block, '
    f'{held * predictor.channels * 8 / 1e9:.3g} GB for the image of two',
    'time': f'about {datetime.timedelta(seconds=round(seconds))}, '
    f'{voxels / seconds / 1e6:.3g} Mvoxel/s',
  }


def format_size(shape: Sequence[int]) -> str:
  """'2 x 3 x 4'."""
  return ' x '.join(map(str, shape))
