"""Loading, overriding, comparing and writing: any input is a configuration or a ConfigError."""

import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from emseg_jax import config as config_lib
from emseg_jax import config_io
from emseg_jax.config import Config, Model
from emseg_jax.errors import ConfigError, OutputError

ROOT = Path(__file__).parent.parent
DEFAULT = Config()


def override(*overrides, config=DEFAULT):
  return config_io.apply_overrides(config, overrides)


# ---- overrides ----------------------------------------------------------------------------------


def test_an_override_changes_its_field_and_nothing_else():
  changed = override('optim.learning_rate=0.02')
  assert changed.optim.learning_rate == 0.02
  expected = DEFAULT.model_dump()
  expected['optim']['learning_rate'] = 0.02
  assert changed.model_dump() == expected


def test_overrides_apply_in_order_and_leave_the_original_alone():
  before = config_io.to_json(DEFAULT)
  assert override('train.steps=5', 'train.steps=6').train.steps == 6
  override('model.options.a.b=1', 'data.train.0.phantom.count=3', 'loss.terms.ce.weight=9')
  assert config_io.to_json(DEFAULT) == before


@pytest.mark.parametrize('text', ['(64,32)', '( 64, 32, )', '[64, 32]', '[64,32]'])
def test_a_tuple_is_written_like_in_python_or_json(text):
  assert override('augment.rotate90=false', f'data.patch={text}').data.patch == (64, 32)


def test_elements_of_lists_are_addressed_by_index():
  two = override('data.train=[{"images":"a.tif"},{"images":"b.tif"}]')
  changed = override('data.train.1.images=c.tif', config=two)
  assert [source.images for source in changed.data.train] == ['a.tif', 'c.tif']
  assert override('data.train.0.phantom.size.1=100').data.train[0].phantom.size == (256, 100)


def test_open_dictionaries_take_new_keys():
  assert override('model.options.attention=se', 'model.options.width=0.5').model.options == {
    'attention': 'se',
    'width': 0.5,
  }
  assert override('model.options.a.b=[1,null]').model.options == {'a': {'b': [1, None]}}
  # Networks have options such as norm=none; what is nothing is written null or None there.
  options = override(*(f'model.options.{v}={v}' for v in ('none', 'null', 'None'))).model.options
  assert options == {'none': 'none', 'null': None, 'None': None}
  assert override('data.label_mapping.255=1').data.label_mapping == {255: 1}
  terms = override('loss.terms.dice.options.smooth=2').loss.terms
  assert (terms['dice'].weight, terms['dice'].options) == (3.0, {'smooth': 2})


def test_a_mapping_with_text_keys_replaces_the_whole_field():
  assert override('data.label_mapping={"0":0,"255":1}').data.label_mapping == {0: 0, 255: 1}


@pytest.mark.parametrize('text', ['none', 'None', 'null', ' NONE '])
def test_none_is_a_value_where_it_is_allowed(text):
  assert override('run.compile_cache=x', f'run.compile_cache={text}').run.compile_cache is None
  with pytest.raises(ConfigError, match=r'config\.train\.steps = None'):
    override(f'train.steps={text}')


@pytest.mark.parametrize(('text', 'value'), [('true', True), ('False', False), ('0', False)])
def test_switches_are_true_or_false(text, value):
  assert override(f'augment.rotate90={text}').augment.rotate90 is value


# Read as JSON these are 2024, 1.1, 1000.0 and a boolean; as a folder they are themselves.
@pytest.mark.parametrize('name', ['2024', '1.10', '1e3', 'true', '007', 'a=b', '[x]', 'ö/µ m'])
def test_a_text_field_keeps_what_was_typed(name):
  changed = override('data.train.0.phantom=none', f'data.train.0.images={name}')
  assert changed.data.train[0].images == name


def test_quotes_of_json_text_are_removed():
  assert override('model.name="pmcanet"').model.name == 'pmcanet'


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('optim.learnig_rate=1', 'config.optim has no field learnig_rate; did you mean learning_rate?'),
    ('optm.momentum=1', 'config has no field optm; did you mean optim?'),
    ('data.train.0.image=a', 'config.data.train.0 has no field image; did you mean images?'),
    ('loss.terms.ce.wieght=1', 'config.loss.terms.ce has no field wieght; did you mean weight?'),
    ('optim={"learnig_rate":1}', 'config.optim has no field learnig_rate; did you mean learning'),
    ('data.train=[{"image":"a"}]', 'config.data.train.0 has no field image; did you mean images?'),
    ('zzz=1', 'config has no field zzz (fields: task, data,'),
    ('=1', 'config has no field  (fields: task, data,'),
    ('train.steps', 'needs a value, as in --config.train.steps=VALUE'),
    ('train.steps.x=1', 'config.train.steps is a single value'),
    ('train.steps=many', "config.train.steps = 'many': should be a valid integer"),
    ('train.steps=1.5', 'config.train.steps = 1.5'),
    ('train.steps=0', 'config.train.steps = 0: should be greater than 0'),
    ('train.seed=2147483648', 'should be less than 2147483648'),
    ('optim.learning_rate=NaN', 'config.optim.learning_rate = nan: should be a finite number'),
    ('optim.optimizer=adan', "config.optim.optimizer = 'adan': should be 'sgd', 'adam', 'adamw',"),
    ('loss.terms.loss.weight=1', "'loss' is logged already"),
    ('data.patch=(64)', 'config.data.patch = [64]: Tuple should have at least 2 items'),
    ('data.patch=(1,2,3,4)', 'config.data.patch'),
    ('data.patch=64', 'config.data.patch = 64'),
    ('data.train.1.images=a', 'config.data.train has elements 0 to 0, not 1'),
    ('data.train.-1.images=a', 'config.data.train has elements 0 to 0, not -1'),
    # isdigit() is true of a superscript, int() refuses it.
    ('data.train.².images=a', 'config.data.train has elements 0 to 0, not ²'),
    ('data.label_mapping={"a":0}', 'config.data.label_mapping.a'),
    ('mesh=3', 'config.mesh = 3'),
    ('task.classes=["a"]', 'config.task.classes'),
    ('task.activation=tanh', "'softmax' or 'sigmoid'"),
  ],
)
def test_a_wrong_override_is_answered_with_what_is_allowed(text, message):
  with pytest.raises(ConfigError) as caught:
    override(text)
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)


def test_a_long_value_is_shortened_in_the_message():
  with pytest.raises(ConfigError) as caught:
    override('train.steps=' + '[' * 1000)
  assert len(str(caught.value)) < 300


def _numeric_fields(section=DEFAULT, prefix=''):
  for name in type(section).model_fields:
    value = getattr(section, name)
    path = f'{prefix}{name}'
    if isinstance(value, pydantic.BaseModel):
      yield from _numeric_fields(value, f'{path}.')
    elif isinstance(value, int | float) and not isinstance(value, bool):
      yield path
    elif isinstance(value, tuple) and all(isinstance(v, int | float) for v in value):
      yield from [path, f'{path}.0'] if value else []


NUMERIC = [*_numeric_fields(), 'optim.clip_norm', 'predict.tile', 'task.ignore_value']
TEXTS = st.one_of(
  st.text(max_size=12),
  st.text(alphabet='0123456789.eE+-_()[]{},":naNINfi ', max_size=12),
  st.integers().map(str),
  st.floats().map(repr),
  st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
  ).map(json.dumps),
)


def test_there_are_numeric_fields_in_most_sections():
  assert {path.split('.')[0] for path in NUMERIC} >= {
    'task', 'data', 'augment', 'loss', 'optim', 'train', 'predict', 'mesh', 'run',
  }  # fmt: skip


def _accepted_or_config_error(text):
  """What is accepted must survive the way to disk; everything else must be a ConfigError."""
  try:
    config = override(text)
  except ConfigError:
    return
  assert Config.model_validate_json(config_io.to_json(config)) == config


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NUMERIC), TEXTS)
@example('train.steps', '[' * 100_000)  # deeper than the JSON parser goes
@example('train.steps', '9' * 5_000)  # longer than int() converts
@example('optim.learning_rate', '1' + '0' * 400)  # an integer beyond the floats
def test_any_value_of_a_numeric_field_is_accepted_or_a_config_error(path, text):
  _accepted_or_config_error(f'{path}={text}')


NAMES = sorted({name for path in NUMERIC for name in path.split('.')})
KEYS = st.one_of(
  st.sampled_from([*NAMES, 'images', 'phantom', 'terms', 'ce', 'options', 'label_mapping']),
  st.sampled_from(['', '0', '-1', '--1', '²', '٣', '00', ' 0', '99999999999999999999']),
  st.text(max_size=4).filter(lambda key: '=' not in key),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(KEYS, max_size=5).map('.'.join), st.sampled_from(['1', 'x', '{}', '[]', 'none']))
@example('data.train.².images', 'x')
@example('data.train.--1', '1')
@example('predict.tile.0', '1')
@example('optim.clip_norm.x', '1')
def test_any_dotted_path_is_accepted_or_a_config_error(path, text):
  _accepted_or_config_error(f'{path}={text}')


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
