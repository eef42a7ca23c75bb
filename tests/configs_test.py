"""Every shipped configuration builds, is complete, and survives the way through JSON."""

import ast
from pathlib import Path

import pytest

from emseg_jax import config_io, experiment
from emseg_jax.config import Config

# auto.py describes a folder, so it needs one; tests/auto_test.py has it.
NAMES = sorted(set(config_io.shipped()) - {'auto'})
# One with every switch and argument that a file documents.
SPECS = [*NAMES, 'pmcanet:root=DIR,cpu', 'unet:root=DIR']


def test_there_is_a_configuration_for_every_file():
  folder = Path(__file__).parent.parent / 'configs'
  files = {path.stem for path in folder.glob('*.py')} - {'__init__'}
  assert files == set(config_io.shipped())
  assert len(NAMES) >= 4


@pytest.mark.parametrize('spec', SPECS)
def test_a_shipped_configuration_builds_and_is_valid(spec):
  config = config_io.load(spec)
  assert isinstance(config, Config)
  # Validated once more as a whole: what was put together from valid sections may still clash.
  assert Config.model_validate(config.model_dump()) == config


@pytest.mark.parametrize('spec', SPECS)
def test_a_shipped_configuration_round_trips_through_json(spec, tmp_path):
  config = config_io.load(spec)
  path = tmp_path / 'config.json'
  config_io.write_text(path, config_io.to_json(config))
  assert config_io.from_json(path) == config
  assert config_io.differences(config, config_io.from_json(path)) == []


@pytest.mark.parametrize('spec', SPECS)
def test_a_shipped_configuration_names_a_network_and_options_that_exist(spec):
  experiment.validate(config_io.load(spec))


@pytest.mark.parametrize('spec', SPECS)
def test_a_shipped_configuration_reaches_its_evaluations_and_checkpoints(spec):
  train = config_io.load(spec).train
  assert train.steps % train.eval_every == 0
  assert train.eval_every % train.checkpoint_every == 0


@pytest.mark.parametrize('name', NAMES)
def test_the_docstring_of_a_configuration_gives_its_command(name):
  text = config_io.shipped()[name].read_text(encoding='utf-8')
  docstring = ast.get_docstring(ast.parse(text))
  assert f'python -m emseg_jax.main --config={name}' in docstring
  assert '--workdir=runs/' in docstring


def test_an_argument_of_a_configuration_takes_effect():
  assert config_io.load('unet:root=/x').data.train[0].labels == '/x/train-labels.tif'
  assert config_io.load('pmcanet').model.options == {}
  assert config_io.load('pmcanet:cpu').model.options == {'width': 0.25}


def test_the_configurations_of_isbi2012_do_not_train_on_what_they_validate():
  # 30 labelled sections of which 24 are given: 0-17 train, 18-23 validate.
  for name in ('pmcanet', 'unet'):
    data = config_io.load(name).data
    parts = [
      set(range(24)[slice(*map(int, source.slices.split(':')))])
      for source in (*data.train, *data.validation)
    ]
    assert parts == [set(range(18)), set(range(18, 24))]


def test_pmcanet_trains_as_its_paper_says():
  # The paper, section 4: SGD 0.9, decay 5e-4, poly 0.9 from 0.01 over 40k steps, batch 16,
  # resize 0.5-2.0, horizontal flip, ImageNet statistics, CE + 3 Dice, auxiliary head x 0.4.
  config = config_io.load('pmcanet')
  optim = config.optim
  assert (optim.optimizer, optim.momentum, optim.weight_decay) == ('sgd', 0.9, 5e-4)
  assert (optim.schedule, optim.power, optim.learning_rate) == ('poly', 0.9, 0.01)
  assert (config.train.steps, config.train.batch_size) == (40_000, 16)
  assert (config.augment.resize, config.augment.flip) == ((0.5, 2.0), 'x')
  assert (config.data.normalisation, config.data.channels) == ('imagenet', 3)
  assert {name: term.weight for name, term in config.loss.terms.items()} == {'ce': 1, 'dice': 3}
  assert config.loss.aux_weight == 0.4
