"""Segmentation of images for networks that see single sections, file by file."""

import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from emseg_jax import config as config_lib
from emseg_jax.data import pairs, resampled, volumes, writers
from emseg_jax.errors import OutputError
from emseg_jax.postprocess import affinities
from emseg_jax.predict import Predictor, file_values, label_values, open_input

__all__ = ['predict_images']

LOGGER = logging.getLogger(__name__)


def predict_images(
  predictor: Predictor,
  source: str | Path,
  output: Path,
  *,
  should_stop: Callable[[], bool] | None = None,
) -> list[Path]:
  """Segments an image, or a folder of images, into the same kind of file.

  Labels carry the values of the training labels (the inverse of data.label_mapping); affinities
  make instances, image by image, in the largest type that the format holds. With
  predict.probabilities each class also gets a map `OUTPUT_prob_CLASS`, scaled to the full range of
  its type.

  Args:
    predictor: a loaded predictor of a network for sections.
    source: what `volumes.open_volume` reads.
    output: file or folder to write.
    should_stop: asked between batches of tiles.

  Returns:
    The paths written, labels first.

  Raises:
    DataError: the source cannot be read, or its type is not the one trained on where that matters.
    Interrupted: `should_stop` said so; nothing is left half-written.
    OutputError: the output cannot be written, or not hold as many instances.
  """
  config = predictor.config
  given, volume = open_input(predictor, source)
  split = pairs.Split.of_images(volume)
  decide = _decision(config, given, output)
  kind = config.predict.probabilities
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    # Probability maps wait here image by image: a folder times classes would not fit in memory.
    spool = tempfile.TemporaryDirectory(dir=output.parent, prefix='.emseg_')
  except OSError as error:
    raise OutputError(f'{output}: cannot be written: {error.strerror}') from error

  def label_sections() -> Iterator[np.ndarray]:
    for index, name in enumerate(volume.names):
      probabilities = predictor.group_probabilities(split, (index,), should_stop)
      if kind:
        scaled = np.round(probabilities * np.iinfo(kind).max).astype(kind)
        np.save(Path(spool.name) / f'{index}.npy', scaled)
      LOGGER.info('%d/%d %s', index + 1, len(volume), name)
      yield decide(probabilities)

  def map_sections(k: int) -> Iterator[np.ndarray]:
    for index in range(len(volume)):
      yield np.ascontiguousarray(np.load(Path(spool.name) / f'{index}.npy', mmap_mode='r')[..., k])

  with spool:
    labels = resampled.back(label_sections(), volume, given)
    written = [writers.write_like(given, output, labels)]
    for k, name in enumerate(config.task.channels if kind else ()):
      maps = resampled.back(map_sections(k), volume, given)
      written.append(writers.write_like(given, output, maps, suffix=f'_prob_{name}'))
  return written


def _decision(
  config: config_lib.Config, given: volumes.Volume, output: Path
) -> Callable[[np.ndarray], np.ndarray]:
  """What makes the output of probabilities [Y, X, K]: label values, or instances."""
  if not config.task.affinities:
    values = file_values(config)
    return lambda probabilities: values[label_values(probabilities, config.task)]
  options, dtype = config.postprocess, np.dtype('u4')
  affinities.check_options(options)
  try:
    writers.check_type(given, *writers.target_of(given, output), dtype)
  except OutputError:  # PNG
    dtype = np.dtype('u2')

  def instances(probabilities: np.ndarray) -> np.ndarray:
    maps = {offset: probabilities[None, ..., k] for k, offset in enumerate(config.task.offsets)}
    made = affinities.segment(affinities.quantised(maps), options)[0]
    if made.max(initial=0) > np.iinfo(dtype).max:
      raise OutputError(
        f'{output}: PNG cannot hold {made.max()} instances; set postprocess.min_voxels'
      )
    return made.astype(dtype)

  return instances
