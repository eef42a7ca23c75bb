"""Overrides by dotted path: any text is a valid configuration or a ConfigError."""

import json
from pathlib import Path

import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from emseg_jax import config_io
from emseg_jax.config import Config
from emseg_jax.errors import ConfigError

ROOT = Path(__file__).parent.parent
DEFAULT = Config()


def override(*overrides, config=DEFAULT):
  return config_io.apply_overrides(config, overrides)


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
    ('task.activation=tanh', "'softmax', 'sigmoid', 'multilabel' or 'affinities'"),
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
