"""kill -9 and SIGTERM at any moment: the same command goes on, and ends with the same bits.

Real processes through the real entry point. The uninterrupted run is the reference: its final
parameters, optimiser state and metrics are what every interrupted one must end with.
"""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import support

from emseg_jax import config_io, errors, experiment
from emseg_jax.checkpoint import Checkpoints

# Enough validation sections that an evaluation takes a moment in which to be killed.
PHANTOM = '[{"phantom":{"count":24,"size":[96,96],"seed":2}}]'
ARGUMENTS = (
  '--config=tiny',
  *support.SMALL_NETWORK,
  '--config.train.steps=24',
  '--config.train.log_every=4',
  '--config.train.eval_every=8',
  '--config.train.checkpoint_every=4',
  f'--config.data.validation={PHANTOM}',
  '--config.predict.tile=(32,32)',
  '--config.run.report=false',
  '--config.run.tensorboard=false',
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
  ours, theirs = (support.records_without_clocks(folder) for folder in (workdir, reference))
  assert ours == theirs


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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.parametrize(
  'number', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
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
