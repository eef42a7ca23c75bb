"""Whatever a run carries from step to step survives a restart: sums of gradients, averages, rates,
counters of evaluations. Within this process; tests/resume_test.py has real kills.
"""

import contextlib
import shutil
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
import support

from emseg_jax import config_io, errors, evaluation, experiment, trainer
from emseg_jax.checkpoint import Checkpoints, Meta
from emseg_jax.config import Config
from emseg_jax.train_state import TrainState

# Validation is scored every 2 steps, and `_train` makes all scores equal: after step 2 the rate is
# halved at every evaluation, and the third one in a row, at step 8, ends the run.
EVERYTHING = (
  'model.name=rescrnet',  # with dropout and batch norm
  'model.options={"conv_blocks":1,"lstm_blocks":0,"filters":4,"kernel_sizes":[3],"dilations":[1]}',
  'optim.optimizer=radam',
  'optim.learning_rate=0.001',
  'optim.accumulate=2',
  'optim.ema=0.5',
  'optim.plateau_factor=0.5',
  'optim.plateau_patience=1',
  'eval.metrics=["soft"]',
  'eval.best=soft/cross_entropy',
  'train.steps=13',
  'train.batch_size=2',
  'train.early_stop=3',
  'train.eval_every=2',
  'train.checkpoint_every=100',
  'train.log_every=1',
  'data.patch=(16,16)',
  'data.validation=[{"phantom":{"count":1,"size":[48,48],"seed":2}}]',
  'run.tensorboard=false',
  'mesh.data=1',
)


@pytest.fixture(scope='module')
def everything() -> Config:
  return config_io.apply_overrides(config_io.load('tiny'), EVERYTHING)


def _train(
  config: Config, folder: Path, *, extend: bool = False, stop_at: int | None = None
) -> None:
  """Trains until the end, or until the record of step `stop_at` is written."""

  def should_stop() -> bool:
    return stop_at is not None and any(
      r['step'] >= stop_at for r in support.records_without_clocks(folder)
    )

  flat_scores = evaluation.flat_scores
  equal = lambda result: flat_scores(result) | {config.eval.best: 1.0}  # noqa: E731
  stopped = pytest.raises(errors.Interrupted, match=f'stopped at step {stop_at}')
  ends = contextlib.nullcontext() if stop_at is None else stopped
  with mock.patch.object(evaluation, 'flat_scores', equal), ends:
    trainer.train(config, folder, extend=extend, should_stop=should_stop)


def _latest(config: Config, folder: Path) -> tuple[TrainState, Meta]:
  checkpoints = Checkpoints(folder / 'checkpoints', keep=2, read_only=True)
  return checkpoints.restore(experiment.set_up(config).abstract_state(), which='latest')


def _assert_same_state(config: Config, folder: Path, reference: Path) -> None:
  """Every array and every counter, and the records that lead there."""
  (ours, our_meta), (theirs, their_meta) = (_latest(config, f) for f in (folder, reference))
  leaves = zip(*(jax.tree_util.tree_leaves_with_path(s) for s in (ours, theirs)), strict=True)
  for (path, a), (_, b) in leaves:
    np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
  assert our_meta == their_meta
  assert support.records_without_clocks(folder) == support.records_without_clocks(reference)


@pytest.fixture(scope='module')
def ended(tmp_path_factory, everything) -> Path:
  """An uninterrupted run; training ends before its last step."""
  folder = tmp_path_factory.mktemp('everything') / 'run'
  _train(everything, folder)
  return folder


def test_sums_averages_rates_and_counters_survive_a_restart(tmp_path, everything, ended):
  state, meta = _latest(everything, ended)
  assert float(state.rate_scale) == 0.5**3
  assert (meta.step, meta.best_step, meta.since_best, meta.finished) == (8, 2, 3, True)
  folder = tmp_path / 'run'
  _train(everything, folder, stop_at=5)  # between two evaluations, half-way through an update
  assert _latest(everything, folder)[1].since_best == 1
  assert int(_latest(everything, folder)[0].opt_state.mini_step) == 1
  _train(everything, folder, stop_at=6)  # in the middle of an evaluation
  assert _latest(everything, folder)[1].evaluated_step == 4
  _train(everything, folder)
  _assert_same_state(everything, folder, ended)


def test_a_run_that_ended_early_stays_so_and_goes_on_when_extended(tmp_path, everything, ended):
  folder = tmp_path / 'run'
  shutil.copytree(ended, folder)
  before = {f: f.stat().st_mtime_ns for f in (folder / 'checkpoints').rglob('*')}
  _train(everything, folder)
  assert {f: f.stat().st_mtime_ns for f in (folder / 'checkpoints').rglob('*')} == before
  assert support.records_without_clocks(folder) == support.records_without_clocks(ended)
  _train(everything, folder, extend=True)
  state, meta = _latest(everything, folder)
  # Counted anew: evaluations of steps 10, 12 and 13 make three again, at the last step.
  assert (meta.step, meta.since_best, meta.best_step) == (13, 3, 2)
  assert float(state.rate_scale) == 0.5**6
  # Stopped and resumed by the same command, it ends with the same bits.
  other = tmp_path / 'other'
  shutil.copytree(ended, other)
  _train(everything, other, extend=True, stop_at=11)
  _train(everything, other, extend=True)
  _assert_same_state(everything, other, folder)


def test_a_file_that_breaks_while_training_ends_the_run_and_nothing_learnt_is_lost(tmp_path):
  support.write_pair(tmp_path)
  image = tmp_path / 'image.tif'
  intact = image.read_bytes()
  arguments = (*support.pair_arguments(tmp_path)[1:], *support.SMALL_NETWORK)
  config = config_io.apply_overrides(
    config_io.load('tiny'),
    [a.removeprefix('--config.') for a in arguments]
    + ['data.cache_gb=0', 'data.prefetch=1', 'train.log_every=1', 'train.steps=12', 'mesh.data=1']
    + ['train.checkpoint_every=100', 'data.validation=[]', 'run.tensorboard=false'],
  )
  folder = tmp_path / 'run'

  def breaks_the_file():
    if any(r['step'] >= 3 for r in support.records_without_clocks(folder)):
      image.write_bytes(intact[: len(intact) // 2])
    return False

  with pytest.raises(errors.DataError, match=r'image\.tif'):
    trainer.train(config, folder, should_stop=breaks_the_file)
  stopped = _latest(config, folder)[1].step
  assert 3 <= stopped < 12
  image.write_bytes(intact)
  trainer.train(config, folder, should_stop=lambda: False)
  other = tmp_path / 'uninterrupted'
  trainer.train(config, other, should_stop=lambda: False)
  _assert_same_state(config, folder, other)
