"""Loading, comparing and writing: any input is a configuration or a ConfigError."""

import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import pydantic
import pytest

from emseg_jax import config as config_lib
from emseg_jax import config_io
from emseg_jax.config import Config, Model
from emseg_jax.errors import ConfigError, OutputError

ROOT = Path(__file__).parent.parent
DEFAULT = Config()


def override(*overrides, config=DEFAULT):
  return config_io.apply_overrides(config, overrides)


# ---- JSON ---------------------------------------------------------------------------------------


def test_the_json_form_names_every_field_and_reads_back_equal(tmp_path):
  config = override(
    'model.options={"a":[1,2],"b":null}', 'data.label_mapping={"0":0,"255":1}',
    'data.train=[{"images":"Zellkörper/µ.tif","slices":"0:5"}]', 'predict.tile=(64,96)',
    'optim.clip_norm=1', 'task.classes=["a","b"]', 'task.colours=["#000000","#ffffff"]',
  )  # fmt: skip
  path = tmp_path / 'config.json'
  config_io.write_text(path, config_io.to_json(config))
  assert config_io.from_json(path) == config
  raw = json.loads(path.read_text())

  def check(section, record):
    assert set(record) == set(type(section).model_fields)
    for name in record:
      if isinstance(getattr(section, name), pydantic.BaseModel):
        check(getattr(section, name), record[name])

  check(config, raw)


def test_configurations_are_utf8_in_any_locale(tmp_path):
  # Files may also come from an editor; ours escape everything beyond ASCII.
  path = tmp_path / 'config.json'
  path.write_bytes('{"task": {"classes": ["Zytoplasma", "Körper"]}}'.encode())
  code = (
    'import pathlib; from emseg_jax import config_io;'
    f'print(ascii(config_io.from_json(pathlib.Path({str(path)!r})).task.classes[1]))'
  )
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONUTF8': '0', 'LC_ALL': 'C.ISO-8859-1'}
  environment |= {'PYTHONCOERCECLOCALE': '0'}
  done = subprocess.run(
    [sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == ascii('Körper')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('', 'is not a JSON configuration'),
    ('{"train": ', 'is not a JSON configuration'),
    ('[' * 100_000, 'is not a JSON configuration'),
    ('[1]', 'config'),
    ('{"train": {"stpes": 1}}', 'config.train has no field stpes; did you mean steps?'),
    ('{"train": {"steps": -1}}', 'config.train.steps = -1: should be greater than 0'),
  ],
)
def test_a_broken_json_configuration_is_named(tmp_path, content, message):
  path = tmp_path / 'broken.json'
  path.write_text(content)
  with pytest.raises(ConfigError) as caught:
    config_io.load(str(path))
  assert message in str(caught.value)
  assert str(path) in str(caught.value)


def test_a_json_configuration_that_is_not_there_is_named(tmp_path):
  with pytest.raises(ConfigError, match=r'nothing\.json: no such file'):
    config_io.load(f'{tmp_path}/nothing.json')
  (tmp_path / 'folder.json').mkdir()
  with pytest.raises(ConfigError, match=r'folder\.json'):
    config_io.load(f'{tmp_path}/folder.json')


# ---- loading ------------------------------------------------------------------------------------

HEADER = 'from emseg_jax.config import Config, Optim, Train\n'


def _load(tmp_path, text, arg=''):
  path = tmp_path / 'mine.py'
  path.write_text(text)
  return config_io.load(f'{path}:{arg}' if arg else str(path))


def test_a_python_file_is_loaded_with_and_without_argument(tmp_path):
  body = HEADER + "def get_config(arg='7'):\n  return Config(train=Train(steps=int(arg)))\n"
  assert _load(tmp_path, body).train.steps == 7
  assert _load(tmp_path, body, arg='12').train.steps == 12


def test_loading_a_configuration_leaves_no_module_behind(tmp_path):
  before = set(sys.modules)
  _load(tmp_path, HEADER + 'def get_config():\n  return Config()\n')
  assert {name for name in set(sys.modules) - before if 'mine' in name} == set()


def test_a_shipped_configuration_is_loaded_by_its_short_name():
  assert {'tiny', 'phantom', 'unet', 'pmcanet'} <= set(config_io.shipped())
  assert config_io.load('tiny') == config_io.load(str(ROOT / 'configs' / 'tiny.py'))
  assert config_io.load('pmcanet:root=/x').data.train[0].images == '/x/train-volume.tif'


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('def get_config(:\n', 'SyntaxError'),
    ('import emseg_jax.no_such_module\n', 'no_such_module'),
    ('x = undefined\n', 'undefined'),
    ('x = 1 / 0\n', 'division by zero'),
    ('x = 1\n', 'has no function get_config'),
    ('def get_config():\n  return {"train": 1}\n', 'returned dict, not a Config'),
    ('def get_config():\n  raise KeyError("lost")\n', "KeyError: 'lost'"),
    (
      HEADER + 'def get_config():\n  return Config(trian=1)\n',
      'config has no field trian; did you',
    ),
    # A section made by itself fails before it belongs to a configuration.
    (
      HEADER + 'def get_config():\n  return Config(optim=Optim(learnig_rate=1))\n',
      'Optim has no field learnig_rate; did you mean learning_rate?',
    ),
    (
      HEADER + 'def get_config():\n  return Config(train=Train(steps=-1))\n',
      'Train.steps = -1: should be greater than 0',
    ),
    (HEADER + 'C = Config(train=Train(steps=-1))\n', 'Train.steps = -1'),
  ],
)
def test_a_file_that_is_no_configuration_is_named_with_the_reason(tmp_path, text, message):
  with pytest.raises(ConfigError) as caught:
    _load(tmp_path, text)
  assert 'mine.py' in str(caught.value)
  assert message in str(caught.value)


def test_an_argument_that_a_file_does_not_take_is_a_config_error(tmp_path):
  with pytest.raises(ConfigError, match=r'mine\.py.*argument'):
    _load(tmp_path, HEADER + 'def get_config():\n  return Config()\n', arg='x')
  with pytest.raises(ConfigError, match='not one of'):
    config_io.load('pmcanet:rot=/x')


@pytest.mark.parametrize('spec', ['pmcnet', 'pmcnet:root=x', 'no/such/file.py', 'nothing', ''])
def test_an_unknown_configuration_is_answered_with_the_shipped_ones(spec):
  with pytest.raises(ConfigError) as caught:
    config_io.load(spec)
  assert f'one of: {", ".join(config_io.shipped())}' in str(caught.value)
  assert ('did you mean pmcanet?' in str(caught.value)) == spec.startswith('pmcnet')


# ---- comparing ----------------------------------------------------------------------------------


def test_a_configuration_does_not_differ_from_itself():
  assert config_io.differences(DEFAULT, override('train.steps=1000')) == []


def test_differences_name_the_field_and_both_values():
  new = override('optim.learning_rate=0.5', 'model.options.width=0.25', 'data.channels=3')
  assert config_io.differences(DEFAULT, new) == [
    'data.channels (1 -> 3)',
    'model.options.width (unset -> 0.25)',
    'optim.learning_rate (0.01 -> 0.5)',
  ]
  assert 'model.options.width (0.25 -> unset)' in config_io.differences(new, DEFAULT)


def test_an_option_set_to_none_differs_from_one_that_is_not_set():
  new = override('model.options.attention=null')
  assert config_io.differences(DEFAULT, new) == ['model.options.attention (unset -> None)']


def test_a_label_mapping_differs_as_a_whole_or_by_value():
  new = override('data.label_mapping={"0":0,"255":1}')
  assert config_io.differences(DEFAULT, new) == ["data.label_mapping (None -> {'0': 0, '255': 1})"]
  other = override('data.label_mapping={"0":1,"255":1}')
  assert config_io.differences(new, other) == ['data.label_mapping.0 (0 -> 1)']


def test_tuples_and_the_lists_that_json_makes_of_them_do_not_differ():
  pair = [Config(model=Model(options={'filters': value})) for value in ((1, 2), [1, 2])]
  assert config_io.differences(*pair) == []


def test_fields_that_change_nothing_learnt_may_differ():
  free = override(
    'data.threads=1', 'data.prefetch=1', 'data.cache_gb=0', 'eval.split=test',
    'eval.checkpoint=latest', 'mesh.data=1', 'mesh.space=2', 'predict.batch_size=1',
    'predict.probabilities=uint8', 'run.tensorboard=false', 'run.deterministic=true',
    'task.colours=["#000000","#ffffff","#ff0000"]', 'train.checkpoint_every=3', 'train.keep=9',
    'train.log_every=7',
  )  # fmt: skip
  assert config_io.differences(DEFAULT, free) == []


def test_every_free_field_exists():
  for path in config_io.FREE_FIELDS:
    section: typing.Any = DEFAULT
    for name in path.split('.'):
      assert name in type(section).model_fields, path
      section = getattr(section, name)


# ---- writing ------------------------------------------------------------------------------------


def test_writing_creates_folders_replaces_files_and_leaves_nothing_else(tmp_path):
  path = tmp_path / 'a' / 'b' / 'text.json'
  config_io.write_text(path, 'µ one')
  config_io.write_text(path, 'µ two')
  assert path.read_bytes() == 'µ two'.encode()
  assert [p.name for p in path.parent.iterdir()] == ['text.json']


def test_a_text_that_cannot_be_written_is_an_output_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OutputError, match=r'file/config\.json'):
    config_io.write_text(tmp_path / 'file' / 'config.json', '{}')


def test_nearest_suggests_close_names_only():
  known = ['learning_rate', 'momentum']
  assert config_io.nearest('learnig_rate', known) == '; did you mean learning_rate?'
  assert config_io.nearest('xyz', known) == ''


def test_describe_finds_the_section_of_every_name():
  # describe() looks sections up by their class name.
  for name in config_lib.__all__:
    section = getattr(config_lib, name)
    if isinstance(section, type) and section is not config_lib.Section:
      with pytest.raises(pydantic.ValidationError) as caught:
        section(**{'nonsense': 1})
      text = config_io.describe(caught.value)
      assert text.startswith(f'{"config" if section is Config else name} has no field nonsense')
      assert next(iter(section.model_fields)) in text
