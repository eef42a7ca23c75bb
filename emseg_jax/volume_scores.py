"""Scores of a volume, or of a huge section, whose probabilities are never held together.

Sums over voxels are counted box by box, and so are confidences. Class maps are gathered in layers
of boxes, in which objects are counted as they go on from one to the next; only layers of
probabilities are held for scores of sections. Scores that look at the whole segmentation
(`boundary`, `border`, `rand`, `instances`) keep class map and label of the volume, two bytes a
voxel, if they are asked for.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from emseg_jax import metrics, volume_boxes
from emseg_jax.data import blocks, pairs
from emseg_jax.metrics.details import Details
from emseg_jax.predict import Predictor, label_values

__all__ = ['predict_sections']


def predict_sections(
  predictor: Predictor,
  split: pairs.Split,
  group: blocks.Group,
  collector: metrics.Collector,
  details: Details | None,
  *,
  should_stop: Callable[[], bool] | None = None,
) -> Iterator[np.ndarray]:
  """Yields the class map of every section, uint8 [Y, X], and counts scores on the way.

  Args:
    predictor: a loaded network.
    split, group: the labelled sections of a volume; one section for a network for sections.
    collector: sees the volume in parts.
    details: likewise; None: not wanted.
    should_stop: asked between batches of tiles.

  Raises:
    DataError, DeviceError, Interrupted: as `volume_boxes.predict_boxes`.
  """
  shape = blocks.shape(split, group)
  (plan,) = volume_boxes.same_boxes([predictor], shape, block=predictor.config.predict.block)
  boxes = volume_boxes.predict_boxes(predictor, split, group, plan, should_stop=should_stop)
  image = 0 if len(predictor.config.data.patch) == 2 else slice(None)  # what is [Y, X] stays so
  whole = np.empty(shape, np.uint8) if collector.needs('image') else None
  for start, layer in itertools.groupby(boxes, lambda box: box.start[0]):
    found = _count_layer(layer, predictor, split, group, collector, details)
    if details is not None:
      label = split.label_block(group, (start, 0, 0), found.shape)
      details.add_slab(found[image], label[image])
    if whole is not None:
      whole[start : start + len(found)] = found
    yield from found
  if details is not None:
    details.end_image()
  if whole is not None:
    collector.add(whole[image], split.label_block(group, (0, 0, 0), shape)[image], unit='image')


def _count_layer(
  layer: Iterator[volume_boxes.Box],
  predictor: Predictor,
  split: pairs.Split,
  group: blocks.Group,
  collector: metrics.Collector,
  details: Details | None,
) -> np.ndarray:
  """The class map uint8 [z, Y, X] of a layer of boxes."""
  config = predictor.config
  height, width = blocks.shape(split, group)[1:]
  by_voxel, by_section = collector.needs('voxel') or details is not None, collector.needs('section')
  found = held = None
  for box in layer:
    start, depth = box.start[0], box.size[0]
    if found is None:
      found = np.empty((depth, height, width), np.uint8)
      if by_section:
        held = np.empty((*found.shape, len(config.task.classes)), np.float32)
    window = (slice(None), *map(slice, box.start[1:], box.stop[1:]))
    found[window] = label_values(box.probabilities, config.task)
    if held is not None:
      held[window] = box.probabilities
    if by_voxel:
      label = split.label_block(group, box.start, box.size)
      collector.add(found[window], label, box.probabilities, unit='voxel')
      if details is not None:
        details.add_confidences(label, box.probabilities)
  if held is not None:
    for z, (section, probabilities) in enumerate(zip(found, held, strict=True), start=start):
      collector.add(section, split.label(group[z]), probabilities, unit='section')
  return found
