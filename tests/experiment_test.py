"""What a configuration is turned into, and which ones are refused before anything is computed."""

import re

import jax
import numpy as np
import pytest
from model_support import variables
from safetensors.numpy import save_file
from support import pair_arguments, run_main, write_pair

from emseg_jax import experiment, models, pretrained, start_table
from emseg_jax.config import Config
from emseg_jax.errors import ConfigError

OPTIONS = {'width': 1 / 16}


def _config(name='vgg_unet', *, patch=(32, 32), **model):
  return Config.model_validate(
    {
      'model': {'name': name, 'options': OPTIONS, **model},
      'data': {'patch': patch, 'channels': 3, 'normalisation': 'imagenet'},
      'augment': {'rotate90': False},
      'task': {'classes': ['background', 'square']},
    }
  )


@pytest.fixture
def weights(tmp_path):
  """A file with the names of torchvision and random values, and the values by our names."""
  values = variables(models.create_model('vgg_unet', 2, **OPTIONS), (1, 32, 32, 3), seed=1)
  path = tmp_path / 'vgg16.safetensors'
  save_file(pretrained.to_source(values, 'torchvision vgg16'), path)
  return path, values['params']['backbone']


def test_the_encoder_starts_from_the_file_and_the_rest_at_random(weights):
  path, encoder = weights
  setup = experiment.set_up(_config(init_from=str(path)))
  state = setup.initial_state()
  jax.tree.map(np.testing.assert_array_equal, state.params['backbone'], encoder)
  fresh = experiment.set_up(_config()).initial_state()
  others = [{k: v for k, v in s.params.items() if k != 'backbone'} for s in (state, fresh)]
  jax.tree.map(np.testing.assert_array_equal, *others)
  shardings = jax.tree.map(lambda x: x.sharding, state)
  assert shardings == jax.tree.map(lambda x: x.sharding, setup.abstract_state())


def test_the_table_of_the_start_names_both_sides(weights):
  table = start_table.describe_start(_config(init_from=str(weights[0])))
  assert 'features.0.*' in table
  assert 'backbone/block1_conv1' in table
  assert 'fresh' in table


def test_training_prints_the_table_and_a_resumed_run_does_without_the_file(
  weights, tmp_path, capfd
):
  path, _ = weights
  write_pair(tmp_path / 'data')
  arguments = [
    *pair_arguments(tmp_path / 'data'),
    f'--workdir={tmp_path / "run"}',
    '--config.model.name=vgg_unet',
    '--config.model.options={"width":0.0625}',
    f'--config.model.init_from={path}',
    '--config.data.channels=3',
    '--config.data.normalisation=imagenet',
    '--config.run.report=false',
    '--config.run.tensorboard=false',
  ]
  assert run_main(*arguments, '--config.train.steps=1') == 0
  printed = capfd.readouterr().err
  assert 'features.0.*' in printed
  assert 'trained with' not in printed  # imagenet is right
  path.unlink()
  assert run_main(*arguments, '--config.train.steps=2', '--extend') == 0


def test_a_wrong_file_is_refused_before_a_run_begins(tmp_path, capfd):
  write_pair(tmp_path / 'data')
  path = tmp_path / 'missing.safetensors'
  code = run_main(
    *pair_arguments(tmp_path / 'data'),
    f'--workdir={tmp_path / "run"}',
    '--config.model.name=vgg_unet',
    '--config.model.options={"width":0.0625}',
    f'--config.model.init_from={path}',
  )
  assert code == 2
  assert 'missing.safetensors' in capfd.readouterr().err
  assert not (tmp_path / 'run').exists()


def test_a_network_without_an_encoder_cannot_start_from_a_file(weights):
  with pytest.raises(ConfigError, match=r'has no encoder .*networks that have one'):
    start_table.describe_start(_config('unet', init_from=str(weights[0])))


@pytest.mark.parametrize(
  ('file', 'normalisation', 'expected'),
  [
    ('x.safetensors', 'scale', 'imagenet'),
    ('x.h5', 'imagenet', 'caffe'),
    ('x.h5', 'caffe', None),
    ('x.safetensors', 'imagenet', None),
    (None, 'scale', None),
  ],
)
def test_another_normalisation_than_that_of_the_weights_is_remarked(file, normalisation, expected):
  config = _config(init_from=file)
  data = config.data.model_copy(update={'normalisation': normalisation})
  remarks = experiment.validate(config.model_copy(update={'data': data}))
  found = [r for r in remarks if 'trained with' in r]
  assert [r.split()[-1] for r in found] == ([f'{expected}.'] if expected else [])


def test_a_patch_of_another_rank_than_the_network_is_refused():
  with pytest.raises(ConfigError, match=r"'unet3d': needs 3 axes, data\.patch=\(32, 32\) has 2"):
    experiment.validate(_config('unet3d'))
  with pytest.raises(ConfigError, match=r"'vgg_unet': needs 2 axes.*\(8, 16, 16\) has 3"):
    experiment.validate(_config(patch=(8, 16, 16)))


def test_a_network_for_volumes_is_taken_with_a_patch_of_three_axes():
  assert experiment.validate(_config('unet3d', patch=(8, 16, 16))) == []


@pytest.mark.parametrize(
  ('section', 'fields', 'message'),
  [
    ('loss', {'terms': {'dise': {}}}, "unknown loss 'dise'; did you mean 'dice'"),
    ('loss', {'terms': {'mse': {}}}, "no output 'centreline'; it has logits"),
    ('loss', {'terms': {'x': {'loss': 'l2', 'options': {'pattern': 'zzz'}}}}, "'zzz'"),
    ('eval', {'best': 'miuo'}, "config.eval.best='miuo': is not one of the scores accuracy, miou"),
    ('eval', {'best': 'soft/dice'}, 'eval.metrics adds others'),
    ('augment', {'flip': 'zyx'}, 'flip'),
    ('predict', {'tile': (4, 32, 32)}, 'needs as many axes as data.patch'),
    ('optim', {'groups': {'^nothing': 2.0}}, 'nothing'),
    ('optim', {'warmup_steps': 2000}, 'below train.steps'),
  ],
)
def test_what_the_types_cannot_see_is_refused_before_training(section, fields, message):
  raw = _config().model_dump() | {section: fields}
  with pytest.raises(ConfigError, match=re.escape(message)):
    experiment.validate(Config.model_validate(raw))
