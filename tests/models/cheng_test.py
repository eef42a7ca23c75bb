"""Cheng's networks: parameter counts, blocks against numpy, transposed convolution against flax."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import model_support
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from emseg_jax.models import cheng
from emseg_jax.models.cheng import Cheng2D, Cheng3D


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, variables, x):
  mode = {'train': False} if isinstance(module, cheng.EncodeBlock) else {}
  return module.apply(variables, x, **mode)


# Computed from the figure of the paper and from the re-implementation, layer by layer.
@pytest.mark.parametrize(
  ('model', 'expected'),
  [
    (Cheng2D(2), 616_397),
    (Cheng2D(2, layout='code'), 591_909),
    (Cheng3D(2), 821_997),
    (Cheng3D(2, layout='code'), 788_293),
  ],
)
def test_the_number_of_parameters_is_that_of_figure_or_program(model, expected):
  shapes = model_support.shapes(model, (1, *(16,) * model.rank, 1))
  assert model_support.size(shapes['params']) == expected
  # A mean and a variance for the channels before and after the first convolutions of each block.
  blocks = cheng.ENCODER[model.layout]
  stats = 2 * (sum((17, *blocks[:-1])) + sum(blocks))
  assert model_support.size(shapes['batch_stats']) == stats


@pytest.mark.parametrize(('stochastic', 'expected'), [(True, 16), (False, 8)])
def test_the_divisor_has_whole_cells_at_each_downsampling(stochastic, expected):
  assert Cheng2D(2, stochastic=stochastic).divisor == (expected, expected)
  assert Cheng3D(2, stochastic=stochastic).divisor == (expected, expected, expected)


def test_a_narrow_network_takes_images_of_many_channels():
  # The stem hands the image on: a shortcut of zeros can add channels but not remove any.
  shapes = model_support.shapes(Cheng2D(2, width=1 / 16), (1, 16, 16, 9))['params']
  assert shapes['encode1']['convs2']['conv1']['kernel'].shape == (1, 3, 10, 5)


def _along(x, kernel, axis, stride):
  """Convolution with kernel [3, C, F] along one axis of [B, *spatial, C].

  Output n is centred on input n, or with a stride of 2 sees 2n to 2n + 2. The other axes keep
  their even positions.
  """
  for other in range(1, x.ndim - 1):
    if other != axis and stride == 2:
      x = np.take(x, range(0, x.shape[other], 2), other)
  lines = np.moveaxis(x, axis, 0)
  size = len(lines)
  out = np.zeros((size // stride, *lines.shape[1:-1], kernel.shape[-1]), np.float32)
  for n in range(size // stride):
    for tap in range(3):
      position = n - 1 + tap if stride == 1 else 2 * n + tap
      if 0 <= position < size:
        out[n] += lines[position] @ kernel[tap]
  return np.moveaxis(out, 0, axis)


def _factorised(x, params, stride):
  """The last axis' convolution first."""
  outputs = []
  for i in range(x.ndim - 2):
    conv = params[f'conv{i + 1}']
    kernel = conv['kernel'].reshape(3, *conv['kernel'].shape[-2:])
    outputs.append(_along(x, kernel, x.ndim - 2 - i, stride) + conv['bias'])
  return np.concatenate(outputs, -1)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('spatial', [(4, 6), (4, 6, 2)])
def test_factorised_convolutions_work_along_one_axis_each(spatial, stride):
  x = model_support.normal(2, *spatial, 3)
  module = cheng.FactorisedConv(8, stride, jnp.float32)
  variables = model_support.random_values(module, x)
  expected = _factorised(x, variables['params'], stride)
  np.testing.assert_allclose(_apply(module, variables, x), expected, atol=1e-5)


def test_the_first_convolutions_get_what_is_left_of_the_channels():
  module, x = cheng.FactorisedConv(8, 1, jnp.float32), np.zeros((1, 2, 2, 2, 3))
  params = model_support.random_values(module, x)['params']
  assert [params[f'conv{i}']['kernel'].shape for i in (1, 2, 3)] == [
    (1, 1, 3, 3, 3),
    (1, 3, 1, 3, 3),
    (3, 1, 1, 3, 2),
  ]


def _norm_act(x, params, stats):
  norm = params['norm']
  x = (x - stats['norm']['mean']) / np.sqrt(stats['norm']['var'] + 1e-3)  # Keras' epsilon
  x = x * norm['scale'] + norm['bias']
  return np.where(x > 0, x, params['slope'] * x)


@pytest.mark.parametrize('down', [False, True])
def test_an_encoding_block_is_two_activated_pairs_and_a_shortcut(down):
  x = model_support.normal(2, 8, 4, 3)
  module = cheng.EncodeBlock(6, down, True, 0.5, jnp.float32)
  variables = model_support.random_values(module, x, train=False)
  params, stats = variables['params'], variables['batch_stats']
  y = _norm_act(x, params['act1'], stats['act1'])
  y = _factorised(y, params['convs1'], 2 if down else 1)
  y = _norm_act(y, params['act2'], stats['act2'])
  y = _factorised(y, params['convs2'], 1)
  if down:
    y += x[:, ::2, ::2] @ params['shortcut']['kernel'][0, 0] + params['shortcut']['bias']
  else:
    y[..., :3] += x
  np.testing.assert_allclose(_apply(module, variables, x), y, atol=1e-4)


def test_the_identity_shortcut_adds_channels_of_zeros():
  x = model_support.normal(2, 4, 4, 3)
  module = cheng.EncodeBlock(5, False, True, 0.0, jnp.float32)
  variables = model_support.random_values(module, x, train=False)
  variables['params']['convs2'] = jax.tree.map(np.zeros_like, variables['params']['convs2'])
  out = _apply(module, variables, x)
  np.testing.assert_array_equal(out[..., :3], x)
  np.testing.assert_array_equal(out[..., 3:], 0)


def test_the_shortcut_is_downsampled_at_random_in_training_only_and_if_wanted():
  x = model_support.normal(1, 16, 16, 2)

  def outputs(stochastic, train):
    module = cheng.EncodeBlock(4, True, stochastic, 0.0, jnp.float32)
    variables = model_support.random_values(module, x, train=False)
    return [
      model_support.apply(module, variables, x, train, jax.random.key(seed))[0] for seed in (0, 1)
    ]

  assert np.abs(np.subtract(*outputs(True, True))).max() > 0.1
  np.testing.assert_array_equal(*outputs(True, False))
  np.testing.assert_array_equal(*outputs(False, True))


@pytest.mark.parametrize('spatial', [(3, 4), (2, 3, 4)])
def test_the_transposed_convolution_is_that_of_flax(spatial):
  x = model_support.normal(2, *spatial, 3)
  module = cheng.TransposedConv(5, jnp.float32)
  variables = model_support.random_values(module, x)
  reference = nn.ConvTranspose(5, (3,) * len(spatial), (2,) * len(spatial), padding='SAME')
  np.testing.assert_allclose(
    _apply(module, variables, x), _apply(reference, variables, x), atol=1e-5
  )


def test_the_transposed_convolution_spreads_a_voxel_over_the_next_three():
  x = np.zeros((1, 3, 3, 1), np.float32)
  x[0, 1, 1] = 1
  kernel = np.arange(1, 10, dtype=np.float32).reshape(3, 3, 1, 1)
  params = {'kernel': kernel, 'bias': np.zeros(1, np.float32)}
  out = _apply(cheng.TransposedConv(1, jnp.float32), {'params': params}, x)
  expected = np.zeros((6, 6))
  expected[2:5, 2:5] = kernel[::-1, ::-1, 0, 0]
  np.testing.assert_array_equal(out[0, :, :, 0], expected)


def test_a_bottleneck_keeps_the_variance_of_its_input():
  # There is no activation in the decoder that would lose half of it.
  x = model_support.normal(2, 12, 12, 64)
  module = cheng.Bottleneck(64, jnp.float32)
  params = jax.jit(module.init)(model_support.KEYS, x)
  out = np.asarray(_apply(module, params, x))[:, 1:-1, 1:-1]  # zeros are padded at the border
  assert 0.8 < np.var(out) < 1.25


def test_rows_split_over_devices_are_not_gathered():
  mesh = jax.make_mesh(
    (2, 2), ('data', 'space'), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4]
  )
  split = NamedSharding(mesh, PartitionSpec('data', 'space'))
  everywhere = NamedSharding(mesh, PartitionSpec())

  class DownAndUp(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = cheng.EncodeBlock(4, True, True, 0.0, jnp.float32, name='down')(x, train=True)
      return cheng.TransposedConv(2, jnp.float32, name='up')(x)

  x, module = model_support.normal(2, 16, 8, 2), DownAndUp()
  params = model_support.random_values(module, x)['params']

  def gradient(params, x):
    def loss(params):
      rngs = model_support.KEYS
      out, _ = module.apply({'params': params}, x, mutable=['batch_stats'], rngs=rngs)
      return jnp.mean(jnp.sin(out + x))

    return jax.grad(loss)(params)

  compiled = jax.jit(gradient, in_shardings=(everywhere, split)).lower(params, x).compile()
  assert not re.search(r'all-gather|all-to-all', compiled.as_text())
  assert re.search(r'collective-permute', compiled.as_text())  # the exchange of border rows
