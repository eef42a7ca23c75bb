"""Several real processes, by launch/local.py: found, trained with, stopped, lost; equal to one."""

import json
import os
import signal

import jax
import numpy as np
import pytest
import support
from process_support import TINY, children, finish, launch, wait_for

from emseg_jax import processes
from emseg_jax.errors import ConfigError
from emseg_jax.processes import Group


def scores(workdir):
  return json.loads((workdir / 'evaluation' / 'validation.json').read_text())


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """One process with two devices: the same global batch, split in two."""
  workdir = tmp_path_factory.mktemp('alone')
  process = support.start_main(*TINY, f'--workdir={workdir}', devices=2)
  assert process.wait() == 0, process.communicate()[0]
  return workdir


def assert_same_training(workdir, reference):
  """The sums of two processes may be in another order than those of two devices."""
  ours, theirs = map(support.records_without_clocks, (workdir, reference))
  assert [r['step'] for r in ours] == [r['step'] for r in theirs]
  for a, b in zip(ours, theirs, strict=True):
    for name in a.keys() & b.keys():
      assert a[name] == pytest.approx(b[name], rel=2e-3, abs=1e-5), (a['step'], name)
  found, expected = (np.array(scores(w)['confusion']) for w in (workdir, reference))
  assert found.sum() == expected.sum()
  assert np.abs(found - expected).sum() < 0.01 * expected.sum()


@pytest.mark.parametrize('count', [2, pytest.param(4, marks=pytest.mark.long)])
def test_processes_train_and_score_as_one_does(tmp_path, alone, count):
  code, output = finish(launch(tmp_path, count=count))
  assert code == 0, output
  assert_same_training(tmp_path, alone)
  assert output.count('-> ') == 1, output  # one of them writes, and says so
  assert '[local] done' in output


@pytest.mark.parametrize('told', ['one', pytest.param('launcher', marks=pytest.mark.long)])
def test_one_process_goes_on_where_two_were_told_to_stop(tmp_path, told):
  process = launch(tmp_path, '--config.train.steps=2000')
  wait_for(tmp_path / 'checkpoints' / '00000003', process)
  os.kill(children(process)[1] if told == 'one' else process.pid, signal.SIGTERM)
  code, output = finish(process)
  assert code == 75, output
  assert 'interrupted and saved' in output
  stopped = max(int(p.name) for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit())
  again = support.start_main(*TINY, f'--workdir={tmp_path}', '--config.train.steps=2000')
  found = next(line for line in again.stdout if 'Resuming at step' in line)
  again.kill()
  again.communicate()
  assert f'Resuming at step {stopped}.' in found


def test_a_killed_process_ends_the_others_and_all_start_again(tmp_path, alone):
  process = launch(tmp_path)
  wait_for(tmp_path / 'checkpoints' / '00000003', process)
  os.kill(children(process)[1], signal.SIGKILL)
  code, output = finish(process)
  assert code == 0, output
  assert '[local] process 1 was lost (killed by SIGKILL); the others were ended' in output
  assert_same_training(tmp_path, alone)


def test_wrong_input_is_not_tried_again(tmp_path):
  code, output = finish(launch(tmp_path, '--config.train.batch_size=3'))
  assert code == 2, output
  assert 'starting again' not in output


# ---- how they find each other -------------------------------------------------------------------


def test_flags_go_before_the_environment():
  environment = {
    'EMSEG_COORDINATOR': 'a:1',
    'EMSEG_NUM_PROCESSES': '4',
    'EMSEG_PROCESS_ID': '3',
    'SLURM_STEP_NUM_TASKS': '8',
  }
  assert processes.find_group(environment=environment) == Group('a:1', 4, 3)
  found = processes.find_group(coordinator='b:2', count=2, index=0, environment=environment)
  assert found == Group('b:2', 2, 0)


@pytest.mark.parametrize('environment', [{}, {'SLURM_STEP_NUM_TASKS': '1'}])
def test_a_single_process_needs_no_group(environment):
  assert processes.find_group(environment=environment) is None
  assert processes.find_group(coordinator='a:1', count=1, index=0, environment={}) is None


@pytest.mark.parametrize('name', ['SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE'])
def test_what_jax_knows_itself_is_left_to_it(name):
  assert processes.find_group(environment={name: '2'}) == Group(None, None, None)


@pytest.mark.parametrize(
  ('environment', 'message'),
  [
    ({'EMSEG_NUM_PROCESSES': '2'}, 'EMSEG_COORDINATOR: is missing'),
    (
      {'EMSEG_COORDINATOR': 'auto', 'EMSEG_NUM_PROCESSES': '2'},
      'EMSEG_NUM_PROCESSES: cannot be set beside EMSEG_COORDINATOR=auto',
    ),
    ({'SLURM_STEP_NUM_TASKS': 'two'}, 'SLURM_STEP_NUM_TASKS=two: must be a whole number'),
    ({'OMPI_COMM_WORLD_SIZE': '-1'}, 'OMPI_COMM_WORLD_SIZE=-1: must be a whole number'),
    ({'EMSEG_COORDINATOR': 'a:1', 'EMSEG_NUM_PROCESSES': '2'}, 'EMSEG_PROCESS_ID: is missing'),
    (
      {'EMSEG_COORDINATOR': 'a', 'EMSEG_NUM_PROCESSES': '2', 'EMSEG_PROCESS_ID': '0'},
      'EMSEG_COORDINATOR=a: must be host:port',
    ),
    (
      {'EMSEG_COORDINATOR': 'a:1', 'EMSEG_NUM_PROCESSES': '2', 'EMSEG_PROCESS_ID': '2'},
      'EMSEG_PROCESS_ID=2: must be 0 to 1',
    ),
    (
      {'EMSEG_COORDINATOR': 'a:1', 'EMSEG_NUM_PROCESSES': 'two', 'EMSEG_PROCESS_ID': '0'},
      'must be whole numbers',
    ),
  ],
)
def test_what_is_missing_or_wrong_is_named(environment, message):
  with pytest.raises(ConfigError, match=message):
    processes.find_group(environment=environment)


@pytest.mark.parametrize(
  ('environment', 'expected'),
  [
    ({}, (0, 1)),
    ({'SLURM_PROCID': '2', 'SLURM_STEP_NUM_TASKS': '4'}, (2, 4)),
    ({'SLURM_ARRAY_TASK_ID': '5', 'SLURM_ARRAY_TASK_COUNT': '6', 'SLURM_PROCID': '0'}, (5, 6)),
    ({'OMPI_COMM_WORLD_RANK': '1', 'OMPI_COMM_WORLD_SIZE': '2'}, (1, 2)),
  ],
)
def test_shares_of_a_volume_follow_the_tasks(environment, expected):
  assert processes.share(None, environment=environment) == expected


@pytest.mark.parametrize(
  ('first', 'last', 'step', 'expected'),
  [(0, 5, 1, 4), (1, 6, 1, 3), (0, 50, 10, None), (2, 12, 2, 1), (0, 5, 0, 4)],
)
def test_arrays_may_begin_anywhere_and_have_a_step(first, last, step, expected):
  """Task 4 of six; by hand: 4, 4 - 1, not of 0, 10, ... 50, (4 - 2) / 2, and step 0 means 1."""
  environment = {
    'SLURM_ARRAY_TASK_ID': '4',
    'SLURM_ARRAY_TASK_COUNT': '6',
    'SLURM_ARRAY_TASK_MIN': str(first),
    'SLURM_ARRAY_TASK_MAX': str(last),
    'SLURM_ARRAY_TASK_STEP': str(step),
  }
  if expected is None:
    with pytest.raises(ConfigError, match='SLURM_ARRAY_TASK_ID=4: cannot tell its place among 6'):
      processes.share(None, environment=environment)
  else:
    assert processes.share(None, environment=environment) == (expected, 6)


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'SLURM_ARRAY_TASK_MAX': '9'}, '6 tasks from 0 to 9, step 1; submit an array without gaps'),
    ({'SLURM_ARRAY_TASK_ID': '%a'}, 'SLURM_ARRAY_TASK_ID=%a: must be a whole number'),
    ({'SLURM_PROCID': '', 'SLURM_STEP_NUM_TASKS': '2'}, 'SLURM_PROCID=: must be a whole number'),
  ],
)
def test_shares_that_cannot_be_told_are_refused(changed, message):
  array = {
    'SLURM_ARRAY_TASK_ID': '5',
    'SLURM_ARRAY_TASK_COUNT': '6',
    'SLURM_ARRAY_TASK_MIN': '0',
    'SLURM_ARRAY_TASK_MAX': '5',
  }
  assert processes.share(None, environment=array) == (5, 6)
  with pytest.raises(ConfigError, match=message):
    processes.share(None, environment=array | changed)


def test_a_process_without_a_number_has_no_share():
  group = processes.find_group(environment={'EMSEG_COORDINATOR': 'auto'})
  with pytest.raises(ConfigError, match='does not say which share'):
    processes.share(group, environment={})


def test_the_group_says_the_share_first():
  environment = {'SLURM_PROCID': '2', 'SLURM_STEP_NUM_TASKS': '4'}
  assert processes.share(Group('a:1', 3, 1), environment=environment) == (1, 3)


# ---- what JAX is told ---------------------------------------------------------------------------


@pytest.fixture
def initialized(monkeypatch):
  """What `jax.distributed.initialize` was called with, and the settings of JAX at the end."""
  calls, settings = [], {}

  def initialize(**given):
    calls.append(given)
    settings['jax_cuda_visible_devices'] = '3'  # as JAX does with SLURM_LOCALID=3

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  monkeypatch.setattr(jax.config, 'update', settings.__setitem__)
  return calls, settings


TIMES = {'initialization_timeout': 300, 'heartbeat_timeout_seconds': 40}


@pytest.mark.parametrize('flags', [True, False])
def test_auto_passes_no_coordinates(initialized, flags):
  given = {'coordinator': 'auto'} if flags else {}
  environment = {} if flags else {'EMSEG_COORDINATOR': 'auto'}
  group = processes.find_group(**given, environment=environment)
  processes.join(group, lost_after=40, environment=environment)
  assert initialized[0] == [TIMES]


def test_coordinates_keep_schedulers_out(initialized):
  environment = {'SLURM_STEP_NUM_TASKS': '2', 'SLURM_STEP_NUM_NODES': '2'}
  processes.join(Group('a:1', 2, 1), lost_after=40, environment=environment)
  told = {'coordinator_address': 'a:1', 'num_processes': 2, 'process_id': 1}
  assert initialized[0] == [{**told, 'cluster_detection_method': 'deactivate', **TIMES}]


@pytest.mark.parametrize(
  ('environment', 'visible'),
  [
    ({'SLURM_STEP_NUM_TASKS': '2', 'SLURM_STEP_NUM_NODES': '2'}, 'all'),
    ({'SLURM_STEP_NUM_TASKS': '8', 'SLURM_STEP_NUM_NODES': '2'}, '3'),
    ({'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_LOCAL_SIZE': '1'}, 'all'),
    ({'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_LOCAL_SIZE': '2'}, '3'),
  ],
)
def test_the_only_process_of_a_machine_uses_all_of_its_gpus(initialized, environment, visible):
  group = processes.find_group(environment=environment)
  processes.join(group, lost_after=40, environment=environment)
  calls, settings = initialized
  assert calls == [TIMES]
  assert settings['jax_cuda_visible_devices'] == visible
