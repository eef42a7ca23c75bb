"""launch/tpu_vm.sh, with a stand-in for gcloud that runs the command of the workers here."""

import json
import os
import subprocess
import sys
import time

import pytest
import support

# Notes down what it is given, and makes of --command what a worker's shell would.
GCLOUD = """#!/bin/bash
printf '%s\\n' "${@:1:$#-1}" > "$HOME/given"
command="${@: -1}"
exec bash -c "${command#--command=}"
"""
# Ends with 75 after SIGTERM, as a run does that is saved.
PROGRAM = """#!PYTHON -IS
import json, os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
worker = pathlib.Path(os.environ['HOME'], 'worker')
worker.write_text(json.dumps([os.environ.get('EMSEG_COORDINATOR'), *sys.argv[1:]]))
time.sleep(0 if '--config=tiny' in sys.argv else 60)
"""


@pytest.fixture
def start(tmp_path):
  """Starts the script with these arguments; what runs has `tmp_path` as its home."""
  for name, text in (('gcloud', GCLOUD), ('python3', PROGRAM.replace('PYTHON', sys.executable))):
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)

  def start(*arguments, **variables):
    environment = {'HOME': str(tmp_path), 'PATH': f'{tmp_path}:{os.environ["PATH"]}', **variables}
    script = str(support.ROOT / 'launch' / 'tpu_vm.sh')
    return subprocess.Popen([script, *arguments], env=environment, stderr=subprocess.PIPE)

  return start


SLICE = {'TPU_NAME': 'slice', 'ZONE': 'zone-a'}


def test_all_workers_run_the_command_as_it_was_given(tmp_path, start):
  flags = ['--config=tiny', '--config.task.classes=["a b","$c"]', "--workdir=/disk/it's here"]
  process = start(*flags, **SLICE)
  assert process.wait(timeout=60) == 0
  assert json.loads((tmp_path / 'worker').read_text()) == ['auto', '-m', 'emseg_jax.main', *flags]
  given = (tmp_path / 'given').read_text().splitlines()
  where = ['slice', '--zone=zone-a', '--worker=all', '--batch-size=all']
  assert given == ['compute', 'tpus', 'tpu-vm', 'ssh', *where]
  assert not (tmp_path / '.emseg_jax.pid').exists()


def test_stop_ends_what_was_started_and_the_exit_code_comes_through(tmp_path, start):
  running = start('--config=long', **SLICE)
  until = time.monotonic() + 60
  while not all((tmp_path / name).exists() for name in ('worker', '.emseg_jax.pid')):
    assert time.monotonic() < until
    time.sleep(0.05)
  assert start('stop', **SLICE).wait(timeout=60) == 0
  assert running.wait(timeout=60) == 75


def test_without_a_slice_nothing_is_run(tmp_path, start):
  process = start('--config=tiny', ZONE='zone-a')
  assert 'TPU_NAME: set it to the name of the TPU slice' in process.communicate()[1].decode()
  assert process.returncode != 0
  assert not (tmp_path / 'given').exists()
