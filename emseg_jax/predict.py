"""Prediction: class probabilities of whole images, and of files.

`Predictor` is the one way from normalised pixels to probabilities; training's validation,
evaluation and prediction all use it.
"""

import contextlib
import itertools
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from emseg_jax import config as config_lib
from emseg_jax import experiment, sharding, tiling, train_step
from emseg_jax.checkpoint import Checkpoints, Meta, state_digests
from emseg_jax.data import blocks, normalise, pairs, resampled, volumes, voxel_sizes, writers
from emseg_jax.errors import DataError, OutputError
from emseg_jax.train_state import TrainState

__all__ = [
  'Predictor',
  'file_values',
  'label_values',
  'load_predictor',
  'open_input',
  'predict_files',
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


def label_values(probabilities: np.ndarray, task: config_lib.Task) -> np.ndarray:
  """What a label pixel is, by its probabilities [*spatial, K]: uint8 [*spatial].

  The class with the largest one; of a multilabel task the mask of all classes above one half.
  """
  if task.multilabel:
    return np.packbits(probabilities > 0.5, axis=-1, bitorder='little')[..., 0]
  return np.argmax(probabilities, axis=-1).astype(np.uint8)


class Predictor:
  """Runs a network over whole images by overlapping tiles; compiles once.

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
    self._variables = None
    step = train_step.make_predict_step(setup.model, multilabel=self.config.task.multilabel)
    # Where other processes hold a part of the result, all get the whole of it.
    alone = jax.process_count() == 1
    sharded = sharding.batch_sharding if alone else sharding.replicated
    self._step = jax.jit(step, out_shardings=sharded(setup.mesh))
    shards = setup.mesh.shape['data']
    # A device call takes the same number of tiles on every device.
    self.batch_size = -(-self.config.predict.batch_size // shards) * shards

  def load(self, state: TrainState) -> None:
    """Uses the parameters of `state` from now on."""
    self._variables = train_step.predict_variables(state)

  def digests(self) -> list[int]:
    """Tells networks apart by their arrays."""
    return state_digests(self._variables)

  def apply(self, tiles: np.ndarray) -> jax.Array:
    """Normalised tiles [batch_size, *tile, C] f32 -> probabilities [batch_size, *tile, K] f32."""
    share = len(tiles) // jax.process_count()  # all processes have all tiles
    rows = tiles[jax.process_index() * share : (jax.process_index() + 1) * share]
    placed = sharding.put_batch({'image': rows}, self.setup.mesh)
    return self._step(self._variables, placed['image'])

  def probabilities(self, image: np.ndarray, should_stop: StopFn | None = None) -> np.ndarray:
    """Normalised image [*spatial, C] f32 -> probabilities [*spatial, num_classes] f32.

    Raises:
      Interrupted: `should_stop` said so between two batches of tiles.
    """
    options = self.config.predict
    return tiling.predict_tiled(
      self.apply,
      image,
      tile=tile_size(self.config),
      overlap=options.overlap,
      blend=options.blend,
      batch_size=self.batch_size,
      num_classes=len(self.config.task.classes),
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


def load_predictor(config: config_lib.Config, workdir: Path) -> Predictor:
  """Restores the checkpoint that eval.checkpoint names.

  Raises:
    CheckpointError: the work directory holds no intact checkpoint.
  """
  checkpoints = Checkpoints(workdir / 'checkpoints', keep=config.train.keep, read_only=True)
  setup = experiment.set_up(config)
  with contextlib.closing(checkpoints):
    state, meta = checkpoints.restore(setup.abstract_state(), which=config.eval.checkpoint)
  predictor = Predictor(setup, normalise.Normalisation.from_json(meta.normalisation), meta)
  predictor.load(state)
  LOGGER.info('Using the checkpoint of step %d in %s.', meta.step, workdir)
  return predictor


def predict_files(
  predictor: Predictor, source: str | Path, output: Path, *, should_stop: StopFn | None = None
) -> list[Path]:
  """Segments an image, a folder or a stack into the same kind of file.

  Labels carry the values of the training labels (the inverse of data.label_mapping). With
  predict.probabilities each class also gets a map `OUTPUT_prob_CLASS`, scaled to the full range of
  its type.

  Args:
    predictor: a loaded predictor.
    source: what `volumes.open_volume` reads.
    output: file or folder to write.
    should_stop: asked between batches of tiles.

  Returns:
    The paths written, labels first.

  Raises:
    DataError: the source cannot be read, or its type is not the one trained on where that matters.
    Interrupted: `should_stop` said so; nothing is left half-written.
    OutputError: the output cannot be written.
  """
  config = predictor.config
  given, volume = open_input(predictor, source)
  split = pairs.Split.of_images(volume)
  values = file_values(config)
  kind = config.predict.probabilities
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    # Probability maps wait here section by section: a volume times classes would not fit in memory.
    spool = tempfile.TemporaryDirectory(dir=output.parent, prefix='.emseg_')
  except OSError as error:
    raise OutputError(f'{output}: cannot be written: {error.strerror}') from error

  def label_sections() -> Iterator[np.ndarray]:
    for group in blocks.groups(split, len(config.data.patch)):
      probabilities = predictor.group_probabilities(split, group, should_stop)
      sections = probabilities.reshape(len(group), *probabilities.shape[-3:])
      for index, section in zip(group, sections, strict=True):
        if kind:
          scaled = np.round(section * np.iinfo(kind).max).astype(kind)
          np.save(Path(spool.name) / f'{index}.npy', scaled)
        LOGGER.info('%d/%d %s', index + 1, len(volume), volume.names[index])
        yield values[label_values(section, config.task)]

  def map_sections(k: int) -> Iterator[np.ndarray]:
    for index in range(len(volume)):
      yield np.ascontiguousarray(np.load(Path(spool.name) / f'{index}.npy', mmap_mode='r')[..., k])

  with spool:
    labels = resampled.back(label_sections(), volume, given)
    written = [writers.write_like(given, output, labels)]
    for k, name in enumerate(config.task.classes if kind else ()):
      maps = resampled.back(map_sections(k), volume, given)
      written.append(writers.write_like(given, output, maps, suffix=f'_prob_{name}'))
  return written


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
