"""Several real processes under the launcher, and their numbers."""

import os
import subprocess
import sys
import time

import conftest
import support

LAUNCHER = support.ROOT / 'launch' / 'local.py'
TINY = (
  '--config=tiny',
  *support.SMALL_NETWORK,
  '--config.train.steps=12',
  '--config.train.log_every=3',
  '--config.train.eval_every=6',
  '--config.train.checkpoint_every=3',
  '--config.predict.tile=(32,32)',
  '--config.run.report=false',
  '--config.run.tensorboard=false',
)


def launch(workdir, *more, count=2, own=(), base=TINY):
  """Starts the launcher with flags of its `own`; `base` and `more` are those of the training."""
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count=1 {conftest.COMPILE_FLAGS}',
    'PYTHONPATH': str(support.ROOT),
  }
  cache = f'--config.run.compile_cache={conftest.COMPILE_CACHE}'
  flags = [*base, *more, f'--workdir={workdir}', cache]
  return subprocess.Popen(
    [sys.executable, str(LAUNCHER), f'--processes={count}', *own, '--', *flags],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process):
  output = process.communicate(timeout=300)[0]
  return process.returncode, output


def wait_for(path, process):
  while not path.exists():
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.05)


def children(process):
  """Process numbers of what the launcher started, by rank."""
  folder = f'/proc/{process.pid}/task/{process.pid}/children'
  with open(folder, encoding='ascii') as file:
    return [int(number) for number in file.read().split()]
