"""Prediction of volumes block by block, with resume: from a file to files of the same form.

While it runs, `.NAME.partial` beside the output holds the blocks so far and a manifest of them.
When all are there they become the output, and `NAME.json` beside it says what it was made from; the
same command then has nothing left to do.
"""

import fcntl
import functools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from emseg_jax import block_predict, config_io
from emseg_jax.block_job import Job, map_type, plan_job
from emseg_jax.data import (
  array_writers,
  blocks,
  recognise,
  resampled,
  volumes,
  writers,
)
from emseg_jax.errors import OutputError
from emseg_jax.manifest import Manifest
from emseg_jax.predict import Predictor, file_values, label_values

__all__ = ['predict_volume']

LOGGER = logging.getLogger(__name__)
Box = Sequence[int]


def predict_volume(
  predictor: Predictor,
  source: str | Path,
  output: Path,
  *,
  part: tuple[int, int] = (0, 1),
  should_stop: Callable[[], bool] | None = None,
) -> list[Path]:
  """Segments a volume into one of the same kind, or of the kind of the output's extension.

  Labels carry the values of the training labels; with predict.probabilities every class also gets a
  map `OUTPUT_prob_CLASS`. Of affinities there are maps only, `OUTPUT_prob_OFFSET`. An interrupted
  prediction is gone on with by the same call.

  Args:
    predictor: a loaded predictor.
    source: what `volumes.open_volume` reads.
    output: file or folder to write.
    part: (i, n) computes the i-th of n shares of the blocks; whoever completes them writes the
      output.
    should_stop: asked between batches of tiles.

  Returns:
    The paths written, labels first; none while other parts are missing.

  Raises:
    ConfigError, DataError: the source cannot be read, or box, mask or type do not fit.
    DeviceError: the device has too little memory; the sentence says what would fit.
    Interrupted: `should_stop` said so; finished blocks are kept.
    OutputError: the output cannot be written, or an unfinished one is of another computation.
  """
  job = plan_job(predictor, source, output)
  paths = [path for _, path, _ in job.targets]
  if _is_complete(job):
    LOGGER.info('%s: is complete, 0 blocks to predict', paths[0])
    return paths
  for number, (_, path, writer) in enumerate(job.targets):
    if not _is_moved(job, number):
      writers.check_target(job.given, path, writer)
  manifest = Manifest(job.folder, job.record, part=part[0])
  count = len(job.plan)
  own = range(count * part[0] // part[1], count * (part[0] + 1) // part[1])
  todo = sorted(set(own) - manifest.finished())
  LOGGER.info('%s: %d of %d blocks to predict', source, len(todo), len(own))
  if todo:
    work = _work(predictor, job)
    with predictor.explained(job.plan.block, job.held):
      block_predict.predict_blocks(
        job.plan, work, numbers=todo, on_block=manifest.add, should_stop=should_stop
      )
  missing = count - len(manifest.finished())
  if missing:
    LOGGER.info('%s: %d blocks of other parts are missing', paths[0], missing)
    return []
  return paths if _finish(job) else []


def _work(predictor: Predictor, job: Job) -> block_predict.Work:
  config, plan = predictor.config, job.plan
  values = file_values(config)
  size = job.given.voxel_size_zyx or (None, None, None)
  dataset = recognise.split_dataset(str(job.output))[1]
  outputs = []
  for number, (suffix, _, _) in enumerate(job.targets):
    path, form = job.store(number)
    dtype = values.dtype if not suffix else np.dtype(map_type(config))
    about = array_writers.About(size, job.given.offset_zyx, dataset, not suffix, plan.block)
    outputs.append(array_writers.WRITERS[form](path, plan.shape, dtype, about))

  def write(start: Box, labels: np.ndarray, maps: np.ndarray | None) -> None:
    first = len(outputs) - (0 if maps is None else maps.shape[-1])
    if first:
      outputs[0].put_box(start, values[labels])
    for k, one in enumerate(outputs[first:]):
      one.put_box(start, maps[..., k])

  return block_predict.Work(
    read=functools.partial(
      _read_image, job.split, predictor.normalisation, job.group, config.data.neighbours
    ),
    apply=predictor.apply,
    decide=functools.partial(label_values, task=config.task, xp=jnp),
    write=write,
    mask=job.mask,
    flat=len(config.data.patch) == 2,
    channels=predictor.channels,
    num_maps=len(config.task.channels),
    batch_size=predictor.batch_size,
    scaled=map_type(config),
  )


def _read_image(split, normalisation, group, neighbours, origin: Box, size: Box) -> np.ndarray:
  return blocks.read_image(split, normalisation, group, origin, size, neighbours=neighbours)


def _is_complete(job: Job) -> bool:
  try:
    found = json.loads(job.record_path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return False
  there = all(path.exists() for _, path, _ in job.targets)
  return there and found == json.loads(json.dumps(job.record))


def _is_moved(job: Job, number: int) -> bool:
  """Whether an earlier call was stopped while it made the output, after this file."""
  path = job.targets[number][1]
  return path.exists() and job.folder.exists() and not job.store(number)[0].exists()


def _finish(job: Job) -> bool:
  """Makes the output of the blocks; False if another process is doing so."""
  with open(job.folder / 'finishing', 'w', encoding='ascii') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      LOGGER.info('%s: is being completed by another process', job.targets[0][1])
      return False
    for number, (suffix, path, writer) in enumerate(job.targets):
      store, form = job.store(number)
      if not store.exists():  # an earlier call came so far
        continue
      if job.as_is and form == writer:
        _move(store, path)
      else:
        sections = _sections(store)
        if not job.as_is:
          sections = resampled.back(sections, job.volume, job.given)
        zarr = {'zarr': 2, 'zarr3': 3}.get(writer)
        writers.write_like(job.given, job.output, sections, suffix=suffix, zarr_format=zarr)
        shutil.rmtree(store)
  config_io.write_text(job.record_path, json.dumps(job.record, indent=2) + '\n')
  shutil.rmtree(job.folder)
  return True


def _sections(store: Path) -> Iterator[np.ndarray]:
  """Of a finished store of blocks, a layer of chunks at a time."""
  volume = volumes.open_volume(store, palette='index')
  depth, height, width = len(volume), *volume.section_shape(0)
  for z in range(0, depth, array_writers.CHUNK):
    yield from volume.box((z, 0, 0), (min(z + array_writers.CHUNK, depth), height, width))


def _move(store: Path, path: Path) -> None:
  try:
    if path.is_dir():
      path.rmdir()  # empty, as checked
    os.replace(store, path)
  except OSError as error:
    raise OutputError(f'{path}: cannot be written: {error.strerror}') from error
