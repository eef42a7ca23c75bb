"""Several binary networks, one per structure, fused into one map of all structures (SegET).

The score maps compete voxel by voxel: the structure with the highest probability wins if that
exceeds a half, else the voxel is background. Volumes are fused box by box, written section by
section: memory is that of a layer of boxes.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from emseg_jax import volume_boxes
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
  # A volume that is not read in boxes is decoded once, as far as the cache reaches.
  kept = 0 if volume.cheap_boxes else int(predictors[0].config.data.cache_gb * 1e9)
  split = pairs.Split.of_images(volume, cache_bytes=kept)
  # Networks for volumes and for sections may be mixed: all see the largest group that any needs.
  rank = max(len(predictor.config.data.patch) for predictor in predictors)
  segment = _segment_volume if rank == 3 else _segment_section

  def sections() -> Iterator[np.ndarray]:
    for group in blocks.groups(split, rank):
      yield from segment(predictors, split, group, should_stop)

  zarr = predictors[0].config.predict.zarr_format
  found = resampled.back(sections(), volume, given)
  return writers.write_like(given, output, found, zarr_format=zarr)


def _segment_section(
  predictors: Sequence[Predictor],
  split: pairs.Split,
  group: blocks.Group,
  should_stop: Callable[[], bool] | None,
) -> Iterator[np.ndarray]:
  yield fused([p.group_probabilities(split, group, should_stop)[..., 1] for p in predictors])
  LOGGER.info('%d/%d', group[0] + 1, len(split))


def _segment_volume(
  predictors: Sequence[Predictor],
  split: pairs.Split,
  group: blocks.Group,
  should_stop: Callable[[], bool] | None,
) -> Iterator[np.ndarray]:
  """The sections of a volume, of which a layer of boxes is held."""
  shape = blocks.shape(split, group)
  plans = volume_boxes.same_boxes(predictors, shape, block=predictors[0].config.predict.block)
  boxes = [
    volume_boxes.predict_boxes(predictor, split, group, plan, should_stop=should_stop)
    for predictor, plan in zip(predictors, plans, strict=True)
  ]
  together = zip(*boxes, strict=True)
  for start, layer in itertools.groupby(together, lambda found: found[0].start[0]):
    found = None
    for same in layer:
      box = same[0]
      if found is None:
        found = np.empty((box.size[0], *shape[1:]), np.uint8)
      window = (slice(None), *map(slice, box.start[1:], box.stop[1:]))
      found[window] = fused([other.probabilities[..., 1] for other in same])
    yield from found
    LOGGER.info('%d/%d', group[start] + len(found), len(split))
