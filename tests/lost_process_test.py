"""Processes that die: when the others end, what they say, and how many steps are done again."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

import conftest
import pytest
import support
from process_support import TINY, children, launch, wait_for

STEPS, EVERY = 60, 5
LONGER = (
  f'--config.train.steps={STEPS}',
  '--config.train.log_every=1',
  f'--config.train.checkpoint_every={EVERY}',
  f'--config.train.eval_every={STEPS // 2}',
)


def _run_and_kill(workdir, kills):
  """Kills one of two processes, at random, that many times.

  Returns:
    The output, and of each kill the steps that were logged before it and are done again after.
  """
  generator = random.Random(kills)
  process = launch(workdir, *LONGER, own=('--restarts=20',))
  lines, lost, last, left = [], [], 0, kills
  wait = generator.randrange(1, 15)  # steps until the next kill
  for line in process.stdout:
    lines.append(line)
    if (resumed := re.match(r'\[0\] .*Resuming at step (\d+)', line)) is not None:
      lost.append(last - int(resumed[1]))
      last, wait = int(resumed[1]), generator.randrange(1, 15)
    elif (step := re.match(rf'\[0\] step (\d+)/{STEPS} ', line)) is not None:
      last, wait = int(step[1]), wait - 1
      if wait == 0 and left and last < STEPS - 1:
        time.sleep(generator.uniform(0, 0.05))
        os.kill(generator.choice(children(process)), signal.SIGKILL)
        left -= 1
  assert process.wait() == 0, ''.join(lines)
  return ''.join(lines), lost


@pytest.mark.long
def test_killed_at_random_moments_few_steps_are_lost_and_the_scores_are_the_same(tmp_path):
  undisturbed, disturbed = tmp_path / 'a', tmp_path / 'b'
  _run_and_kill(undisturbed, 0)
  output, lost = _run_and_kill(disturbed, 6)
  print(f'steps done again after each of {len(lost)} kills: {lost}')
  assert output.count('was lost (killed by SIGKILL); the others were ended') == len(lost) == 6
  # A checkpoint is being written while the next steps run, so that the one before may count.
  assert max(lost) <= 2 * EVERY
  ours, theirs = map(support.records_without_clocks, (disturbed, undisturbed))
  assert [r['step'] for r in ours] == [r['step'] for r in theirs]
  for a, b in zip(ours, theirs, strict=True):
    assert a == pytest.approx(b, rel=1e-6), a['step']


def _start_pair(workdir, lost_after):
  """Two processes without a launcher."""
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    port = found.getsockname()[1]
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count=1 {conftest.COMPILE_FLAGS}',
    'PYTHONPATH': str(support.ROOT),
    'EMSEG_COORDINATOR': f'127.0.0.1:{port}',
    'EMSEG_NUM_PROCESSES': '2',
  }
  flags = *TINY, f'--config.run.lost_after={lost_after}', '--config.train.steps=100000'
  return [
    subprocess.Popen(
      [sys.executable, '-m', 'emseg_jax.main', *flags, f'--workdir={workdir}', support.COMMON[0]],
      env=environment | {'EMSEG_PROCESS_ID': str(i)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(2)
  ]


@pytest.mark.long
@pytest.mark.parametrize(('killed', 'lost_after'), [(1, 5), (1, 12), (0, 12)])
def test_without_a_launcher_the_other_ends_in_time_and_names_the_lost(tmp_path, killed, lost_after):
  pair = _start_pair(tmp_path, lost_after)
  wait_for(tmp_path / 'checkpoints' / '00000003', pair[0])
  time.sleep(random.Random(lost_after).uniform(0, 1))
  pair[killed].kill()
  began = time.monotonic()
  output = pair[1 - killed].communicate(timeout=lost_after + 60)[0]
  seconds = time.monotonic() - began
  print(f'process {killed} was killed: the other one ended after {seconds:.1f} s')
  assert pair[1 - killed].returncode != 0
  pair[killed].communicate()
  assert seconds < lost_after + 10  # the machine may be busy
  # The runtime's words; process 0 coordinates, without it nobody can say more.
  assert {1: 'Task 1 heartbeat timeout', 0: 'leader task'}[killed] in output
