"""launch/slurm.sbatch on a real SLURM of one machine: submitted, requeued, signalled, cancelled.

Needs slurmctld, slurmd and munged (Debian's slurm-wlm and munge) and root; `make test-slurm`.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import conftest
import pytest
import support

pytestmark = pytest.mark.slurm

HOST = socket.gethostname().split('.')[0]
# A job that is queued again waits until credentials have expired, two minutes by default.
CONFIG = f"""ClusterName=test
SlurmctldHost={HOST}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=60
SlurmctldPort=16817
SlurmdPort=16818
SlurmctldPidFile=FOLDER/ctld.pid
SlurmdPidFile=FOLDER/d.pid
SlurmctldLogFile=FOLDER/ctld.log
SlurmdLogFile=FOLDER/d.log
StateSaveLocation=FOLDER/state
SlurmdSpoolDir=FOLDER/spool
NodeName={HOST} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
STEPS = 100_000


@pytest.fixture(scope='module')
def slurm(tmp_path_factory):
  """Controller and node daemon; yields their environment."""
  missing = [name for name in ('slurmctld', 'slurmd', 'munged') if shutil.which(name) is None]
  assert not missing, f'{missing} not found: apt-get install slurm-wlm munge'
  folder = tmp_path_factory.mktemp('slurm')
  for name in ('state', 'spool'):
    (folder / name).mkdir()
  (folder / 'slurm.conf').write_text(CONFIG.replace('FOLDER', str(folder)))
  if subprocess.run(['pgrep', 'munged'], capture_output=True, check=False).returncode:
    Path('/run/munge').mkdir(exist_ok=True)
    shutil.chown('/run/munge', 'munge', 'munge')
    subprocess.run(['runuser', '-u', 'munge', '--', 'munged'], check=True)
  environment = os.environ | {'SLURM_CONF': f'{folder}/slurm.conf'}
  daemons = [
    subprocess.Popen([name, '-D'], env=environment, stderr=subprocess.DEVNULL)
    for name in ('slurmctld', 'slurmd')
  ]
  try:
    _wait(lambda: 'idle' in _run(environment, 'sinfo', '-h', '-o', '%T'), 'the node')
    yield environment
  finally:
    for daemon in daemons:
      daemon.terminate()
      daemon.wait(timeout=30)


def _run(environment, *command):
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  return done.stdout


def _wait(condition, what, seconds=240):
  until = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < until, f'waited {seconds} s for {what}'
    time.sleep(0.3)


def _submit(environment, workdir, log, *more):
  variables = {
    'PYTHON': sys.executable,
    'PYTHONPATH': str(support.ROOT),
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count=1 {conftest.COMPILE_FLAGS}',
  }
  flags = [
    '--config=tiny',
    *support.SMALL_NETWORK,
    f'--config.train.steps={STEPS}',
    f'--config.train.eval_every={STEPS}',
    '--config.train.checkpoint_every=5',
    '--config.run.report=false',
    '--config.run.tensorboard=false',
    f'--config.run.compile_cache={conftest.COMPILE_CACHE}',
    f'--workdir={workdir}',
  ]
  script = str(support.ROOT / 'launch' / 'slurm.sbatch')
  command = ['sbatch', '--parsable', '--nodes=1', '--ntasks-per-node=2', f'--output={log}', script]
  job = _run(environment | variables, *command, *flags, *more).strip()
  assert job.isdigit()
  return job


def _last_step(workdir):
  steps = [int(p.name) for p in (workdir / 'checkpoints').glob('[0-9]*') if p.name.isdigit()]
  return max(steps, default=0)


def test_a_job_of_two_tasks_is_requeued_and_goes_on_until_it_is_cancelled(slurm, tmp_path):
  workdir, log = tmp_path / 'run', tmp_path / 'job.log'
  job = _submit(slurm, workdir, log)
  _wait(lambda: _last_step(workdir) >= 10, 'a checkpoint of the first start')
  assert 'on 2 x cpu' in log.read_text()

  _run(slurm, 'scontrol', 'requeue', job)  # as a preemption does
  _wait(lambda: 'stopped at step' in log.read_text(), 'the interrupted run')
  _wait(lambda: 'Resuming at step' in log.read_text(), 'the second start')
  assert _steps(log, 'Resuming at step') == _steps(log, 'stopped at step')[:1]

  reached = _last_step(workdir)
  _wait(lambda: _last_step(workdir) > reached, 'a checkpoint of the second start')
  _run(slurm, 'scancel', '--signal=TERM', job)  # as at the end of its time: tasks only
  _wait(lambda: _state(slurm, job) == 'PENDING', 'the job to be queued again by its script')
  _wait(lambda: log.read_text().count('Resuming at step') == 2, 'the third start')

  _run(slurm, 'scancel', job)
  _wait(lambda: not _state(slurm, job), 'the cancelled job to end')
  assert log.read_text().count('Resuming at step') == 2


def test_bad_input_is_not_queued_again(slurm, tmp_path):
  log = tmp_path / 'job.log'
  job = _submit(slurm, tmp_path / 'run', log, '--config.train.batch_size=3')
  _wait(lambda: not _state(slurm, job), 'the job to end')
  assert 'train.batch_size=3: is not a multiple' in log.read_text()


def _state(environment, job):
  """'' once it is over; jobs that are ending count as running."""
  return _run(environment, 'squeue', '-h', '-j', job, '-o', '%T').strip()


def _steps(log, text):
  """The numbers behind a text, one per start of the job."""
  found = []
  for line in log.read_text().splitlines():
    if text in line:
      number = int(line.split(text)[1].split(',')[0].strip(' .'))
      if number not in found:
        found.append(number)
  return found
