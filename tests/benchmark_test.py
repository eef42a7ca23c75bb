"""The benchmark: what it reports, for images and for volumes, and what it refuses."""

import json

import pytest
from support import run_main

from emseg_jax import benchmark

IMAGES = ('--config=tiny', '--mode=benchmark')
VOLUMES = (
  *IMAGES,
  '--config.model.name=unet3d',
  '--config.data.patch=(8,8,8)',
  '--config.augment.rotate90=false',
  '--config.train.batch_size=1',
)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
  monkeypatch.setattr(benchmark, 'LEAST_SECONDS', 0.0)


@pytest.mark.parametrize(('arguments', 'patch'), [(IMAGES, 2), (VOLUMES, 3)])
def test_rates_follow_from_times_and_operations_from_the_network(
  tmp_path, capsys, arguments, patch
):
  path = tmp_path / 'speed.json'
  width = '--config.model.options={"width":0.0625}'
  assert run_main(*arguments, width, f'--output={path}', '--json') == 0
  result = json.loads(path.read_text())
  assert json.loads(capsys.readouterr().out) == result
  assert len(result['patch']) == patch
  for name, passes in (('train', 3), ('predict', 1)):
    timing = result[name]
    assert timing['steps'] == benchmark.LEAST_STEPS
    assert timing['compile_seconds'] > 0
    rate = timing['steps_per_second'] * result['batch_size']
    assert timing['images_per_second'] == pytest.approx(rate)
    assert timing['tflops'] == pytest.approx(passes * result['forward_gflops'] / 1e3 * rate)
  # At least what the network takes forward; on one device it is all of the work.
  assert result['train']['device_gflops'] > result['batch_size'] * result['forward_gflops']
  assert result['train']['device_gbytes'] > 4 * result['parameters'] / 1e9
  # Parameters, momentum and gradient are three times the parameters, of four bytes.
  assert result['train']['memory_gb'] > 3 * 4 * result['parameters'] / 1e9
  assert result['train']['memory_gb'] > result['predict']['memory_gb']


def test_the_text_names_network_devices_and_rates(capsys):
  assert run_main(*IMAGES) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith('unet: ')
  assert '1 x cpu' in lines[0]
  assert [line.split()[0] for line in lines[3:5]] == ['train', 'predict']


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('--config.model.name=unet3d', 'needs 3 axes, data.patch=(32, 32) has 2; set for example'),
    ('--config.model.name=unet4d', "'unet4d' is not known; did you mean"),
  ],
)
def test_a_network_that_does_not_fit_is_refused(caplog, capfd, override, message):
  assert run_main(*IMAGES, override) == 2
  assert message in capfd.readouterr().err
