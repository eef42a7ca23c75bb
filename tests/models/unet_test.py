"""U-Net: parameter counts, receptive field, gradients, modes, split rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emseg_jax.models.unet import UNet

KEYS = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}

# One shape for most tests, so that they share compiled functions.
SHAPE = (2, 64, 32, 1)


def _normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def _variables(model):
  """Random values as at initialisation, without compiling an initialisation."""
  shapes = jax.eval_shape(lambda: model.init(KEYS, jnp.zeros(SHAPE), train=True))
  rng = np.random.default_rng(0)

  def fill(path, shape):
    if path[-1].key == 'kernel':
      return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)
    return np.full(shape, path[-1].key in ('scale', 'var'), np.float32)

  return jax.tree_util.tree_map_with_path(lambda path, s: fill(path, s.shape), shapes)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _apply(model, variables, image, train, dropout_key=KEYS['dropout']):
  rngs = {'dropout': dropout_key}
  return model.apply(variables, image, train=train, mutable=['batch_stats'], rngs=rngs)


def _value_and_gradient(model, params, stats, image, train):
  """((loss, logits), gradient) of an arbitrary loss."""

  def loss(params):
    out, _ = model.apply({'params': params, **stats}, image, train=train, mutable=['batch_stats'])
    return jnp.mean(jnp.sin(out['logits'] + image)), out['logits']

  return jax.value_and_grad(loss, has_aux=True)(params)


_value_and_gradient_jit = jax.jit(_value_and_gradient, static_argnums=(0, 4))


# The convolutions have 5888 output channels; batch norm adds two parameters to each.
@pytest.mark.parametrize(('norm', 'expected'), [('none', 31_030_658), ('batch', 31_042_434)])
def test_the_number_of_parameters_is_that_of_the_paper(norm, expected):
  model = UNet(2, norm=norm)
  image = jnp.zeros((1, 16, 16, 1))
  params = jax.eval_shape(lambda: model.init(KEYS, image, train=True))['params']
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


def test_an_odd_size_is_padded_with_zeros_at_the_end_and_cropped():
  model = UNet(2, width=1 / 16)
  image = _normal(2, 57, 30, 1)
  padded = np.pad(image, ((0, 0), (0, 7), (0, 2), (0, 0)))  # to 64 x 32, multiples of 16
  logits = _apply(model, _variables(model), image, False)[0]['logits']
  whole = _apply(model, _variables(model), padded, False)[0]['logits']
  np.testing.assert_allclose(logits, whole[:, :57, :30], atol=1e-5)


@functools.cache
def _rows_that_matter():
  """For each of 16 neighbouring output rows, which of 256 input rows have a gradient.

  All weights and inputs are positive, so that no ReLU and no cancellation hides a dependency. Max
  pooling passes one voxel of four on: several draws and channels and a sum over a row of output
  reach all of them.
  """
  model = UNet(1, width=1 / 16)
  params = jax.tree.map(np.abs, _variables(model)['params'])
  draws = 2
  image = np.random.default_rng(0).uniform(size=(16 * draws, 256, 16, 1)).astype(np.float32)
  rows = np.tile(np.arange(16), draws)

  def chosen(image):
    logits = model.apply({'params': params}, image, train=False)['logits']
    return jnp.sum(logits[jnp.arange(len(rows)), 112 + rows])

  gradient = jax.jit(jax.grad(chosen))(image)
  matters = (gradient != 0).any(axis=(2, 3)).reshape(draws, 16, 256).any(axis=0)
  return [np.flatnonzero(m) for m in np.asarray(matters)]


def test_a_cell_of_the_divisor_depends_on_the_receptive_field_around_it():
  # Rows 112 to 127 are a cell; (204 - 16) / 2 = 94 rows of context on each side.
  rows = np.concatenate(_rows_that_matter())
  assert (rows.min(), rows.max()) == (112 - 94, 127 + 94)


def test_a_block_with_its_context_equals_the_whole_image():
  model = UNet(2, width=1 / 16)
  image = _normal(1, 256, 16, 1)
  whole = _apply(model, _variables(model), image, False)[0]['logits']
  # 96 is the multiple of 16 above the 94 voxels of context.
  block = _apply(model, _variables(model), image[:, 16:240], False)[0]['logits']
  np.testing.assert_allclose(block[:, 96:128], whole[:, 112:144], atol=1e-5)
  short = _apply(model, _variables(model), image[:, 32:224], False)[0]['logits']
  assert np.abs(short[:, 80:112] - whole[:, 112:144]).max() > 1e-5


@pytest.mark.parametrize('norm', ['none', 'batch'])
def test_every_parameter_learns(norm):
  model = UNet(2, width=1 / 16, norm=norm)
  variables = dict(_variables(model))
  params = variables.pop('params')
  learns = jax.tree.map(lambda p: np.zeros(p.shape, bool), params)
  for seed in range(3):
    image = _normal(*SHAPE, seed=seed)
    _, grads = _value_and_gradient_jit(model, params, variables, image, True)
    learns = jax.tree.map(lambda a, g: a | (np.abs(g) > 1e-6), learns, grads)
  stuck = {
    jax.tree_util.keystr(path)
    for path, leaf in jax.tree_util.tree_leaves_with_path(learns)
    if not leaf.any()
  }
  # Batch norm subtracts what a bias before it adds: it matters in evaluation only.
  before_norm = {name for name in stuck if name.endswith("['conv']['bias']")}
  assert stuck == (before_norm if norm == 'batch' else set())
  assert len(before_norm) == (18 if norm == 'batch' else 0)  # 9 double convolutions


def test_biases_before_batch_norm_matter_in_evaluation():
  model, image = UNet(2, width=1 / 16, norm='batch'), _normal(*SHAPE)
  variables = _variables(model)
  moved = jax.tree.map(np.copy, variables)
  moved['params']['down1']['block1']['conv']['bias'] += 1
  before, after = (_apply(model, v, image, False)[0]['logits'] for v in (variables, moved))
  assert np.abs(before - after).max() > 1e-3


def test_without_norm_and_dropout_training_and_evaluation_are_the_same():
  model = UNet(2, width=1 / 16)
  image = _normal(*SHAPE)
  logits = [_apply(model, _variables(model), image, train)[0]['logits'] for train in (True, False)]
  np.testing.assert_array_equal(*logits)


def test_batch_norm_uses_and_updates_the_statistics_as_the_mode_says():
  model = UNet(2, width=1 / 16, norm='batch')
  variables, image = _variables(model), 3 + _normal(*SHAPE)
  trained, updates = _apply(model, variables, image, True)
  evaluated, kept = _apply(model, variables, image, False)
  jax.tree.map(np.testing.assert_array_equal, kept['batch_stats'], variables['batch_stats'])
  stats = updates['batch_stats']['down1']['block1']['norm']
  assert np.abs(stats['mean']).max() > 1e-3  # it started from 0
  assert np.abs(trained['logits'] - evaluated['logits']).max() > 1e-3


def test_dropout_is_drawn_from_its_stream_in_training_only():
  model = UNet(2, width=1 / 16, dropout=0.5)
  variables, image = _variables(model), _normal(*SHAPE)
  keys = [jax.random.key(s) for s in (0, 0, 1)]
  first, same, other = (_apply(model, variables, image, True, k)[0]['logits'] for k in keys)
  np.testing.assert_array_equal(first, same)
  assert np.abs(first - other).max() > 1e-4
  plain = _apply(UNet(2, width=1 / 16), variables, image, False)[0]['logits']
  np.testing.assert_array_equal(_apply(model, variables, image, False)[0]['logits'], plain)
