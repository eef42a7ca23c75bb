"""A run that is stopped on four processes and goes on with two and with one: the same examples.

Real processes through the real entry point. A wrapper around the batches of each process writes
down what its steps were given, and sends the SIGTERM; everything else is the command of a user.
"""

import itertools
import json
import os
import socket
import subprocess
import sys

import conftest
import jax
import numpy as np
import pytest
import support

from emseg_jax import config_io, experiment
from emseg_jax.checkpoint import Checkpoints

STEPS, BATCH = 12, 4
ARGUMENTS = (
  '--config=tiny',
  *support.SMALL_NETWORK,
  f'--config.train.steps={STEPS}',
  f'--config.train.batch_size={BATCH}',
  f'--config.train.eval_every={STEPS}',
  '--config.data.validation=[]',
  '--config.augment={}',  # flips and turns, drawn for each example
  '--config.run.report=false',
  '--config.run.tensorboard=false',
  f'--config.run.compile_cache={conftest.COMPILE_CACHE}',
)
# Argument 1: file to write to. Argument 2: the step before which SIGTERM comes, or -1.
RECORDED_MAIN = """
import json, os, signal, sys, zlib
from emseg_jax import main, train_input

file, stop = open(sys.argv.pop(1), 'w'), int(sys.argv.pop(1))
batches_from = train_input.batches_from

def recorded(dataset, step, data):
  for batch in batches_from(dataset, step, data):
    contents = [zlib.crc32(x.tobytes() + y.tobytes())
                for x, y in zip(batch['image'], batch['label'], strict=True)]
    print(json.dumps([step, batch['index'].tolist(), contents]), file=file, flush=True)
    if step == stop:
      os.kill(os.getpid(), signal.SIGTERM)
    yield batch
    step += 1

train_input.batches_from = recorded
main.run()
"""


def _free_port():
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


def _train(workdir, *more, processes=1, stop=-1):
  """Trains until the end, or until the last process is sent SIGTERM before step `stop`.

  Returns:
    (step, indices [BATCH], digests of image and label [BATCH]) of every step, in order.
  """
  records = [workdir.parent / f'{workdir.name}_{i}of{processes}.jsonl' for i in range(processes)]
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count=1 {conftest.COMPILE_FLAGS}',
    'PYTHONPATH': str(support.ROOT),
    'EMSEG_COORDINATOR': f'127.0.0.1:{_free_port()}',
    'EMSEG_NUM_PROCESSES': str(processes),
  }
  last = processes - 1
  running = [
    subprocess.Popen(
      [
        *(sys.executable, '-c', RECORDED_MAIN, record, str(stop if i == last else -1)),
        *(*ARGUMENTS, f'--workdir={workdir}', *more),
      ],
      env=environment | {'EMSEG_PROCESS_ID': str(i)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i, record in enumerate(records)
  ]
  outputs = [process.communicate(timeout=300)[0] for process in running]
  codes = [process.returncode for process in running]
  assert codes == [0 if stop < 0 else 75] * processes, '\n'.join(outputs)
  shares = [[json.loads(line) for line in record.read_text().splitlines()] for record in records]
  seen = []
  for rows in zip(*shares, strict=True):
    assert len({step for step, *_ in rows}) == 1
    joined = (list(itertools.chain(*parts)) for parts in list(zip(*rows, strict=True))[1:])
    seen.append((rows[0][0], *joined))
  return seen


def _final(workdir):
  """Parameters at the start, then at the end, as one vector each."""
  config = config_io.from_json(workdir / 'config.json')
  mesh = config.mesh.model_copy(update={'data': 1})
  setup = experiment.set_up(config.model_copy(update={'mesh': mesh}))
  checkpoints = Checkpoints(workdir / 'checkpoints', keep=2, read_only=True)
  state, meta = checkpoints.restore(setup.abstract_state(), which='latest')
  assert meta.step == STEPS
  return [
    np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(s.params)])
    for s in (setup.initial_state(), state)
  ]


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """A run of one process that was never stopped, and what it saw."""
  workdir = tmp_path_factory.mktemp('alone') / 'run'
  seen = _train(workdir)
  assert [step for step, *_ in seen] == list(range(STEPS))
  # Examples are numbered without gaps, and none is like another.
  assert [i for _, indices, _ in seen for i in indices] == list(range(STEPS * BATCH))
  assert len({d for *_, digests in seen for d in digests}) == STEPS * BATCH
  return workdir, seen


def _assert_went_on(workdir, seen, alone):
  """The same examples in the same order, and to rounding the same network.

  Sums over the batch are in another order, which flips a few ReLUs; an example that is left out or
  seen twice moves the parameters by tens of percents of their way.
  """
  reference, expected = alone
  assert seen == expected
  start, end = _final(reference)
  _, found = _final(workdir)
  assert np.linalg.norm(found - end) < 0.02 * np.linalg.norm(end - start)


@pytest.mark.parametrize(
  'counts',
  [
    (4, 1),
    *(pytest.param(c, marks=pytest.mark.long) for c in ((4, 2, 1), (1, 4), (2, 4, 1, 2))),
  ],
)
def test_other_numbers_of_processes_and_readers_see_the_same_examples(tmp_path, alone, counts):
  workdir, seen = tmp_path / 'run', []
  for i, count in enumerate(counts):
    stop = -1 if i == len(counts) - 1 else len(seen) + 1
    readers = f'--config.data.threads={i}', f'--config.data.workers={i % 3}'
    seen += _train(workdir, *readers, processes=count, stop=stop)
  _assert_went_on(workdir, seen, alone)
