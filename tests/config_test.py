"""What a configuration accepts and what it refuses."""

import pydantic
import pytest

from emseg_jax import config
from emseg_jax.config import (
  Augment,
  Config,
  Data,
  Loss,
  LossTerm,
  Optim,
  Phantom,
  Source,
  Task,
  Train,
)
from emseg_jax.errors import ConfigError

TWO = ('background', 'foreground')


def test_the_defaults_are_a_valid_configuration_without_any_file():
  default = Config()
  assert all(source.phantom is not None for source in default.data.train)
  assert Config.model_validate(default.model_dump()) == default


def test_every_field_of_every_section_says_what_it_means():
  sections = [
    v for v in vars(config).values() if isinstance(v, type) and issubclass(v, config.Section)
  ]
  assert len(sections) == 23  # Section, Config, its 12 sections and their 9
  for section in set(sections) - {Config, config.Section}:
    for name, field in section.model_fields.items():
      assert field.description, f'{section.__name__}.{name}'


def test_a_section_cannot_be_changed():
  with pytest.raises(pydantic.ValidationError, match='frozen'):
    Config().train.steps = 5


def test_numbers_must_be_finite():
  for value in (float('nan'), float('inf')):
    with pytest.raises(pydantic.ValidationError, match='finite'):
      Optim(learning_rate=value)


@pytest.mark.parametrize(
  ('section', 'values', 'message'),
  [
    (Task, {'classes': ('one',)}, 'at least 2'),
    (Task, {'classes': ('a', 'a')}, 'must differ'),
    # uint8 labels hold the classes 0 to 254; 255 stands for "not scored".
    (Task, {'classes': tuple(map(str, range(256)))}, 'at most 255'),
    (Task, {'classes': ('a', 'b', 'c'), 'activation': 'sigmoid'}, 'exactly 2 classes, got 3'),
    (Task, {'classes': TWO, 'colours': ('#000000',)}, '1 colours for 2 classes'),
    (Task, {'classes': TWO, 'colours': ('#000000', 'red')}, 'pattern'),
    (Source, {}, 'either images'),
    (Source, {'images': 'a.tif', 'phantom': Phantom()}, 'either images'),
    (Data, {'train': ()}, 'at least 1'),
    (Data, {'patch': (0, 64)}, 'greater than 0'),
    (Data, {'channels': 2}, '1 or 3'),
    (Data, {'label_mapping': {0: -1}}, 'greater than or equal to 0'),
    (Augment, {'resize': (2.0, 0.5)}, 'low <= high'),
    (Augment, {'contrast': 1.0}, 'less than 1'),
    (Loss, {'terms': {}}, 'at least 1'),
    (LossTerm, {'weight': -1}, 'greater than or equal to 0'),
    (Optim, {'clip_norm': 0}, 'greater than 0'),
    (Train, {'seed': 2**31}, 'less than 2147483648'),
  ],
)
def test_impossible_values_are_refused(section, values, message):
  with pytest.raises(pydantic.ValidationError, match=message):
    section(**values)


@pytest.mark.parametrize('slices', [':', '3:', ':-2', '0:18', '-6:', '0:18:2'])
def test_a_range_of_sections_reads_like_a_python_slice(slices):
  assert Source(images='a.tif', slices=slices).slices == slices


# Each of them passes a lazier pattern and fails where the slice is built.
@pytest.mark.parametrize('slices', ['', '3', '-:', ':-', '::', '::0', '1:2:-1', 'a:b', '²:3'])
def test_what_is_no_range_of_sections_is_refused(slices):
  with pytest.raises(pydantic.ValidationError, match='slices'):
    Source(images='a.tif', slices=slices)


def test_255_classes_are_allowed():
  assert Task(classes=tuple(map(str, range(255)))).num_logits == 255


def test_a_sigmoid_task_has_one_logit():
  assert Task(classes=TWO, activation='sigmoid').num_logits == 1
  assert Task(classes=TWO).num_logits == 2


def test_a_label_mapping_reaches_existing_classes_only():
  with pytest.raises(pydantic.ValidationError, match=r'maps to \[2\].*0 to 1'):
    Config(task=Task(classes=TWO), data=Data(label_mapping={0: 0, 255: 2}))
  Config(task=Task(classes=TWO), data=Data(label_mapping={0: 0, 255: 1}))


def test_a_value_cannot_be_both_a_class_and_ignored():
  with pytest.raises(pydantic.ValidationError, match='ignore_value=255 is in'):
    Config(task=Task(ignore_value=255), data=Data(label_mapping={0: 0, 255: 1}))


def test_quarter_turns_need_a_square_patch():
  with pytest.raises(pydantic.ValidationError, match='square'):
    Config(data=Data(patch=(64, 96)))
  Config(data=Data(patch=(64, 96)), augment=Augment(rotate90=False))


def test_the_argument_of_a_configuration_file_sets_values_and_switches():
  parse = config.parse_arg
  assert parse('', root='data', cpu=False) == {'root': 'data', 'cpu': False}
  assert parse('cpu', root='data', cpu=False) == {'root': 'data', 'cpu': True}
  # Only the first equals sign separates.
  assert parse('root=/a/b=c,cpu', root='', cpu=False) == {'root': '/a/b=c', 'cpu': True}


@pytest.mark.parametrize('arg', ['rot=x', 'root', 'cpu=yes', 'cpu,rot'])
def test_an_unknown_argument_of_a_configuration_file_is_answered_with_the_known_ones(arg):
  with pytest.raises(ConfigError, match=r'not one of: root=\.\.\., cpu'):
    config.parse_arg(arg, root='data', cpu=False)


@pytest.mark.parametrize(
  ('section', 'values'),
  [
    (Train, {'steps': True}),
    (Optim, {'learning_rate': True}),
    (Data, {'patch': (True, 64)}),
    (Data, {'label_mapping': {0: True}}),
    (Loss, {'aux_weight': {'x': False}}),
    (Task, {'classes': (True, False)}),
    (Config, {'train': {'steps': True}}),
    (Config, {'loss': {'terms': {'ce': {'weight': True}}}}),
  ],
)
def test_true_and_false_are_no_numbers(section, values):
  with pytest.raises(pydantic.ValidationError, match='not true or false'):
    section(**values)


def test_true_and_false_are_taken_where_they_are_meant():
  assert Config(run={'report': False}, model={'options': {'a': True}}).run.report is False
  assert config.Reading(signed=True).signed
