"""The package as functions: what the command line does, callable from Python.

Each function is one mode of `python -m emseg_jax.main`. They set up no logging and catch no
signals; pass `should_stop` for that.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from emseg_jax import (
  block_job,
  experiment,
  instance_evaluation,
  instance_prediction,
  loading,
  predict_images,
  processes,
  report_cases,
  start_table,
  trainer,
  volume_prediction,
)
from emseg_jax import config as config_lib
from emseg_jax import evaluation as evaluation_lib
from emseg_jax import fuse as fuse_lib
from emseg_jax import predict as predict_lib
from emseg_jax.data import pairs
from emseg_jax.errors import ConfigError

__all__ = ['evaluate', 'fuse', 'plan', 'predict', 'report', 'score', 'train']

LOGGER = logging.getLogger(__name__)

StopFn = Callable[[], bool]


def _never() -> bool:
  return False


def train(
  config: config_lib.Config,
  folder: Path,
  *,
  extend: bool = False,
  should_stop: StopFn = _never,
  command: str | None = None,
) -> trainer.TrainResult:
  """Trains or resumes, then scores the best checkpoint on all labelled splits and writes the
  report.

  Args:
    config: the configuration.
    folder: work directory.
    extend: allow more train.steps than the run had.
    should_stop: asked at step and tile boundaries.
    command: printed in the report.

  Raises:
    EmsegError: one of its subclasses; see `trainer.train`.
  """
  for remark in experiment.validate(config):
    LOGGER.warning(remark)
  if config.model.init_from and not (folder / 'checkpoints').is_dir():
    # Before the folder is claimed: a wrong file must not leave a run behind.
    LOGGER.info('%s:\n%s', config.model.init_from, start_table.describe_start(config))
  result = trainer.train(config, folder, should_stop=should_stop, extend=extend)
  for split in ('validation', 'test'):
    if getattr(config.data, split):
      scored = evaluate(config, folder, split=split, should_stop=should_stop)
      if processes.is_first():
        LOGGER.info('%s', instance_evaluation.format_evaluation(scored))
  if config.run.report and processes.is_first():
    path = report(config, folder, command=command)
    LOGGER.info('Report: %s', path)
  return result


def evaluate(
  config: config_lib.Config,
  folder: Path,
  *,
  split: str | None = None,
  should_stop: StopFn = _never,
) -> evaluation_lib.Evaluation:
  """Scores a checkpoint of a run on a split; writes evaluation/SPLIT.json and class maps.

  Args:
    config: the run's configuration, with other sources or tiles where wanted.
    folder: work directory.
    split: which sources; eval.split if None.
    should_stop: asked between batches of tiles.

  Raises:
    EmsegError: checkpoint, data or output cannot be used.
  """
  split = split or config.eval.split
  sources = getattr(config.data, split)
  if not sources:
    raise ConfigError(f'config.data.{split}: is empty; name the images and labels to score')
  data = pairs.open_split(sources, task=config.task, data=config.data)
  predictor = loading.load_predictor(config, folder)

  def write(index: int, prediction: np.ndarray) -> None:
    evaluation_lib.write_map(evaluation_lib.class_map_path(folder, split, index), prediction)

  def write_objects(index: int, numbers: np.ndarray) -> None:
    evaluation_lib.write_map(evaluation_lib.object_map_path(folder, split, index), numbers)

  result = instance_evaluation.evaluate_split(
    predictor,
    data,
    extra_metrics=config.eval.metrics,
    # Several processes could not agree on a tile to stop at.
    should_stop=should_stop if processes.is_alone() else None,
    on_prediction=write if processes.is_first() else None,
    on_instances=write_objects if processes.is_first() else None,
  )
  if not processes.is_first():
    return result
  path = folder / 'evaluation' / f'{split}.json'
  evaluation_lib.write_evaluation(result, path, step=predictor.meta.step, split=split)
  LOGGER.info('%s, %d images, step %d -> %s', split, len(data), predictor.meta.step, path)
  return result


def score(
  config: config_lib.Config,
  predictions: str | Path,
  labels: str | Path,
  *,
  output: Path | None = None,
) -> evaluation_lib.Evaluation:
  """Scores segmentation files made elsewhere with the classes and label mapping of a configuration.

  Args:
    config: task, data.label_mapping and eval are used.
    predictions: image, folder or stack.
    labels: ground truth of the same kind.
    output: JSON file to write; None: none.

  Raises:
    DataError: the files do not match or hold values that are not mapped.
  """
  result = instance_evaluation.score_files(predictions, labels, config=config)
  if output is not None:
    evaluation_lib.write_evaluation(result, output, step=None, split=str(predictions))
    LOGGER.info('-> %s', output)
  return result


def predict(
  config: config_lib.Config,
  folder: Path,
  source: str | Path,
  output: Path,
  *,
  part: tuple[int, int] = (0, 1),
  should_stop: StopFn = _never,
) -> list[Path]:
  """Segments an image, a folder or a volume into the same kind of file.

  Volumes are predicted block by block; what is interrupted is gone on with by the same call.

  Args:
    config: the run's configuration, with other tiles where wanted.
    folder: work directory.
    source: what `volumes.open_volume` reads: image, folder, volume, or an address of one.
    output: file or folder to write.
    part: (i, n) computes the i-th of n shares of a volume.
    should_stop: asked between batches of tiles.

  Returns:
    What was written, labels first; nothing if parts are missing.

  Raises:
    EmsegError: checkpoint, data or output cannot be used.
  """
  predictor, by_blocks = _open(config, folder, source, volumes_only=part[1] > 1)
  if by_blocks and config.task.affinities:
    written = instance_prediction.predict_instances(
      predictor, source, output, part=part, should_stop=should_stop
    )
  elif by_blocks:
    written = volume_prediction.predict_volume(
      predictor, source, output, part=part, should_stop=should_stop
    )
  else:
    written = predict_images.predict_images(predictor, source, output, should_stop=should_stop)
  if written:
    LOGGER.info('-> %s', ', '.join(str(path) for path in written))
  return written


def plan(
  config: config_lib.Config, folder: Path, source: str | Path, output: Path
) -> dict[str, str]:
  """What `predict` would do with a volume, and about how long it would take; writes nothing.

  Args:
    config: as of `predict`, like the others.
    folder: work directory.
    source: the volume.
    output: where it would be written.

  Returns:
    'output', 'blocks', 'tiles', 'memory', 'time', each with a text.

  Raises:
    EmsegError: as `predict`.
  """
  predictor, _ = _open(config, folder, source, volumes_only=True)
  return block_job.describe(predictor, source, output)


def _open(
  config: config_lib.Config, folder: Path, source: str | Path, *, volumes_only: bool
) -> tuple[predict_lib.Predictor, bool]:
  """The network, and whether the source is a volume, to be predicted block by block."""
  predictor = loading.load_predictor(config, folder)
  _, volume = predict_lib.open_input(predictor, source)
  by_blocks, options = block_job.is_volume(predictor, volume), config.predict
  if not by_blocks and (volumes_only or options.block or options.roi or options.mask):
    raise ConfigError(
      f'{source}: is no volume; --part, --dry_run and predict.block, roi and mask are for volumes'
    )
  return predictor, by_blocks


def fuse(
  configs: Sequence[config_lib.Config],
  folders: Sequence[Path],
  source: str | Path,
  output: Path,
  *,
  should_stop: StopFn = _never,
) -> Path:
  """Segments with several binary networks and writes one map of all their structures.

  Args:
    configs: the runs' configurations, perhaps with other tiles.
    folders: work directories; the i-th one's foreground becomes the value i + 1.
    source: what `volumes.open_volume` reads: image, folder, volume, or an address of one.
    output: file or folder to write.
    should_stop: asked between batches of tiles.

  Raises:
    EmsegError: a checkpoint, the data or the output cannot be used.
  """
  predictors = []
  for config, folder in zip(configs, folders, strict=True):
    predictors.append(loading.load_predictor(config, folder))
  path = fuse_lib.fuse_files(predictors, source, output, should_stop=should_stop)
  for value, (config, folder) in enumerate(zip(configs, folders, strict=True), start=1):
    LOGGER.info('%d: %s (%s)', value, config.task.classes[1], folder)
  LOGGER.info('-> %s', path)
  return path


def report(config: config_lib.Config, folder: Path, *, command: str | None = None) -> Path:
  """Writes report.html from what training and evaluation left in the work directory.

  Raises:
    EmsegError: the data of the pictures, or a file of the work directory, cannot be read.
  """
  from emseg_jax.report import html

  worst, best = report_cases.worst_and_best(config, folder)
  return html.write_report(
    folder,
    worst=worst,
    best=best,
    versions=experiment.versions(),
    colours=config.task.colours,
    command=command,
  )
