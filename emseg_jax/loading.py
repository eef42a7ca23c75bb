"""From the work directory of a run, or an exported model, to a predictor."""

import contextlib
import logging
from pathlib import Path

import jax

from emseg_jax import bundle, experiment, sharding, workdir
from emseg_jax import config as config_lib
from emseg_jax.checkpoint import Checkpoints, Meta
from emseg_jax.data import normalise
from emseg_jax.errors import ConfigError
from emseg_jax.predict import Predictor
from emseg_jax.train_state import TrainState

__all__ = ['load_predictor']

LOGGER = logging.getLogger(__name__)


def load_predictor(config: config_lib.Config, folder: Path) -> Predictor:
  """Restores the checkpoint that eval.checkpoint names, and those of predict.ensemble.

  Args:
    config: the run's configuration, with other sources, tiles or devices where wanted.
    folder: work directory, or exported model.

  Raises:
    BundleError, CheckpointError: a folder holds no intact model or checkpoint.
    ConfigError: a folder holds another network.
  """
  setup = experiment.set_up(config)
  state, meta = _restore(config, setup, folder)
  predictor = Predictor(setup, normalise.Normalisation.from_json(meta.normalisation), meta)
  predictor.load(state)
  for other in config.predict.ensemble:
    state, meta = _restore(config, setup, Path(other))
    predictor.add(state, normalise.Normalisation.from_json(meta.normalisation))
  return predictor


def _restore(
  config: config_lib.Config, setup: experiment.Experiment, folder: Path
) -> tuple[TrainState, Meta]:
  if bundle.is_bundle(folder):
    return _read_bundle(config, setup, folder)
  if config.predict.params != 'float32':
    raise ConfigError(
      f'config.predict.params={config.predict.params}: {folder} is a run, which has float32 only; '
      'export it with --forms'
    )
  workdir.check_same_network(config, workdir.read_config(folder), folder)
  checkpoints = Checkpoints(folder / 'checkpoints', keep=config.train.keep, read_only=True)
  with contextlib.closing(checkpoints):
    state, meta = checkpoints.restore(setup.abstract_state(), which=config.eval.checkpoint)
  LOGGER.info('Using the checkpoint of step %d in %s.', meta.step, folder)
  return state, meta


def _read_bundle(
  config: config_lib.Config, setup: experiment.Experiment, folder: Path
) -> tuple[TrainState, Meta]:
  """State and meta data as far as prediction needs them."""
  found = bundle.read_bundle(folder, params=config.predict.params)
  workdir.check_same_network(config, found.config, folder)
  # On the devices once, not with every batch of tiles.
  variables = jax.device_put(found.variables, sharding.replicated(setup.mesh))
  training = found.record.training
  meta = Meta(
    step=training.step,
    evaluated_step=-1,
    best_step=training.best_step,
    best_score=float('-inf') if training.best_score is None else training.best_score,
    normalisation=found.normalisation.to_json(),
    data=training.data,
    config=training.config,
    versions=training.versions,
    finished=True,
    voxel_size=found.record.input.voxel_size_zyx,
  )
  return TrainState(step=0, opt_state=(), **variables), meta
