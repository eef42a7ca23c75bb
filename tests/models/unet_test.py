"""U-Net: parameter counts, receptive field, gradients, modes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_support import apply, count, normal, variables

from emseg_jax.models.unet import UNet

# One shape for most tests, so that they share compiled functions.
SHAPE = (2, 64, 32, 1)


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
  assert count(UNet(2, norm=norm), (1, 16, 16, 1)) == expected


def test_an_odd_size_is_padded_with_zeros_at_the_end_and_cropped():
  model = UNet(2, width=1 / 16)
  image = normal(2, 57, 30, 1)
  padded = np.pad(image, ((0, 0), (0, 7), (0, 2), (0, 0)))  # to 64 x 32, multiples of 16
  logits = apply(model, variables(model, SHAPE), image, False)[0]['logits']
  whole = apply(model, variables(model, SHAPE), padded, False)[0]['logits']
  np.testing.assert_allclose(logits, whole[:, :57, :30], atol=1e-5)


@functools.cache
def _rows_that_matter():
  """For each of 16 neighbouring output rows, which of 256 input rows have a gradient.

  All weights and inputs are positive, so that no ReLU and no cancellation hides a dependency. Max
  pooling passes one voxel of four on: several draws and channels and a sum over a row of output
  reach all of them.
  """
  model = UNet(1, width=1 / 16)
  params = jax.tree.map(np.abs, variables(model, SHAPE)['params'])
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
  image = normal(1, 256, 16, 1)
  whole = apply(model, variables(model, SHAPE), image, False)[0]['logits']
  # 96 is the multiple of 16 above the 94 voxels of context.
  block = apply(model, variables(model, SHAPE), image[:, 16:240], False)[0]['logits']
  np.testing.assert_allclose(block[:, 96:128], whole[:, 112:144], atol=1e-5)
  short = apply(model, variables(model, SHAPE), image[:, 32:224], False)[0]['logits']
  assert np.abs(short[:, 80:112] - whole[:, 112:144]).max() > 1e-5


@pytest.mark.parametrize('norm', ['none', 'batch'])
def test_every_parameter_learns(norm):
  model = UNet(2, width=1 / 16, norm=norm)
  stats = dict(variables(model, SHAPE))
  params = stats.pop('params')
  learns = jax.tree.map(lambda p: np.zeros(p.shape, bool), params)
  for seed in range(3):
    image = normal(*SHAPE, seed=seed)
    _, grads = _value_and_gradient_jit(model, params, stats, image, True)
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
  model, image = UNet(2, width=1 / 16, norm='batch'), normal(*SHAPE)
  values = variables(model, SHAPE)
  moved = jax.tree.map(np.copy, values)
  moved['params']['down1']['block1']['conv']['bias'] += 1
  before, after = (apply(model, v, image, False)[0]['logits'] for v in (values, moved))
  assert np.abs(before - after).max() > 1e-3


def test_without_norm_and_dropout_training_and_evaluation_are_the_same():
  model = UNet(2, width=1 / 16)
  values, image = variables(model, SHAPE), normal(*SHAPE)
  logits = [apply(model, values, image, train)[0]['logits'] for train in (True, False)]
  np.testing.assert_array_equal(*logits)


def test_batch_norm_uses_and_updates_the_statistics_as_the_mode_says():
  model = UNet(2, width=1 / 16, norm='batch')
  values, image = variables(model, SHAPE), 3 + normal(*SHAPE)
  trained, updates = apply(model, values, image, True)
  evaluated, kept = apply(model, values, image, False)
  jax.tree.map(np.testing.assert_array_equal, kept['batch_stats'], values['batch_stats'])
  stats = updates['batch_stats']['down1']['block1']['norm']
  assert np.abs(stats['mean']).max() > 1e-3  # it started from 0
  assert np.abs(trained['logits'] - evaluated['logits']).max() > 1e-3


def test_dropout_is_drawn_from_its_stream_in_training_only():
  model = UNet(2, width=1 / 16, dropout=0.5)
  values, image = variables(model, SHAPE), normal(*SHAPE)
  keys = [jax.random.key(s) for s in (0, 0, 1)]
  first, same, other = (apply(model, values, image, True, k)[0]['logits'] for k in keys)
  np.testing.assert_array_equal(first, same)
  assert np.abs(first - other).max() > 1e-4
  plain = apply(UNet(2, width=1 / 16), values, image, False)[0]['logits']
  np.testing.assert_array_equal(apply(model, values, image, False)[0]['logits'], plain)
