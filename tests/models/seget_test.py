"""SegET: parameter counts, dilated centre, fusion of levels, the span of its layers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_support import moved, normal, shapes, size, variables

from emseg_jax.models.seget import DilatedCentre, SegET

# (inputs, outputs) of the 3x3 convolutions that each variant has.
DOWN = [(1, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
NARROW = [(16, 8), (32, 16), (64, 32), (128, 64)]
UP = [(320, 128), (128, 128), (160, 64), (64, 64), (80, 32), (32, 32), (40, 16), (16, 16)]
FUSION = [(224, 32), (32, 16), (32, 16), (16, 16)]
CENTRE = [(128, 256), (256, 256)]


# By hand: kernel, bias, and norm's scale and offset; then the mean and variance of each channel.
@pytest.mark.parametrize(
  ('options', 'strided', 'branch', 'expected', 'statistics'),
  [
    ({}, [16, 32, 64, 128], 64, 2_960_905, 4_848),
    ({'skip_mode': 'chain'}, [8, 16, 32, 64], 64, 2_862_985, 4_848),
    ({'branch_channels': 256}, [16, 32, 64, 128], 256, 4_929_289, 6_384),
  ],
)
def test_the_number_of_parameters_is_the_sum_of_the_layers(
  options, strided, branch, expected, statistics
):
  down = list(zip(strided, (16, 32, 64, 128), strict=True))
  layers = [*DOWN, *NARROW, *down, *CENTRE, *4 * [(256, branch)], *UP, *FUSION]
  reduce, head = (256 + 4 * branch) * 256 + 3 * 256, 16 + 1
  assert sum(9 * i * o + 3 * o for i, o in layers) + reduce + head == expected
  assert 2 * (sum(o for _, o in layers) + 256) == statistics
  model = SegET(1, **options)
  values = shapes(model, (1, 32, 32, 1))
  assert size(values['params']) == expected
  assert size(values['batch_stats']) == statistics


def _block(x, params, stats, rate=1):
  """ReLU(norm(convolution)) from its definition: a sum over taps that are `rate` voxels apart."""
  kernel = params['conv']['kernel']
  reach = rate * (kernel.shape[0] // 2)
  rows, columns = x.shape[1:3]
  padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
  y = params['conv']['bias'] * np.ones((*x.shape[:-1], 1), np.float32)
  for p, q in np.ndindex(*kernel.shape[:2]):
    y += padded[:, rate * p : rate * p + rows, rate * q : rate * q + columns] @ kernel[p, q]
  norm, stats = params['norm'], stats['norm']
  y = (y - stats['mean']) / np.sqrt(stats['var'] + 1e-3)  # Keras's epsilon
  return np.maximum(y * norm['scale'] + norm['bias'], 0)


def test_the_centre_joins_branches_of_rates_1_2_4_8_with_what_they_see():
  centre, x = DilatedCentre(6, 2, jnp.float32), normal(2, 19, 18, 3)
  values = moved(variables(centre, x.shape))
  params, stats = values['params'], values['batch_stats']
  y = jax.jit(lambda v, x: centre.apply(v, x, train=False))(values, x)
  for name in ('conv1', 'conv2'):
    x = _block(x, params[name], stats[name])
  rates = {'rate1': 1, 'rate2': 2, 'rate4': 4, 'rate8': 8}
  branches = [_block(x, params[name], stats[name], rate) for name, rate in rates.items()]
  joined = np.concatenate([x, *branches], -1)
  np.testing.assert_allclose(y, _block(joined, params['reduce'], stats['reduce']), atol=1e-4)


def test_batch_norm_has_the_momentum_of_keras():
  centre, x = DilatedCentre(4, 1, jnp.float32), normal(2, 8, 8, 3)
  values = variables(centre, x.shape)
  apply = jax.jit(lambda v, x: centre.apply(v, x, train=True, mutable=['batch_stats']))
  stats = apply(values, x)[1]['batch_stats']['conv1']['norm']
  # Without its norm the first block gives the values that are averaged.
  kernel = values['params']['conv1']['conv']['kernel']
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  y = sum(padded[:, p : p + 8, q : q + 8] @ kernel[p, q] for p, q in np.ndindex(3, 3))
  np.testing.assert_allclose(stats['mean'], 0.01 * y.mean((0, 1, 2)), atol=1e-5)
  np.testing.assert_allclose(stats['var'], 0.99 + 0.01 * y.var((0, 1, 2)), atol=1e-5)


@pytest.mark.parametrize(('skip_mode', 'inputs'), [('side', 32), ('chain', 16)])
def test_the_narrow_convolution_of_a_skip_is_on_the_way_down_in_a_chain_only(skip_mode, inputs):
  params = shapes(SegET(1, skip_mode=skip_mode), (1, 32, 32, 1))['params']
  assert params['skip2']['conv']['kernel'].shape == (3, 3, 32, 16)
  assert params['stride2']['conv']['kernel'].shape == (3, 3, inputs, 32)


def _outputs(model, values, x):
  """The output of every block, by name."""

  def run(v, x):
    captured = model.apply(v, x, train=False, capture_intermediates=True)[1]['intermediates']
    return {name: c['__call__'][0] for name, c in captured.items() if name != '__call__'}

  return run(values, x)


def _at(level, channels):
  return (96 // 2 ** (level - 1), 64 // 2 ** (level - 1), channels)


def test_every_stage_has_the_size_and_channels_of_the_design():
  model, shape = SegET(1), (2, 96, 64, 1)
  run = functools.partial(_outputs, model)
  out = jax.eval_shape(run, shapes(model, shape), jnp.zeros(shape))
  assert {name: y.shape[1:] for name, y in out.items()} == {
    **{f'down{i}_{j}': _at(i, 8 * 2**i) for i in (1, 2, 3, 4) for j in (1, 2)},
    **{f'skip{i}': _at(i, 4 * 2**i) for i in (1, 2, 3, 4)},
    **{f'stride{i}': _at(i + 1, 8 * 2**i) for i in (1, 2, 3, 4)},
    'centre': _at(5, 256),
    **{f'up{i}_{j}': _at(i, 8 * 2**i) for i in (1, 2, 3, 4) for j in (1, 2)},
    'fusion1_1': _at(2, 32),
    'fusion1_2': _at(2, 16),
    'fusion2_1': _at(1, 16),
    'fusion2_2': _at(1, 16),
    'head': (96, 64, 1),
  }


def test_the_first_fusion_joins_levels_4_3_2_and_the_second_adds_level_1():
  model, shape = SegET(1, width=1 / 8), (1, 32, 48, 1)
  values = moved(variables(model, shape))
  out = jax.jit(lambda v, x: _outputs(model, v, x))(values, normal(*shape))

  def resized(name, rows, columns):
    x = out[name]
    return jax.image.resize(x, (1, rows, columns, x.shape[-1]), 'linear')

  def block(x, name):
    return _block(np.asarray(x), values['params'][name], values['batch_stats'][name])

  first = [resized('up4_2', 16, 24), resized('up3_2', 16, 24), out['up2_2']]
  expected = block(np.concatenate(first, -1), 'fusion1_1')
  assert expected.any()
  np.testing.assert_allclose(out['fusion1_1'], expected, rtol=1e-4, atol=1e-4)
  second = [resized('fusion1_2', 32, 48), out['up1_2']]
  expected = block(np.concatenate(second, -1), 'fusion2_1')
  assert expected.any()
  np.testing.assert_allclose(out['fusion2_1'], expected, rtol=1e-4, atol=1e-4)


def _interpolated(rows, factor):
  """First and last row that linear interpolation takes these rows from."""
  first, last = ((r + 0.5) / factor - 0.5 for r in rows)
  return math.floor(first), math.floor(last) + 1


def _span(row, convolutions_per_level):
  """Input rows that one output row depends on, from layer to layer."""

  def grown(rows, by):
    return rows[0] - by, rows[1] + by

  level1 = grown((row, row), 2)
  level2 = grown(_interpolated(level1, 2), 2)
  starts = [(1, level1), (2, level2), (3, _interpolated(level2, 2)), (4, _interpolated(level2, 4))]
  reached = []
  for level, rows in starts:
    for _ in range(level, 5):
      rows = _interpolated(grown(rows, 2), 2)
    reached.append(rows)
  rows = min(r[0] for r in reached), max(r[1] for r in reached)
  rows = grown(rows, 8 + 2)
  for _ in range(4):
    rows = grown((2 * rows[0] - 1, 2 * rows[1] + 1), convolutions_per_level)
  return rows


@pytest.mark.parametrize(('skip_mode', 'convolutions'), [('side', 2), ('chain', 3)])
def test_the_receptive_field_is_that_of_a_walk_through_the_layers(skip_mode, convolutions):
  spans = [last - first + 1 for first, last in (_span(r, convolutions) for r in range(16))]
  assert SegET(1, skip_mode=skip_mode).receptive_field == (max(spans),) * 2
