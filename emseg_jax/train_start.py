"""Where a training starts: from the work directory's latest checkpoint, or from the beginning."""

import logging

from emseg_jax import experiment, train_input, verdict
from emseg_jax.checkpoint import Checkpoints, Meta
from emseg_jax.data import pairs
from emseg_jax.errors import CheckpointError
from emseg_jax.train_state import TrainState, parameter_count

__all__ = ['describe', 'restore_or_start']

LOGGER = logging.getLogger(__name__)


def restore_or_start(
  setup: experiment.Experiment, checkpoints: Checkpoints, split: pairs.Split
) -> tuple[TrainState, Meta]:
  """The state to go on from; the own work directory's latest checkpoint wins over a fresh start.

  Raises:
    CheckpointError: no checkpoint is intact, or the training data are not those it was made from.
    DataError: an image cannot be read, or all pixels are equal.
  """
  config = setup.config
  fingerprint = split.fingerprint()
  restored = checkpoints.restore_latest(setup.abstract_state())
  if restored is not None:
    state, meta = restored
    if meta.data != fingerprint:
      raise CheckpointError(
        f'{checkpoints.folder}: the training data changed since this run began; '
        'use the old data, or another --workdir'
      )
    LOGGER.info('Resuming at step %d.', meta.step)
    return state, meta
  meta = Meta(
    step=0,
    evaluated_step=-1,
    best_step=-1,
    best_score=verdict.NO_SCORE,
    normalisation=train_input.fit_normalisation(config, split).to_json(),
    data=fingerprint,
    config=config.model_dump(mode='json'),
    versions=experiment.versions(),
    voxel_size=train_input.voxel_size(config, split),
  )
  return setup.initial_state(), meta


def describe(
  setup: experiment.Experiment, splits: dict[str, pairs.Split], state: TrainState
) -> None:
  """Prints what is about to be trained on what."""
  config = setup.config
  LOGGER.info(
    '%s with %s parameters on %d x %s; %s',
    config.model.name,
    f'{parameter_count(state.params):,}',
    setup.mesh.size,
    setup.mesh.devices.flat[0].device_kind,
    ', '.join(f'{len(split)} {name} sections' for name, split in splits.items()),
  )
  region = train_input.region(config)
  if region != config.data.patch:
    LOGGER.info('Reading regions of %s for patches of %s.', region, config.data.patch)
