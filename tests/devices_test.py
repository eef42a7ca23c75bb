"""What a user reads where jax for CUDA is installed and cannot use a GPU."""

import os
import subprocess
import sys

import conftest
import pytest
import support

# As jax's own plugin does where there is no driver: seen with jax-cuda13-plugin 0.12.
BROKEN = """
def initialize():
  raise RuntimeError('Unable to load cuPTI. Is it installed?')
"""


@pytest.fixture(scope='module')
def plugin(tmp_path_factory):
  folder = tmp_path_factory.mktemp('plugin')
  package = folder / 'jax_plugins' / 'xla_cuda13'
  package.mkdir(parents=True)
  (package / '__init__.py').write_text(BROKEN)
  return folder


def start(folder, workdir, **more):
  environment = {k: v for k, v in os.environ.items() if k != 'JAX_PLATFORMS'}
  path = os.pathsep.join(map(str, (support.ROOT, *folder)))
  flags = '--config=tiny', '--config.train.steps=1', '--config.run.report=false'
  done = subprocess.run(
    [sys.executable, '-m', 'emseg_jax.main', *flags, f'--workdir={workdir}', support.COMMON[0]],
    env=environment | {'PYTHONPATH': path, 'XLA_FLAGS': conftest.COMPILE_FLAGS} | more,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stderr


def test_a_plugin_that_cannot_start_is_one_sentence(plugin, tmp_path):
  said = start([plugin], tmp_path)
  assert (
    'jax for CUDA is installed, but finds no GPU and runs on the CPU (Unable to load cuPTI. Is it '
    'installed?); nvidia-smi shows whether there is one, and a container needs --gpus=all\n'
  ) in said
  assert 'Traceback' not in said


def test_nothing_is_said_of_it_to_who_chose_the_cpu(plugin, tmp_path):
  said = start([plugin], tmp_path, JAX_PLATFORMS='cpu')
  assert 'CUDA' not in said
  assert 'Traceback' not in said
