"""A network that starts from a bundle: everything, but for first and last layers that differ."""

import bundle_support
import jax
import numpy as np
import pytest
from model_support import apply, normal

from emseg_jax import bundle as bundle_lib
from emseg_jax import experiment, models, pretrained, start_table
from emseg_jax.errors import ConfigError, DataError


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
  path = tmp_path_factory.mktemp('own') / 'model'
  return path, bundle_lib.write_bundle(path, bundle_support.make_bundle())


def shapes(**options):
  return bundle_lib.read.variable_shapes(bundle_support.make_config(**options))


def matched(folder, ours, theirs):
  path = folder / 'params.safetensors'
  path.write_bytes(pretrained.own.tensors(theirs, pretrained.own.About(1, 9, 'scale')))
  return pretrained.load_pretrained(ours, path)


def totals(rows):
  found = {}
  for row in rows:
    found[row.status] = found.get(row.status, 0) + row.values
  return found


def test_the_same_network_gets_all_arrays_bit_by_bit(stored):
  path, bundle = stored
  for source in (path, str(path), path / 'params.safetensors'):
    loaded, rows = pretrained.load_pretrained(shapes(), source)
    expected = {name: bundle.variables[name] for name in loaded}
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    assert {row.status for row in rows} == {'loaded'}
  assert totals(rows)['loaded'] == sum(x.size for x in jax.tree.leaves(bundle.variables))


def test_another_number_of_classes_begins_a_new_last_layer(stored):
  path, bundle = stored
  ours = shapes(classes=('a', 'b', 'c'))
  loaded, rows = pretrained.load_pretrained(ours, path)
  fresh = [row for row in rows if row.status == 'fresh']
  assert {row.target for row in fresh} == {'params/head/kernel', 'params/head/bias'}
  assert {row.note for row in fresh} == {'2 -> 3 outputs'}
  head = loaded['params'].pop('head')
  assert head['bias'] is ours['params']['head']['bias']
  rest = {k: v for k, v in bundle.variables['params'].items() if k != 'head'}
  jax.tree.map(np.testing.assert_array_equal, loaded['params'], rest)
  table = pretrained.format_table(rows)
  assert 'fresh: 2 -> 3 outputs' in table


def test_equal_channels_give_what_one_channel_gave_and_the_reverse(stored, tmp_path):
  path, bundle = stored
  model = models.create_model('unet', 2, width=1 / 64)
  image = normal(1, 16, 16, 1)
  expected = apply(model, bundle.variables, image, False)[0]['logits']
  loaded, rows = pretrained.load_pretrained(shapes(channels=3), path)
  assert [row.note for row in rows if row.status == 'adapted'] == ['1 -> 3 input channels']
  found = apply(model, loaded, np.repeat(image, 3, -1), False)[0]['logits']
  assert np.std(expected) > 0.01
  np.testing.assert_allclose(found, expected, atol=1e-4)
  colour = bundle_support.make_bundle(bundle_support.make_config(channels=3))
  bundle_lib.write_bundle(tmp_path / 'colour', colour)
  back, _ = pretrained.load_pretrained(shapes(), tmp_path / 'colour')
  expected = apply(model, colour.variables, np.repeat(image, 3, -1), False)[0]['logits']
  found = apply(model, back, image, False)[0]['logits']
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_normalisation_that_the_weights_expect_is_known(stored):
  assert pretrained.trained_with(stored[0]) == 'dataset'
  assert pretrained.trained_with('vgg.h5') == 'caffe'
  assert pretrained.trained_with('resnet.safetensors') == 'imagenet'


def test_a_network_of_another_width_is_refused(stored):
  with pytest.raises(ConfigError, match=r'only first and last layers may differ'):
    pretrained.load_pretrained(
      shapes(model={'name': 'unet', 'options': {'width': 1 / 32}}), stored[0]
    )


def test_modules_that_only_one_of_both_has_are_listed(tmp_path):
  ours = {'params': {'a': {'w': np.zeros(2)}, 'b': {'w': np.zeros(3), 'v': np.zeros(4)}}}
  theirs = {'params': {'a': {'w': np.ones(2)}, 'c': {'w': np.ones(5)}}}
  loaded, rows = matched(tmp_path, ours, theirs)
  np.testing.assert_array_equal(loaded['params']['a']['w'], np.ones(2))
  assert loaded['params']['b'] == ours['params']['b']
  assert totals(rows) == {'loaded': 2, 'unused': 5, 'fresh': 7}
  with pytest.raises(ConfigError, match='no module of the network is in it; it has c'):
    matched(tmp_path, ours, {'params': {'c': theirs['params']['c']}})


@pytest.mark.parametrize(
  'theirs', [{'w': np.ones(2)}, {'w': np.ones(2), 'v': np.ones(4), 'u': np.ones(1)}]
)
def test_a_module_must_have_the_same_arrays(tmp_path, theirs):
  ours = {'params': {'b': {'w': np.zeros(2), 'v': np.zeros(4)}}}
  with pytest.raises(ConfigError, match=r'params/b/. is .* in the file and .* in the network'):
    matched(tmp_path, ours, {'params': {'b': theirs}})


def test_a_damaged_file_is_refused(stored, tmp_path):
  path = tmp_path / 'params.safetensors'
  path.write_bytes((stored[0] / 'params.safetensors').read_bytes()[:-10])
  with pytest.raises(DataError, match='damaged or cut short'):
    pretrained.load_pretrained(shapes(), path)


def test_a_training_starts_from_a_bundle(stored):
  path, bundle = stored
  model = bundle_support.NARROW | {'init_from': str(path)}
  config = bundle_support.make_config(model=model, classes=('a', 'b', 'c'))
  table = start_table.describe_start(config)
  assert 'outputs' in table
  state = experiment.set_up(config).initial_state()
  flat = pretrained.own.flat({'params': state.params})
  for name, array in pretrained.own.flat({'params': bundle.variables['params']}).items():
    if 'head' not in name:
      np.testing.assert_array_equal(flat[name], array)
