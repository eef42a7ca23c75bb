"""Prediction: from normalised pixels to class probabilities, and what to read them from.

`Predictor` is the one way; training's validation, evaluation and prediction all use it.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emseg_jax import config as config_lib
from emseg_jax import (
  experiment,
  predict_memory,
  processes,
  sharding,
  symmetries,
  tiling,
  train_step,
)
from emseg_jax.checkpoint import Meta, state_digests
from emseg_jax.data import blocks, normalise, pairs, resampled, volumes, voxel_sizes
from emseg_jax.errors import ConfigError, DataError
from emseg_jax.train_state import TrainState

__all__ = [
  'Predictor',
  'file_values',
  'label_values',
  'open_input',
  'tile_size',
]

LOGGER = logging.getLogger(__name__)

StopFn = Callable[[], bool]


def tile_size(config: config_lib.Config) -> tuple[int, ...]:
  """predict.tile, or by default twice a 2D patch: more context and less overlap than the patch.

  A volume's patch is as large as memory allows, usually: then the tile is the patch.
  """
  patch = config.data.patch
  return config.predict.tile or (patch if len(patch) == 3 else tuple(2 * size for size in patch))


def label_values(probabilities: Any, task: config_lib.Task, *, xp: Any = np) -> Any:
  """What a label pixel is, by its probabilities [*spatial, K]: uint8 [*spatial].

  The class with the largest one; of a multilabel task the mask of all classes above one half; of
  affinities 1 where a voxel is joined to all nearest ones.

  Args:
    probabilities: numpy or JAX array.
    task: tells which of both.
    xp: numpy or jax.numpy.
  """
  if task.affinities:
    near = [k for k, offset in enumerate(task.offsets) if sum(map(abs, offset)) == 1]
    joined = xp.stack([probabilities[..., k] > 0.5 for k in near], axis=-1)
    return joined.all(axis=-1).astype(xp.uint8)
  if task.multilabel:
    return xp.packbits(probabilities > 0.5, axis=-1, bitorder='little')[..., 0]
  return xp.argmax(probabilities, axis=-1).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class _Member:
  """A trained network; it sees scale · image + shift of what the first one sees."""

  variables: dict[str, Any]
  scale: float = 1.0
  shift: float = 0.0


class Predictor:
  """Runs a network, or the average of several, over whole images by tiles; compiles once.

  Args:
    setup: network, mesh and configuration.
    normalisation: the training run's, for callers that read files.
    meta: what the restored checkpoint says of itself; None while training.
  """

  def __init__(
    self,
    setup: experiment.Experiment,
    normalisation: normalise.Normalisation,
    meta: Meta | None = None,
  ):
    self.setup = setup
    self.config = setup.config
    self.normalisation = normalisation
    self.meta = meta
    self._members: list[_Member] = []
    self._copies = symmetries.symmetries(self.config.predict.augment, len(self.config.data.patch))
    experiment.check_tile(self.config, setup.model, tile_size(self.config))
    independent = self.config.task.independent
    step = train_step.make_predict_step(setup.model, independent=independent, mesh=setup.mesh)
    # Where other processes hold a part of the result, all get the whole of it.
    sharded = sharding.patch_sharding if processes.is_alone() else sharding.replicated
    self._step = jax.jit(step, out_shardings=sharded(setup.mesh))

  @functools.cached_property
  def batch_size(self) -> int:
    """Tiles per call, as many for every device; to be asked for once a network is loaded."""
    variables, tile = self._members[0].variables, tile_size(self.config)
    return predict_memory.predict_batch(self.setup, self._step, variables, tile=tile)

  @property
  def channels(self) -> int:
    """Of the image that the network sees."""
    return self.normalisation.channels * (1 + 2 * self.config.data.neighbours)

  def load(self, state: TrainState) -> None:
    """Uses the parameters of `state`, and no others, from now on."""
    self._members = [_Member(train_step.predict_variables(state))]

  def add(self, state: TrainState, normalisation: normalise.Normalisation) -> None:
    """Averages with one more network, which was trained with a normalisation of its own.

    Raises:
      ConfigError: that is of another kind.
    """
    own = self.normalisation
    if (normalisation.kind, normalisation.dtype) != (own.kind, own.dtype):
      raise ConfigError(
        f'predict.ensemble: a network trained with data.normalisation={normalisation.kind} of '
        f'{normalisation.dtype} cannot be averaged with one of {own.kind} of {own.dtype}'
      )
    # Images are normalised once, as the first network wants it.
    scale, shift = own.std / normalisation.std, (own.mean - normalisation.mean) / normalisation.std
    self._members.append(_Member(train_step.predict_variables(state), scale, shift))

  def digests(self) -> list[int]:
    """Tells networks apart by their arrays."""
    return state_digests([member.variables for member in self._members])

  def explained(
    self, block: Sequence[int] = (), held: int = 0
  ) -> contextlib.AbstractContextManager[None]:
    """Turns running out of memory into a sentence with a proposal.

    Args:
      block: size of the block that is computed, if one is.
      held: what that block takes on the device, bytes.
    """
    return predict_memory.explain_prediction(
      self.setup,
      self._step,
      self._members[0].variables,
      tile=tile_size(self.config),
      count=self.batch_size,
      block=block,
      held=held,
    )

  def layout(self, shape: Sequence[int]) -> tiling.Layout:
    """The tiles of an image of this size, (y, x) or (z, y, x).

    Raises:
      ConfigError: predict.tile is too small for predict.blend=exact.
    """
    options, model = self.config.predict, self.setup.model
    return tiling.lay_out(
      shape,
      tile_size(self.config),
      overlap=options.overlap,
      blend=options.blend,
      divisor=experiment.split_divisor(self.config, model),
      receptive_field=model.receptive_field,
    )

  def apply(self, tiles: np.ndarray) -> jax.Array:
    """Normalised tiles [batch_size, *tile, C] f32 -> probabilities [batch_size, *tile, K] f32.

    The mean over networks and over mirrored and turned copies, summed up one by one.
    """
    share = len(tiles) // jax.process_count()  # all processes have all tiles
    rows = tiles[jax.process_index() * share : (jax.process_index() + 1) * share]
    image = sharding.put_batch({'image': rows}, self.setup.mesh)['image']
    total = None
    for member in self._members:
      seen = (
        image if member.scale == 1 and not member.shift else member.scale * image + member.shift
      )
      for copy in self._copies:
        found = copy.undo(self._step(member.variables, copy.apply(seen)))
        total = found if total is None else total + found
    count = len(self._members) * len(self._copies)
    return total if count == 1 else total / count

  def probabilities(self, image: np.ndarray, should_stop: StopFn | None = None) -> np.ndarray:
    """Normalised image [*spatial, C] f32 -> probabilities [*spatial, K] f32, one for each of
    task.channels.

    Raises:
      DeviceError: the device has too little memory; the sentence says what would fit.
      Interrupted: `should_stop` said so between two batches of tiles.
    """
    with self.explained():
      return tiling.predict_tiled(
        self.apply,
        image,
        self.layout(image.shape[:-1]),
        batch_size=self.batch_size,
        num_classes=len(self.config.task.channels),
        should_stop=should_stop,
      )

  def group_probabilities(
    self, split: pairs.Split, group: Sequence[int], should_stop: StopFn | None = None
  ) -> np.ndarray:
    """Probabilities of one of `blocks.groups`: [Y, X, K] of a section, [Z, Y, X, K] of a volume.

    Raises:
      Interrupted: see `probabilities`.
    """
    volume = len(self.config.data.patch) == 3
    neighbours = self.config.data.neighbours
    if neighbours:
      blocks.groups(split, 3)  # raises if the sections are no volumes
    sections = [
      split.network_image(i, self.normalisation, joined=volume, neighbours=neighbours)
      for i in group
    ]
    image = np.stack(sections) if volume else sections[0]
    return self.probabilities(image, should_stop)


def open_input(predictor: Predictor, source: str | Path) -> tuple[volumes.Volume, volumes.Volume]:
  """Opens what is to be segmented.

  Returns:
    The volume as it is, and as the network wants it: the same, or brought to data.voxel_size.

  Raises:
    DataError: it cannot be read, or type or voxel size are not what the network was trained on.
  """
  config, meta = predictor.config, predictor.meta
  volume = volumes.open_volume(source, reading=config.predict.reading)
  check_type(volume, predictor.normalisation)
  if config.data.voxel_size is not None:
    return volume, resampled.resample(volume, config.data.voxel_size, labels=False)
  if meta is not None and meta.voxel_size is not None:
    of, ndim = 'those trained on', len(config.data.patch)
    voxel_sizes.check(volume, meta.voxel_size, ndim=ndim, of=of)
  return volume, volume


def file_values(config: config_lib.Config) -> np.ndarray:
  """Class index, or mask -> value in label files: the smallest value that the mapping sends there.

  One that no value is sent to (such as data.labels.other) gets the smallest value that is free.
  """
  count = len(config.task.values)
  mapping = config.data.label_mapping or {i: i for i in range(count)}
  free = (v for v in itertools.count() if v not in mapping and v != config.task.ignore_value)
  values = [min((v for v, c in mapping.items() if c == k), default=None) for k in range(count)]
  values = [next(free) if v is None else v for v in values]
  fits_uint8 = min(values) >= 0 and max(values) <= 255
  return np.array(values, np.uint8 if fits_uint8 else np.uint16)


def check_type(volume: volumes.Volume, normalisation: normalise.Normalisation) -> None:
  """Fixed statistics of 8-bit images make nonsense of 16-bit ones, and the other way round.

  Raises:
    DataError: the normalisation uses training statistics and the type differs.
  """
  if volume.dtype.name == normalisation.dtype or normalisation.needs_volume:
    return
  if normalisation.kind == 'dataset':
    raise DataError(
      f'{volume.path}: pixels are {volume.dtype.name}, the network was trained on '
      f'{normalisation.dtype}; convert them, or train with data.normalisation=per_volume'
    )
  LOGGER.warning(
    '%s: pixels are %s, the network was trained on %s.',
    volume.path,
    volume.dtype.name,
    normalisation.dtype,
  )
