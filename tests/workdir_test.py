"""Who may use a work directory again, and what its log holds."""

import json
import logging
import subprocess
import sys

import pytest

from emseg_jax import config_io, workdir
from emseg_jax.config import Config
from emseg_jax.errors import CheckpointError, ConfigError, DataError, OutputError

DEFAULT = Config()


def override(*overrides):
  return config_io.apply_overrides(DEFAULT, overrides)


def test_a_claimed_folder_holds_the_whole_configuration(tmp_path):
  folder = tmp_path / 'runs' / 'one'
  workdir.claim(folder, override('train.steps=7'), extend=False)
  assert workdir.read_config(folder) == override('train.steps=7')


def test_the_same_configuration_may_come_again(tmp_path):
  workdir.claim(tmp_path, DEFAULT, extend=False)
  workdir.claim(tmp_path, DEFAULT, extend=False)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['config.json', 'version.json']


def test_another_configuration_is_refused_with_the_fields_and_both_values(tmp_path):
  workdir.claim(tmp_path, DEFAULT, extend=False)
  with pytest.raises(ConfigError) as caught:
    workdir.claim(tmp_path, override('optim.momentum=0.5', 'model.name=segnet'), extend=False)
  assert 'model.name (unet -> segnet); optim.momentum (0.9 -> 0.5)' in str(caught.value)
  assert '--extend' not in str(caught.value)
  assert workdir.read_config(tmp_path) == DEFAULT


def test_what_changes_nothing_learnt_may_change_and_is_recorded(tmp_path):
  workdir.claim(tmp_path, DEFAULT, extend=False)
  changed = override('train.log_every=1', 'data.threads=0', 'mesh.data=1')
  workdir.claim(tmp_path, changed, extend=False)
  assert workdir.read_config(tmp_path) == changed


def test_more_steps_need_extend(tmp_path):
  workdir.claim(tmp_path, override('train.steps=10'), extend=False)
  with pytest.raises(ConfigError, match=r'train\.steps \(10 -> 20\).*--extend allows more'):
    workdir.claim(tmp_path, override('train.steps=20'), extend=False)
  workdir.claim(tmp_path, override('train.steps=20'), extend=True)
  assert workdir.read_config(tmp_path).train.steps == 20


def test_extend_allows_neither_fewer_steps_nor_anything_else(tmp_path):
  workdir.claim(tmp_path, override('train.steps=10'), extend=False)
  with pytest.raises(ConfigError, match=r'train\.steps \(10 -> 5\)'):
    workdir.claim(tmp_path, override('train.steps=5'), extend=True)
  with pytest.raises(ConfigError, match=r'train\.seed \(0 -> 1\)') as caught:
    workdir.claim(tmp_path, override('train.steps=20', 'train.seed=1'), extend=True)
  assert 'train.steps (' not in str(caught.value)
  assert workdir.read_config(tmp_path).train.steps == 10


def test_a_folder_without_a_run_is_named(tmp_path):
  with pytest.raises(ConfigError, match=r'holds no run \(no config\.json\)') as caught:
    workdir.read_config(tmp_path)
  assert str(tmp_path) in str(caught.value)


def test_a_damaged_configuration_is_not_overwritten(tmp_path):
  (tmp_path / 'config.json').write_text('{"train": ')
  with pytest.raises(ConfigError, match='is not a JSON configuration'):
    workdir.claim(tmp_path, DEFAULT, extend=False)
  assert (tmp_path / 'config.json').read_text() == '{"train": '


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OutputError, match='file/run'):
    workdir.claim(tmp_path / 'file' / 'run', DEFAULT, extend=False)


def log_of(folder):
  return (folder / 'log.txt').read_text(encoding='utf-8').splitlines()


def test_messages_of_the_block_are_appended_to_the_log(tmp_path):
  logger = logging.getLogger('emseg_jax.anything')
  for text in ('one · 2 µm', 'two'):
    with workdir.occupy(tmp_path):
      logger.warning(text)
  logger.warning('outside')
  lines = log_of(tmp_path)
  assert [line.split(' WARNING ')[1] for line in lines] == ['one · 2 µm', 'two']


def test_the_error_that_ends_the_block_is_in_the_log_once(tmp_path):
  with pytest.raises(DataError), workdir.occupy(tmp_path):
    raise DataError('image.tif: is broken')
  (line,) = log_of(tmp_path)
  assert line.endswith(' ERROR DataError: image.tif: is broken')


def test_the_handler_is_gone_after_an_error(tmp_path):
  before = list(logging.getLogger('emseg_jax').handlers)
  with pytest.raises(KeyError), workdir.occupy(tmp_path):
    raise KeyError
  assert logging.getLogger('emseg_jax').handlers == before


def test_a_second_process_in_the_same_folder_is_turned_away(tmp_path):
  """Two trainings would overwrite each other's checkpoints; the lock goes when the holder dies."""
  code = (
    'import sys, time, pathlib\nfrom emseg_jax import workdir\n'
    'with workdir.occupy(pathlib.Path(sys.argv[1])):\n  print("in", flush=True)\n  time.sleep(60)\n'
  )
  holder = subprocess.Popen(
    [sys.executable, '-c', code, str(tmp_path)], stdout=subprocess.PIPE, text=True
  )
  assert holder.stdout.readline() == 'in\n'
  with pytest.raises(OutputError, match='another process'), workdir.occupy(tmp_path):
    pass
  holder.kill()
  holder.communicate()
  with workdir.occupy(tmp_path):
    pass


@pytest.mark.parametrize(
  'read', [workdir.read_config, lambda w: workdir.claim(w, DEFAULT, extend=False)]
)
def test_a_run_of_a_newer_version_is_refused_with_the_version(tmp_path, read):
  workdir.claim(tmp_path, DEFAULT, extend=False)
  assert json.loads((tmp_path / 'version.json').read_text())['layout'] == workdir.LAYOUT
  # Fields that this version does not know are no reason to call it a wrong configuration.
  (tmp_path / 'config.json').write_text('{"quantum": {}}')
  (tmp_path / 'version.json').write_text('{"layout": 2, "emseg_jax": "7.1"}')
  with pytest.raises(
    CheckpointError, match=r'of emseg_jax 7\.1, layout 2; .* up to layout 1: inst'
  ):
    read(tmp_path)
  (tmp_path / 'version.json').write_text('[')
  with pytest.raises(CheckpointError, match=r'version\.json: cannot be read'):
    read(tmp_path)


def test_a_run_from_before_versions_were_written_is_read(tmp_path):
  workdir.claim(tmp_path, DEFAULT, extend=False)
  (tmp_path / 'version.json').unlink()
  assert workdir.read_config(tmp_path) == DEFAULT
  workdir.claim(tmp_path, DEFAULT, extend=False)
