"""Networks by name: what is accepted, and what the errors say."""

import functools

import jax
import jax.numpy as jnp
import pytest

from emseg_jax import models

KEYS = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}


RANK = {name: len(models.create_model(name, 2).divisor) for name in models.MODELS}
# Of an image in training and of one in evaluation.
ODD_SIZES = {2: ((97, 131), (262, 400)), 3: ((5, 19, 33), (40, 136, 136))}


@functools.cache
def _traced(name, train):
  """(size, outputs, variables) of a narrow bfloat16 network, nothing computed."""
  size = ODD_SIZES[RANK[name]][0 if train else 1]
  model = models.create_model(name, 3, width=1 / 16, dtype=jnp.bfloat16)
  image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
  return size, *jax.eval_shape(lambda x: model.init_with_output(KEYS, x, train=train), image)


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('name', models.MODELS)
def test_outputs_have_the_size_of_the_input_and_are_float32_in_a_bfloat16_network(name, train):
  size, outputs, variables = _traced(name, train)
  assert 'logits' in outputs
  for key, output in outputs.items():
    assert output.dtype == jnp.float32
    if key == 'logits' or key.startswith('aux/'):
      assert output.shape == (2, *size, 3)
    elif key in ('boundary', 'centreline'):
      assert output.shape == (2, *size, 1)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


@pytest.mark.parametrize('name', models.MODELS)
def test_parameters_do_not_depend_on_the_mode_or_size_at_initialisation(name):
  assert _traced(name, True)[2] == _traced(name, False)[2]


@pytest.mark.parametrize('name', models.MODELS)
def test_every_network_states_its_divisor_and_receptive_field(name):
  model = models.create_model(name, 2)
  assert len(model.divisor) in (2, 3)
  assert all(d >= 1 for d in model.divisor)
  assert model.receptive_field is None or len(model.receptive_field) == len(model.divisor)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('unett', r"name 'unett' is not known; did you mean 'unet' or .*\? \(known: .*pmcanet.*unet"),
    ('zzz', r"name 'zzz' is not known; \(known: .*pmcanet.*unet"),
  ],
)
def test_an_unknown_network_is_answered_with_the_nearest_ones(name, message):
  with pytest.raises(ValueError, match=message):
    models.create_model(name, 2)


@pytest.mark.parametrize('option', ['num_class', 'name', 'parent', 'divisor'])
def test_what_is_no_option_of_a_network_is_refused(option):
  with pytest.raises(ValueError, match=f"option of unet '{option}' is not known;.*norm, width"):
    models.create_model('unet', 2, **{option: 1})


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'widht': 0.5}, "'widht' is not known; did you mean 'width'"),
    ({'width': 'a'}, r"options\.width='a': input should be a valid number"),
    ({'width': -1}, r'options\.width=-1: input should be greater than 0'),
    ({'width': 0}, r'options\.width=0: input should be greater than 0'),
    ({'width': float('nan')}, r'options\.width=nan: input should be a finite number'),
    ({'width': True}, r'options\.width=True: input should be a valid number'),
    ({'attention': 'foo'}, r"options\.attention='foo': .*'laca', 'eca', 'se' or 'none'"),
    ({'aux': 1}, r'options\.aux=1: input should be a valid boolean'),
    ({'bins': 3}, r'options\.bins=3: input should be a valid tuple'),
    ({'bins': [1, 0]}, r'options\.bins\[1\]=0: .*greater than or equal to 1'),
    ({'bins': [1, 2.5]}, r'options\.bins\[1\]=2.5: input should be a valid integer'),
    ({'bins': []}, r'options\.bins=\(\): .*at least 1 item'),
    ({'attention': 'se', 'laca_scope': 'region'}, r"'region' needs attention='laca', got .*'se'"),
  ],
)
def test_a_wrong_option_names_field_value_and_what_is_allowed(options, message):
  with pytest.raises(ValueError, match=message):
    models.create_model('pmcanet', 2, **options)


@pytest.mark.parametrize('num_classes', [0, -1, 2.0, '2', True])
def test_a_wrong_number_of_classes_is_refused(num_classes):
  with pytest.raises(ValueError, match='num_classes='):
    models.create_model('unet', num_classes)


def test_good_options_become_fields_and_lists_become_tuples():
  model = models.create_model('pmcanet', 3, bins=[1, 4], width=1, pool='max', dtype=jnp.bfloat16)
  assert (model.num_classes, model.bins, model.width, model.pool) == (3, (1, 4), 1, 'max')
  assert model.dtype == jnp.bfloat16
  assert model.attention == 'laca'  # untouched default
