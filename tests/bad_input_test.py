"""Bad input through the command line: one clear sentence, the right exit code, nothing
half-written.
"""

import json
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import support
import tifffile
from PIL import Image

from emseg_jax import errors


def _says(capsys, *expected: str) -> None:
  said = capsys.readouterr().err
  line = said.strip().splitlines()[-1]
  for text in expected:
    assert text in line, line
  assert 'Traceback' not in said


def _train(tmp_path, *arguments: str) -> int:
  quick = ('--config.run.report=false', '--config.run.tensorboard=false')
  return support.run_main(*arguments, f'--workdir={tmp_path}/run', *quick)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A folder with a finished run of two steps in it, to be copied where it is changed."""
  folder = tmp_path_factory.mktemp('trained')
  assert _train(folder, '--config=tiny', '--config.train.steps=2') == 0
  return folder


def test_missing_folder(tmp_path, capsys):
  assert _train(tmp_path, *support.pair_arguments(tmp_path / 'nowhere')) == 2
  _says(capsys, 'nowhere/image.tif')
  assert not (tmp_path / 'run').exists()


def test_empty_folder(tmp_path, capsys):
  (tmp_path / 'images').mkdir()
  source = json.dumps([{'images': f'{tmp_path}/images', 'labels': f'{tmp_path}/images'}])
  assert _train(tmp_path, '--config=tiny', f'--config.data.train={source}') == 2
  _says(capsys, f'{tmp_path}/images')


def test_truncated_tiff(tmp_path, capsys):
  support.write_pair(tmp_path)
  path = tmp_path / 'image.tif'
  path.write_bytes(path.read_bytes()[:9000])
  assert _train(tmp_path, *support.pair_arguments(tmp_path)) == 2
  _says(capsys, 'DataError', 'image.tif')


def test_image_and_label_of_different_size(tmp_path, capsys):
  support.write_pair(tmp_path)
  tifffile.imwrite(
    tmp_path / 'label.tif', np.zeros((4, 60, 64), np.uint8), photometric='minisblack'
  )
  assert _train(tmp_path, *support.pair_arguments(tmp_path)) == 2
  _says(capsys, 'label.tif', '60 x 64', '64 x 64')


def test_label_value_outside_the_mapping(tmp_path, capsys):
  support.write_pair(tmp_path)
  label = tifffile.imread(tmp_path / 'label.tif')
  label[1, 0, 0] = 7
  tifffile.imwrite(tmp_path / 'label.tif', label, photometric='minisblack')
  assert _train(tmp_path, *support.pair_arguments(tmp_path)) == 2
  _says(capsys, 'label.tif', 'label value 7', '[0, 255]')


def test_nan_in_the_image(tmp_path, capsys):
  support.write_pair(tmp_path)
  image = tifffile.imread(tmp_path / 'image.tif').astype(np.float32)
  image[2, 3, 3] = np.nan
  tifffile.imwrite(tmp_path / 'image.tif', image, photometric='minisblack')
  assert _train(tmp_path, *support.pair_arguments(tmp_path)) == 2
  _says(capsys, 'image.tif', 'NaN')


def test_a_patch_larger_than_the_image_and_no_multiple_of_the_stride_is_padded(tmp_path, capsys):
  support.write_pair(tmp_path, size=(24, 28))
  arguments = support.pair_arguments(tmp_path)
  assert _train(tmp_path, *arguments, '--config.train.steps=4', '--config.data.patch=(40,40)') == 0
  assert 'data.patch=(40, 40) is not a multiple of (16, 16)' in capsys.readouterr().err


def test_loss_turning_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
  support.write_pair(tmp_path)
  arguments = [*support.pair_arguments(tmp_path), '--config.optim.schedule=constant']
  # A rate of 100 on a network without norms overflows within a few steps.
  wild = ['--config.optim.learning_rate=100', '--config.model.options.norm=none']
  code = _train(
    tmp_path, *arguments, *wild, '--config.train.steps=200', '--config.train.checkpoint_every=1'
  )
  assert code == errors.TrainingError.exit_code == 3
  said = capsys.readouterr().err.strip().splitlines()[-1]
  assert 'TrainingError: step ' in said
  bad, kept = (int(said.split(text)[1].split(':')[0].split()[0]) for text in ('step ', 'of step '))
  assert kept < bad
  names = [f.name for f in (tmp_path / 'run' / 'checkpoints').iterdir()]
  assert f'{kept:08d}' in names
  assert f'{bad:08d}' not in names
  assert 'TrainingError' in (tmp_path / 'run' / 'log.txt').read_text()


def test_a_workdir_that_cannot_be_written(tmp_path, capsys):
  (tmp_path / 'file').write_text('')
  assert support.run_main('--config=tiny', f'--workdir={tmp_path}/file/run') == 2
  _says(capsys, 'OutputError', 'file/run')


@pytest.mark.long
def test_a_full_disk_while_saving(tmp_path):
  """A limit on the size of any file stands in for a full disk: the write fails the same way."""

  def limit() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

  process = subprocess.Popen(
    [sys.executable, '-c', _IGNORE_SIGXFSZ, '--config=tiny', f'--workdir={tmp_path}/run',
     '--config.run.tensorboard=false', '--config.run.compile_cache=null', '--config.mesh.data=1'],
    preexec_fn=limit,
    cwd=support.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )  # fmt: skip
  output = process.communicate(timeout=300)[0]
  assert process.returncode == 2, output
  # The saving thread may print its own traceback behind our sentence.
  said = [line for line in output.splitlines() if line.startswith('OutputError: ')]
  assert len(said) == 1, output
  assert 'could not be written' in said[0]


_IGNORE_SIGXFSZ = """
import signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from emseg_jax import main
main.run()
"""


def test_a_workdir_of_another_configuration_is_refused(trained, tmp_path, capsys):
  short = '--config.train.steps=2'
  shutil.copytree(trained / 'run', tmp_path / 'run')
  before = (tmp_path / 'run' / 'config.json').read_bytes()
  capsys.readouterr()
  code = _train(tmp_path, '--config=tiny', short, '--config.optim.learning_rate=0.5')
  assert code == 2
  _says(capsys, 'optim.learning_rate (0.02 -> 0.5)')
  assert (tmp_path / 'run' / 'config.json').read_bytes() == before
  # What does not change the result may change.
  assert _train(tmp_path, '--config=tiny', short, '--config.train.log_every=1') == 0
  # More steps only on request.
  assert _train(tmp_path, '--config=tiny', '--config.train.steps=4') == 2
  assert _train(tmp_path, '--config=tiny', '--config.train.steps=4', '--extend') == 0


def test_changed_training_data_are_refused(tmp_path, capsys):
  support.write_pair(tmp_path)
  arguments = [*support.pair_arguments(tmp_path), '--config.train.steps=2']
  assert _train(tmp_path, *arguments) == 0
  image = tifffile.imread(tmp_path / 'image.tif')
  image[0, 0, 0] += 1
  tifffile.imwrite(tmp_path / 'image.tif', image, photometric='minisblack')
  capsys.readouterr()
  assert _train(tmp_path, *arguments) == 2
  _says(capsys, 'training data changed')


@pytest.mark.parametrize('mode', ['evaluate', 'predict', 'report'])
def test_modes_that_need_a_run_say_so(tmp_path, capsys, mode):
  extra = ['--input=x', '--output=y'] if mode == 'predict' else []
  assert support.run_main(f'--mode={mode}', f'--workdir={tmp_path}/none', *extra) == 2
  _says(capsys, 'ConfigError')


def test_prediction_of_another_pixel_type_is_refused_where_it_would_be_nonsense(
  trained, tmp_path, capsys
):
  Image.fromarray(np.full((40, 40), 30_000, np.uint16)).save(tmp_path / 'deep.png')
  capsys.readouterr()
  code = support.run_main(
    f'--workdir={trained}/run', '--mode=predict', f'--input={tmp_path}/deep.png',
    f'--output={tmp_path}/out.png',
  )  # fmt: skip
  assert code == 2
  _says(capsys, 'uint16', 'uint8', 'per_volume')
  assert not (tmp_path / 'out.png').exists()


def test_prediction_refuses_another_network(trained, capsys):
  capsys.readouterr()
  code = support.run_main(
    f'--workdir={trained}/run', '--mode=evaluate', '--config.model.options.width=0.125'
  )
  assert code == 2
  _says(capsys, 'model.options.width (0.0625 -> 0.125)')


@pytest.mark.parametrize(
  ('argument', 'expected'),
  [
    ('--config.optim.lerning_rate=1', 'did you mean learning_rate'),
    ('--config.train.steps=many', 'config.train.steps'),
    ('--config.model.name=unit', 'unet'),
    ('--config.model.options.widht=1', 'width'),
    ('--config.model.options.dtype=float32', 'set model.dtype'),
    ('--config.optim.warmup_steps=20', 'below train.steps=20'),
    ('--config.loss.terms.dice.options.smoth=1', 'smooth'),
    ('--mode=trian', 'train'),
  ],
)
def test_impossible_options_name_the_field_and_what_is_allowed(
  tmp_path, capsys, argument, expected
):
  code = support.run_main('--config=tiny', f'--workdir={tmp_path}/run', argument)
  assert code == 2
  _says(capsys, expected)
  assert not (tmp_path / 'run').exists()
