"""launch/kubernetes.yaml: valid for the schema of Kubernetes, and what the package understands."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import conftest
import pytest
import support
from process_support import TINY

from emseg_jax import main, processes

pytestmark = pytest.mark.parity

MANIFEST = support.ROOT / 'launch' / 'kubernetes.yaml'


@pytest.fixture(scope='module')
def job():
  yaml = pytest.importorskip('yaml')
  documents = {d['kind']: d for d in yaml.safe_load_all(MANIFEST.read_text())}
  assert documents['Service']['spec']['clusterIP'] == 'None'
  return documents['Job']


def test_the_schema_of_kubernetes_allows_it(tmp_path):
  pytest.importorskip('kubernetes_validate')
  command = [Path(sys.executable).with_name('kubernetes-validate'), '--strict']
  assert subprocess.run([*command, MANIFEST], capture_output=True, check=False).returncode == 0
  wrong = tmp_path / 'wrong.yaml'
  wrong.write_text(MANIFEST.read_text().replace('completionMode', 'completionsMode'))
  assert subprocess.run([*command, wrong], capture_output=True, check=False).returncode == 1


def test_every_pod_knows_its_place(job):
  spec = job['spec']
  (container,) = spec['template']['spec']['containers']
  variables = {entry['name']: entry.get('value') for entry in container['env']}
  assert tuple(variables) == processes.VARIABLES
  for index in range(spec['completions']):
    environment = {**variables, 'EMSEG_PROCESS_ID': str(index)}
    group = processes.find_group(environment=environment)
    assert group == processes.Group('emseg-0.emseg:8476', spec['parallelism'], index)
  assert spec['completions'] == spec['parallelism']
  # The name of a pod is JOB-INDEX.SERVICE.
  assert job['metadata']['name'] == 'emseg'
  assert spec['template']['spec']['subdomain'] == 'emseg'


def test_the_command_of_the_pods_trains_one_network_here(job, tmp_path):
  """With their variables; only the host of the coordinator is another one, and what is trained."""
  (container,) = job['spec']['template']['spec']['containers']
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    port = found.getsockname()[1]
  variables = {entry['name']: entry.get('value') for entry in container['env']}
  variables['EMSEG_COORDINATOR'] = f'127.0.0.1:{port}'
  command = [sys.executable if part == 'python' else part for part in container['command']]
  flags = *TINY, '--config.train.steps=3', '--config.train.batch_size=4', support.COMMON[0]
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count=1 {conftest.COMPILE_FLAGS}',
    'PYTHONPATH': str(support.ROOT),
  }
  pods = [
    subprocess.Popen(
      [*command, *flags, f'--workdir={tmp_path}'],
      env=environment | variables | {'EMSEG_PROCESS_ID': str(index)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(job['spec']['completions'])
  ]
  outputs = [pod.communicate(timeout=300)[0] for pod in pods]
  assert [pod.returncode for pod in pods] == [0] * 4, '\n'.join(outputs)
  assert (tmp_path / 'evaluation' / 'validation.json').exists()


def test_wrong_input_fails_the_job(job):
  rule = job['spec']['podFailurePolicy']['rules'][0]
  assert rule['action'] == 'FailJob'
  assert rule['onExitCodes']['values'] == [2, 3]
  assert main.main(['emseg_jax', '--config=no_such_file.py']) == 2
