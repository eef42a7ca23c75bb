"""Res-CR-Net: parameter counts, blocks against PyTorch and hand computation, LSTM directions."""

import functools

import jax
import jax.numpy as jnp
import model_support
import numpy as np
import pytest

from emseg_jax.models import rescrnet
from emseg_jax.models.rescrnet import ResCRNet


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, variables, x):
  return module.apply(variables, x, train=False)


# Computed from the authors' program, layer by layer.
@pytest.mark.parametrize(
  ('classes', 'channels', 'expected'), [(3, 1, 58_662), (3, 3, 59_020), (4, 3, 59_165)]
)
def test_the_number_of_parameters_is_that_of_the_authors_program(classes, channels, expected):
  shapes = model_support.shapes(ResCRNet(classes), (1, 8, 8, channels))
  assert model_support.size(shapes['params']) == expected
  assert model_support.size(shapes['batch_stats']) == 1632


def test_without_lstm_only_their_parameters_are_missing():
  # 2 directions x 2 axes of two kernels 3·3·4 and a bias of 4.
  count = model_support.count(ResCRNet(3, lstm_blocks=0), (1, 8, 8, 1))
  assert count == 58_662 - 2 * 2 * (2 * 3 * 3 * 4 + 4)


def test_a_second_lstm_block_has_a_convolution_and_lstms_of_its_own():
  count = model_support.count(ResCRNet(3, lstm_blocks=2), (1, 8, 8, 1))
  assert count == 58_662 + (3 * 3 + 3) + 2 * 2 * (2 * 3 * 3 * 4 + 4)


def test_added_branches_have_the_hand_computed_number_of_parameters():
  depthwise = 3**2 + 5**2 + 7**2  # per channel
  first = (depthwise + 3 * (16 + 16)) + 3 * 32  # one channel to 16 in three branches, norms
  second = 16 * depthwise + 3 * (16 * 16 + 16)
  stem = first + second + (16 + 16 + 32)  # shortcut and its norm
  other = 32 + second + 3 * 32 + second + (16 * 16 + 16 + 32)
  head = 16 * 3 + 3 + 2 * 2 * (2 * 3 * 3 * 4 + 4)
  model = ResCRNet(3, merge='add')
  assert model_support.count(model, (1, 8, 8, 1)) == stem + 5 * other + head


@pytest.mark.parity
@pytest.mark.parametrize(('size', 'dilation'), [(3, 1), (5, 3)])
def test_a_branch_is_two_dilated_separable_convolutions_of_pytorch(size, dilation):
  torch = pytest.importorskip('torch')
  x = model_support.normal(2, 11, 13, 4)
  branch = rescrnet.Branch(6, size, dilation, jnp.float32)
  variables = model_support.random_values(branch, x, train=False)
  params, stats = variables['params'], variables['batch_stats']['norm']

  def weight(kernel):  # [k, k, in, out] -> [out, in, k, k]
    return torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())

  def separable(x, params):
    x = torch.nn.functional.conv2d(
      x,
      weight(params['depthwise']['kernel']),
      padding='same',
      dilation=dilation,
      groups=x.shape[1],
    )
    point = params['pointwise']
    return torch.nn.functional.conv2d(x, weight(point['kernel']), torch.from_numpy(point['bias']))

  y = separable(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), params['conv1'])
  mean, var, scale, bias = (
    torch.from_numpy(a)
    for a in (stats['mean'], stats['var'], params['norm']['scale'], params['norm']['bias'])
  )
  y = torch.nn.functional.batch_norm(y, mean, var, scale, bias, eps=1e-3)
  y = separable(torch.nn.functional.leaky_relu(y, 0.1), params['conv2'])
  out = _apply(branch, variables, x)
  np.testing.assert_allclose(out, y.numpy().transpose(0, 2, 3, 1), atol=1e-4)


def _block(stem, merge='concat'):
  return rescrnet.ConvResBlock(3, (3, 5), (1, 2), merge, stem=stem, dtype=jnp.float32)


@pytest.mark.parametrize('stem', [True, False])
def test_the_shortcut_sees_the_input_before_normalisation(stem):
  x = model_support.normal(2, 5, 6, 4)
  variables = model_support.random_values(_block(stem), x, train=False)
  params, stats = variables['params'], variables['batch_stats']['shortcut_norm']
  for branch in ('branch1', 'branch2'):
    params[branch]['conv2']['pointwise'] = jax.tree.map(
      np.zeros_like, params[branch]['conv2']['pointwise']
    )
  out = _apply(_block(stem), variables, x)
  shortcut = x @ params['shortcut']['kernel'][0, 0] + params['shortcut']['bias'].reshape(1, 1, 1, 6)
  norm = params['shortcut_norm']
  expected = (shortcut - stats['mean']) / np.sqrt(stats['var'] + 1e-3)  # Keras' epsilon
  np.testing.assert_allclose(out, expected * norm['scale'] + norm['bias'], atol=1e-5)


@pytest.mark.parametrize('merge', ['concat', 'add'])
def test_the_branches_see_the_normalised_input_and_are_merged(merge):
  x = model_support.normal(2, 5, 6, 4)
  block = _block(False, merge)
  variables = model_support.random_values(block, x, train=False)
  params, stats = variables['params'], variables['batch_stats']
  params['shortcut_norm'] = jax.tree.map(np.zeros_like, params['shortcut_norm'])
  normed = (x - stats['norm']['mean']) / np.sqrt(stats['norm']['var'] + 1e-3)
  normed = normed * params['norm']['scale'] + params['norm']['bias']
  activated = np.where(normed > 0, normed, 0.1 * normed)
  branches = [
    _apply(
      rescrnet.Branch(3, size, dilation, jnp.float32),
      {'params': params[name], 'batch_stats': stats[name]},
      activated,
    )
    for name, size, dilation in (('branch1', 3, 1), ('branch2', 5, 2))
  ]
  expected = np.concatenate(branches, -1) if merge == 'concat' else np.add(*branches)
  np.testing.assert_allclose(_apply(block, variables, x), expected, atol=1e-5)


LSTM = rescrnet.LstmResBlock(0.0)


def _lstm(params, x):
  return _apply(LSTM, {'params': params}, x)


def test_the_lstm_block_adds_to_its_input_itself():
  x = model_support.normal(1, 4, 5, 3)
  params = jax.tree.map(np.zeros_like, model_support.random_values(LSTM, x, train=False)['params'])
  np.testing.assert_allclose(_lstm(params, x), x, atol=1e-6)


def test_the_lstm_block_adds_both_directions_of_rows_and_columns():
  x = model_support.normal(1, 4, 5, 3)
  params = model_support.random_values(LSTM, x, train=False)['params']

  def only(axis, direction):
    others = jax.tree.map(np.zeros_like, params)
    others[axis][direction] = params[axis][direction]
    return np.asarray(_lstm(others, x)) - x

  parts = {(a, d): only(a, d) for a in ('rows', 'columns') for d in ('forward', 'backward')}
  np.testing.assert_allclose(_lstm(params, x), x + sum(parts.values()), atol=1e-5)
  assert all(np.abs(part).max() > 1e-2 for part in parts.values())


@pytest.mark.parametrize(
  ('direction', 'later'), [('forward', [2, 3, 4, 5]), ('backward', [0, 1, 2])]
)
@pytest.mark.parametrize('axis', ['rows', 'columns'])
def test_each_lstm_carries_what_it_sees_in_its_direction_only(axis, direction, later):
  x = model_support.normal(1, 6, 6, 3)
  values = model_support.random_values(LSTM, x, train=False)['params']
  params = jax.tree.map(np.zeros_like, values)
  params[axis][direction] = values[axis][direction]
  moved = x.copy()
  moved[0, 2, 2] += 1
  difference = np.abs(np.asarray(_lstm(params, moved)) - _lstm(params, x)).max(axis=(0, 3))
  steps = difference > 1e-7 if axis == 'rows' else difference.T > 1e-7
  # The kernel reaches one voxel aside in each step.
  assert steps[later, 1:4].all()
  assert not np.delete(steps, later, axis=0).any()


def test_dropout_zeroes_whole_channels():
  model = ResCRNet(2, conv_blocks=1, lstm_blocks=0, dropout=0.5)
  x = model_support.normal(2, 5, 6, 1)
  _, state = jax.jit(
    lambda variables: model.apply(
      variables,
      x,
      train=True,
      mutable=['batch_stats', 'intermediates'],
      rngs={'dropout': jax.random.key(0)},
      capture_intermediates=lambda module, _: module.name == 'Dropout_0',
    )
  )(model_support.variables(model, x.shape))
  (out,) = state['intermediates']['Dropout_0']['__call__']
  zero = np.asarray(out) == 0
  np.testing.assert_array_equal(zero.all(axis=(1, 2)), zero.any(axis=(1, 2)))
  assert 0 < zero.all(axis=(1, 2)).mean() < 1


def test_the_receptive_field_without_lstm_follows_from_kernels_and_dilations():
  assert ResCRNet(2).receptive_field is None
  # 6 blocks of two convolutions that add (7 - 1)·5 each.
  assert ResCRNet(2, lstm_blocks=0).receptive_field == (361, 361)
  options = {'conv_blocks': 2, 'lstm_blocks': 0, 'kernel_sizes': (2, 3), 'dilations': (3, 1)}
  model = ResCRNet(2, **options, width=1 / 4)
  image = model_support.normal(1, 31, 31, 1)
  variables = jax.tree.map(np.abs, model_support.variables(model, image.shape))

  @jax.jit
  @jax.grad
  def gradient(image):
    return jnp.sum(model.apply(variables, image, train=False)['logits'][0, 15, 15])

  rows, columns = np.nonzero(np.asarray(gradient(image))[0, :, :, 0])
  spans = (int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1)
  assert model.receptive_field == spans == (13, 13)  # 1 + 2·2·3


def test_as_many_dilations_as_kernel_sizes_are_needed():
  with pytest.raises(ValueError, match='kernel_sizes=\\(3, 5\\) and dilations=\\(1,\\)'):
    ResCRNet(2, kernel_sizes=(3, 5), dilations=(1,))
