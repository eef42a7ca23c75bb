"""Several binary networks, one per structure, fused into one map of all structures (SegET).

The score maps compete voxel by voxel: the structure with the highest probability wins if that
exceeds a half, else the voxel is background.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from emseg_jax.data import blocks, pairs, resampled, writers
from emseg_jax.errors import ConfigError
from emseg_jax.predict import Predictor, open_input

__all__ = ['fuse_files', 'fused']

LOGGER = logging.getLogger(__name__)

THRESHOLD = 0.5


def fused(scores: Sequence[np.ndarray]) -> np.ndarray:
  """Class map of competing structures.

  Args:
    scores: foreground probabilities [*spatial] of each structure.

  Returns:
    [*spatial] uint8: 0 where no score exceeds 0.5, else 1 + the index of the highest; of equal ones
    the first.
  """
  best = np.zeros(scores[0].shape, np.uint8)
  highest = np.full(scores[0].shape, THRESHOLD, np.float32)
  for index, score in enumerate(scores):
    wins = score > highest
    best[wins], highest[wins] = index + 1, score[wins]
  return best


def fuse_files(
  predictors: Sequence[Predictor],
  source: str | Path,
  output: Path,
  *,
  should_stop: Callable[[], bool] | None = None,
) -> Path:
  """Segments an image, a folder or a stack with all networks and writes the fused map.

  Args:
    predictors: binary networks; the i-th one's foreground becomes the value i + 1.
    source: what `volumes.open_volume` reads.
    output: file or folder to write.
    should_stop: asked between batches of tiles.

  Returns:
    The path written.

  Raises:
    ConfigError: a network has not two classes, or they may overlap.
    DataError: the source cannot be read or is of another type than the networks were trained on.
    Interrupted: `should_stop` said so; nothing is left half-written.
    OutputError: the output cannot be written.
  """
  for predictor in predictors:
    task = predictor.config.task
    if len(task.classes) != 2 or task.independent:
      raise ConfigError(
        f'task.classes={list(task.classes)}: a network to be fused has two classes, background '
        'first, and is not multilabel or of affinities'
      )
  sizes = {predictor.config.data.voxel_size for predictor in predictors}
  if len(sizes) > 1:
    raise ConfigError(f'data.voxel_size: the networks see different ones, {sizes}')
  opened = [open_input(predictor, source) for predictor in predictors]  # each checks for itself
  given, volume = opened[0]
  split = pairs.Split.of_images(volume)
  # Networks for volumes and for sections may be mixed: all see the largest group that any needs.
  ranks = [len(predictor.config.data.patch) for predictor in predictors]

  def sections() -> Iterator[np.ndarray]:
    for group in blocks.groups(split, max(ranks)):
      scores = [
        _foreground(p, split, group, rank, should_stop)
        for p, rank in zip(predictors, ranks, strict=True)
      ]
      LOGGER.info('%d/%d', group[-1] + 1, len(volume))
      yield from fused(scores)

  return writers.write_like(given, output, resampled.back(sections(), volume, given))


def _foreground(
  predictor: Predictor,
  split: pairs.Split,
  group: Sequence[int],
  rank: int,
  should_stop: Callable[[], bool] | None,
) -> np.ndarray:
  """Foreground probability [Z, Y, X] of the sections of a group."""
  parts = [tuple(group)] if rank == 3 else [(index,) for index in group]
  found = [predictor.group_probabilities(split, part, should_stop)[..., 1] for part in parts]
  return np.concatenate([f.reshape(-1, *f.shape[-2:]) for f in found])
