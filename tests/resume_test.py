"""kill -9 and SIGTERM at any moment: the same command goes on, and ends with the same bits.

Real processes through the real entry point. The uninterrupted run is the reference: its final
parameters, optimiser state and metrics are what every interrupted one must end with. Whatever else
a run may carry from step to step (sums of gradients, averages, counters of evaluations) is tested
the same way at the end of the file, within this process.
"""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
import support

from emseg_jax import config_io, errors, evaluate, experiment, metric_writer, trainer
from emseg_jax.checkpoint import Checkpoints, Meta
from emseg_jax.config import Config
from emseg_jax.train_state import TrainState

# Enough validation sections that an evaluation takes a moment in which to be killed.
PHANTOM = '[{"phantom":{"count":24,"size":[96,96],"seed":2}}]'
ARGUMENTS = (
  '--config=tiny',
  '--config.model.name=rescrnet',  # quick to compile, with dropout and batch norm
  '--config.model.options={"conv_blocks":1,"lstm_blocks":0,"filters":4,"kernel_sizes":[3],'
  '"dilations":[1]}',
  '--config.train.steps=24',
  '--config.train.log_every=4',
  '--config.train.eval_every=8',
  '--config.train.checkpoint_every=4',
  f'--config.data.validation={PHANTOM}',
  '--config.predict.tile=(32,32)',
  '--config.run.report=false',
)


def _start(workdir: Path) -> subprocess.Popen:
  return support.start_main(*ARGUMENTS, f'--workdir={workdir}')


def _finish(workdir: Path) -> str:
  process = _start(workdir)
  output = process.communicate(timeout=300)[0]
  assert process.returncode == 0, output
  return output


def _final(workdir: Path) -> list[np.ndarray]:
  """All arrays of the last checkpoint."""
  config = config_io.from_json(workdir / 'config.json')
  mesh = config.mesh.model_copy(update={'data': 1})
  setup = experiment.set_up(config.model_copy(update={'mesh': mesh}))
  checkpoints = Checkpoints(workdir / 'checkpoints', keep=2, read_only=True)
  state, meta = checkpoints.restore(setup.abstract_state(), which='latest')
  assert meta.step == 24
  return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def _assert_same_run(workdir: Path, reference: Path) -> None:
  for ours, theirs in zip(_final(workdir), _final(reference), strict=True):
    np.testing.assert_array_equal(ours, theirs)
  ours, theirs = (_records(folder) for folder in (workdir, reference))
  assert ours == theirs


def _records(workdir: Path) -> list[dict[str, float]]:
  """metrics.jsonl without clocks: losses, rates and scores at each step."""
  records = metric_writer.read_records(workdir / 'metrics.jsonl')
  return [
    {k: v for k, v in r.items() if k != 'wall_time' and not k.startswith('perf/')} for r in records
  ]


@pytest.fixture(scope='module')
def reference(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp('reference') / 'run'
  _finish(folder)
  return folder


def _wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> bool:
  """Polls until the condition holds; False if the process ends first."""
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    if condition():
      return True
    if process.poll() is not None:
      return False
    time.sleep(0.0005)
  raise TimeoutError('nothing happened')


def _kill(process: subprocess.Popen) -> None:
  process.send_signal(signal.SIGKILL)
  process.communicate()


def _kill_at_random(workdir: Path, rng: random.Random) -> None:
  """Kills a run within the time it needs from its first log line to its end, or a bit before."""
  process = _start(workdir)
  log = workdir / 'log.txt'
  size = log.stat().st_size if log.exists() else 0
  begun = _wait_for(lambda: log.exists() and log.stat().st_size > size, process)
  if begun:
    time.sleep(rng.uniform(0.0, 3.0))
  _kill(process)


def test_killed_at_random_moments_the_run_ends_with_the_same_bits(tmp_path, reference):
  rng, workdir = random.Random(7), tmp_path / 'run'
  for _ in range(3):
    _kill_at_random(workdir, rng)
  _finish(workdir)
  _assert_same_run(workdir, reference)


def test_killed_while_a_checkpoint_is_being_written(tmp_path, reference):
  workdir = tmp_path / 'run'
  process = _start(workdir)
  folder = workdir / 'checkpoints'
  unfinished = '*orbax-checkpoint-tmp*'
  assert _wait_for(lambda: folder.exists() and any(folder.glob(unfinished)), process)
  _kill(process)
  assert any(folder.glob(unfinished)), 'the kill came too late to hit a save'
  _finish(workdir)
  assert not any(folder.glob(unfinished))
  _assert_same_run(workdir, reference)


def test_killed_during_an_evaluation(tmp_path, reference):
  workdir = tmp_path / 'run'
  process = _start(workdir)
  # The record of step 8 is written just before the evaluation of step 8 begins.
  log = workdir / 'log.txt'
  assert _wait_for(lambda: log.exists() and 'step 8/24' in log.read_text(), process)
  time.sleep(0.05)
  _kill(process)
  assert 'step 8: validation' not in log.read_text(), 'the kill came after the evaluation'
  _finish(workdir)
  _assert_same_run(workdir, reference)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_its_own_exit_code(tmp_path, reference, number):
  workdir = tmp_path / 'run'
  process = _start(workdir)
  log = workdir / 'log.txt'
  assert _wait_for(lambda: log.exists() and 'step 4/24' in log.read_text(), process)
  process.send_signal(number)
  output = process.communicate(timeout=120)[0]
  assert process.returncode == errors.Interrupted.exit_code, output
  assert 'the same command goes on from there' in output
  stopped = int(output.split('stopped at step ')[1].split(',')[0])
  assert (workdir / 'checkpoints' / f'{stopped:08d}').is_dir()
  assert f'Resuming at step {stopped}' in _finish(workdir)
  for ours, theirs in zip(_final(workdir), _final(reference), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_a_finished_run_started_again_changes_nothing(reference):
  before = [f.stat().st_mtime_ns for f in sorted((reference / 'checkpoints').rglob('*'))]
  assert 'Resuming at step 24' in _finish(reference)
  after = [f.stat().st_mtime_ns for f in sorted((reference / 'checkpoints').rglob('*'))]
  assert before == after


def test_a_broken_latest_checkpoint_falls_back_and_ends_with_the_same_bits(tmp_path, reference):
  workdir = tmp_path / 'run'
  process = _start(workdir)
  third = workdir / 'checkpoints' / '00000012'
  assert _wait_for(third.is_dir, process)
  _kill(process)
  newest = max(f for f in (workdir / 'checkpoints').iterdir() if f.name.isdigit())
  data = max(newest.rglob('*'), key=lambda f: f.stat().st_size if f.is_file() else 0)
  data.write_bytes(data.read_bytes()[: data.stat().st_size // 4])
  output = _finish(workdir)
  assert f'step {int(newest.name)}' in output
  assert 'not intact' in output
  _assert_same_run(workdir, reference)


@pytest.mark.long
def test_thirty_kills_at_random_moments(tmp_path, reference):
  rng = random.Random(1)
  kills = 0
  for run in range(6):
    workdir = tmp_path / f'run{run}'
    for _ in range(5):
      _kill_at_random(workdir, rng)
      kills += 1
    _finish(workdir)
    _assert_same_run(workdir, reference)
  print(json.dumps({'kills': kills, 'identical': True}))


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
    return stop_at is not None and any(r['step'] >= stop_at for r in _records(folder))

  flat_scores = evaluate.flat_scores
  equal = lambda result: flat_scores(result) | {config.eval.best: 1.0}  # noqa: E731
  stopped = pytest.raises(errors.Interrupted, match=f'stopped at step {stop_at}')
  ends = contextlib.nullcontext() if stop_at is None else stopped
  with mock.patch.object(evaluate, 'flat_scores', equal), ends:
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
  assert _records(folder) == _records(reference)


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
  assert _records(folder) == _records(ended)
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
