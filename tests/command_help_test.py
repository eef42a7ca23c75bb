"""--help names everything that exists, and nothing that does not."""

import re
import shlex

import pydantic

from emseg_jax import command_help, config_io, main, models, modes
from emseg_jax.config import Config, Source

HELP = command_help.text(fields=False)
HELP_FULL = command_help.text(fields=True)
REFERENCE, _, SOURCES = HELP_FULL.partition('\nCONFIGURATION\n')[2].partition('\nSOURCES: ')


def paths(section=Config, prefix='config'):
  for name, field in section.model_fields.items():
    if isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel):
      yield from paths(field.annotation, f'{prefix}.{name}')
    else:
      yield f'{prefix}.{name}'


def test_help_lists_every_network_and_every_shipped_configuration():
  for name in (*models.MODELS, *config_io.shipped()):
    assert re.search(rf'\b{re.escape(name)}\b', HELP), name


def test_help_names_every_mode_and_every_flag():
  for mode in modes.MODES:
    assert re.search(rf'^  {mode} ', HELP, re.MULTILINE), mode
  ours = set(main._define_flags()) - {'?', 'help', 'helpfull', 'helpshort', 'helpxml'}
  flags = {m[1] for m in re.finditer(r'^  --([a-z_]+)', HELP, re.MULTILINE)}
  assert flags == ours - {'only_check_args', 'flagfile', 'undefok'} | {'help'}


def test_the_overrides_in_the_help_can_be_typed_into_a_shell():
  overrides = re.findall(r'--config\.([a-z]\S+=\S+)', HELP)
  assert len(overrides) == 4
  for override in overrides:
    plain = re.sub("'[^']*'", '', override)
    assert not set(plain) & set('()[]{}*?$&;<>| "'), override  # a shell's own characters
    config_io.apply_overrides(Config(), shlex.split(override))


def test_no_line_of_the_help_is_wider_than_a_terminal():
  assert max(map(len, HELP.splitlines())) <= 100


def test_the_full_help_has_every_field_with_default_and_meaning():
  reference = REFERENCE
  listed = re.findall(r'^  --(config\.[a-z0-9_.]+)=', reference, re.MULTILINE)
  assert listed == list(paths())
  assert '--config.optim.learning_rate=0.01\n      initial rate' in reference
  assert HELP_FULL.startswith(HELP)


def test_the_fields_of_a_source_are_listed_with_their_defaults():
  listed = re.findall(r'^  ([a-z0-9_.]+)=', SOURCES, re.MULTILINE)
  assert listed == [path.removeprefix('x.') for path in paths(Source, 'x')]
  assert '  fraction=1.0\n      share of these sections' in SOURCES
  examples = re.findall(r'--config\.(\S+)', SOURCES)
  sources = config_io.apply_overrides(Config(), shlex.split(' '.join(examples))).data.train
  assert [(s.images, s.slices) for s in sources] == [('a.tif', ':80')]


def test_every_default_in_the_full_help_is_a_valid_override():
  defaults = re.findall(r'^  --config\.(.+=.*)$', REFERENCE, re.M)
  assert len(defaults) == len(list(paths()))
  for default in defaults:
    assert config_io.apply_overrides(Config(), [default]) == Config(), default
