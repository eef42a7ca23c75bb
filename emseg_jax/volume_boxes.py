"""Probabilities of a volume box by box: for evaluation, which adds them up, and for fusing, which
compares those of several networks. Memory is that of a box.

The same tiles and blending as block-wise prediction.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emseg_jax import block_job, block_plan, block_predict, processes
from emseg_jax.data import blocks, pairs
from emseg_jax.predict import Predictor

__all__ = ['Box', 'predict_boxes', 'same_boxes']

TOGETHER = 2**30  # bytes for a box where several processes, which must choose alike, compute it
Triple = tuple[int, int, int]
StopFn = Callable[[], bool]


class Box(NamedTuple):
  """A part of a volume, in voxels (z, y, x), and its probabilities [z, y, x, K] float32."""

  start: Triple
  stop: Triple
  probabilities: np.ndarray

  @property
  def size(self) -> Triple:
    return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))


def same_boxes(
  predictors: Sequence[Predictor], shape: Triple, *, block: Sequence[int] | None = None
) -> list[block_plan.Plan]:
  """Cuts a volume into boxes, the same for all networks; layers of boxes follow each other along z.

  Args:
    predictors: networks for volumes, or for sections.
    shape: of the volume, (z, y, x).
    block: size of a box; None: as the memory allows, shared by the networks.

  Raises:
    ConfigError: a tile is too small to be exact.
  """
  layouts = [block_job.lay_out(predictor, shape) for predictor in predictors]
  make = functools.partial(block_plan.make_plan, chunk=1)
  if block is None:
    memory = block_job.block_memory() if processes.is_alone() else TOGETHER
    memory //= len(predictors)
    found = [
      make(layout, voxel_bytes=_voxel_bytes(predictor), memory=memory)
      for layout, predictor in zip(layouts, predictors, strict=True)
    ]
    block = tuple(map(min, *(plan.block for plan in found))) if len(found) > 1 else found[0].block
  return [make(layout, voxel_bytes=1, memory=1, block=block) for layout in layouts]


def _voxel_bytes(predictor: Predictor) -> int:
  """Sums, their share of the result and two copies for the host; the image of this box and next."""
  return 16 * len(predictor.config.task.classes) + 8 * predictor.channels


def predict_boxes(
  predictor: Predictor,
  split: pairs.Split,
  group: blocks.Group,
  plan: block_plan.Plan,
  *,
  should_stop: StopFn | None = None,
) -> Iterator[Box]:
  """Yields all boxes of a volume, along x first.

  Args:
    predictor: a loaded predictor.
    split, group: the sections of the volume.
    plan: of `same_boxes`.
    should_stop: asked between batches of tiles.

  Raises:
    DataError: sections cannot be read.
    DeviceError: the device has too little memory; the sentence says what would fit.
    Interrupted: `should_stop` said so.
  """
  config = predictor.config
  work = block_predict.Work(
    read=functools.partial(_read, predictor, split, group),
    apply=functools.partial(_apply, predictor),
    decide=None,
    write=None,
    mask=None,
    flat=len(config.data.patch) == 2,
    channels=predictor.channels,
    num_maps=len(config.task.classes),
    batch_size=predictor.batch_size,
    scaled='float32',
  )
  computed = block_predict.compute_blocks(
    plan, work, todo=tuple(plan.blocks()), should_stop=should_stop
  )
  held = math.prod(plan.extent) * _voxel_bytes(predictor)
  while True:
    with predictor.explained(plan.block, held):  # not around yield: the caller's errors are its own
      found = next(computed, None)
    if found is None:
      return
    block, (_, probabilities) = found
    yield Box(block.start, block.stop, probabilities)


def _read(
  predictor: Predictor, split: pairs.Split, group: blocks.Group, origin: Triple, size: Triple
) -> np.ndarray:
  data = predictor.config.data
  read = functools.partial(blocks.read_image, split, predictor.normalisation)
  if len(data.patch) == 3 or data.neighbours:
    return read(group, origin, size, neighbours=data.neighbours)
  # A network for sections takes each by itself: images of a folder have statistics of their own.
  (z, y, x), (depth, *extent) = origin, size
  planes = [read((index,), (0, y, x), (1, *extent)) for index in group[z : z + depth]]
  return np.concatenate(planes)


def _apply(predictor: Predictor, tiles: np.ndarray) -> jax.Array:
  probabilities = predictor.apply(tiles)
  if processes.is_alone():
    return probabilities
  return jnp.asarray(np.asarray(probabilities))  # all processes have all of it: sums are their own
