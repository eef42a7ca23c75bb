"""EM-net of Khadangi et al.: parameter counts, TLU, units, how each variant joins them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_support import KEYS, count, equations, moved, normal, size, variables

from emseg_jax.models.emnet_khadangi import TLU, EmNetKhadangi, Layer, Unit, UnitNew, UnitV2x4

# The numbers of parameters of the networks that the authors released.
COUNTS = {
  'v1_bn': 5_394_649,
  'v1_bn_2x': 6_797_801,
  'v1_2x': 7_010_377,
  'v1_4x': 28_012_681,
  'v2': 7_576_201,
  'v2_2x': 14_871_977,
  'v2_4x': 33_827_209,
}


BATCH = 5  # no kernel has that size: arrays that begin with it are no parameters


@functools.cache
def _traced(model):
  """(number of parameters, shapes of what an initialisation in training draws)."""
  image = jnp.zeros((BATCH, 32, 48, 1))
  trace = jax.make_jaxpr(lambda x: model.init(KEYS, x, train=True), return_shape=True)
  jaxpr, tree = trace(image)
  draws = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == 'random_bits']
  return size(tree['params']), [e.params['shape'] for e in draws]


@pytest.mark.parametrize('variant', COUNTS)
def test_the_number_of_parameters_is_that_of_the_released_network(variant):
  assert _traced(EmNetKhadangi(1, variant=variant))[0] == COUNTS[variant]


def test_the_default_is_the_largest_variant():
  assert EmNetKhadangi(1).variant == 'v2_4x'


# The head of v2_4x has 32 inputs. For three classes it has 9 · 32 · 6 + 6 + 2 · 6 + 6 · 3 + 3 =
# 1,767 parameters instead of 9 · 32 · 2 + 2 + 2 · 2 + 2 + 1 = 585.
def test_the_head_has_two_channels_per_class():
  assert count(EmNetKhadangi(3), (1, 32, 32, 1)) == COUNTS['v2_4x'] - 585 + 1_767


def test_tlu_has_a_slope_for_each_sign_and_channel_and_starts_as_a_relu():
  x = np.array([[-2, -2], [3, 3], [0, -0.5]], np.float32)
  start = TLU().init(jax.random.key(0), x)
  np.testing.assert_array_equal(TLU().apply(start, x), np.maximum(x, 0))
  params = {'negative_scale': np.array([0.5, -1.0]), 'scale': np.array([2.0, 10.0])}
  y = TLU().apply({'params': params}, x)
  np.testing.assert_allclose(y, [[-1, 2], [6, 30], [0, 0.5]])


def test_the_gradients_of_tlu_are_those_by_hand():
  x = np.array([[-2, -2], [3, 3], [-1, 4]], np.float32)
  weights = np.array([[1, 10], [100, 1000], [7, 3]], np.float32)
  params = {'negative_scale': jnp.array([0.5, -1.0]), 'scale': jnp.array([2.0, 10.0])}
  to_params, to_x = jax.grad(
    lambda p, x: jnp.sum(weights * TLU().apply({'params': p}, x)), argnums=(0, 1)
  )(params, x)
  # dL/dα = Σ w·x over x < 0, dL/dβ over x ≥ 0, dL/dx = w·α or w·β.
  np.testing.assert_allclose(to_params['negative_scale'], [1 * -2 + 7 * -1, 10 * -2])
  np.testing.assert_allclose(to_params['scale'], [100 * 3, 1000 * 3 + 3 * 4])
  np.testing.assert_allclose(to_x, [[0.5, -10], [200, 10_000], [3.5, 30]])


def test_the_gradient_of_tlu_at_0_is_beta():
  params = {'negative_scale': jnp.array([0.5]), 'scale': jnp.array([2.0])}
  at_zero = jax.grad(lambda x: jnp.sum(TLU().apply({'params': params}, x)))(jnp.zeros((1, 1)))
  assert at_zero.item() == 2


def _layer(x, values, *path):
  """Convolution, norm if there is one, TLU or ReLU: from the definitions."""
  params, stats = values['params'], values.get('batch_stats', {})
  for name in path:
    params, stats = params[name], stats.get(name, {})
  kernel = params['conv']['kernel']
  before = (kernel.shape[0] - 1) // 2  # an even kernel has its zeros at the end
  after = kernel.shape[0] - 1 - before
  padded = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
  rows, columns = x.shape[1:3]
  y = params['conv']['bias'] + sum(
    padded[:, p : p + rows, q : q + columns] @ kernel[p, q]
    for p, q in np.ndindex(*kernel.shape[:2])
  )
  if 'norm' in params:
    norm, stats = params['norm'], stats['norm']
    y = (y - stats['mean']) / np.sqrt(stats['var'] + 1e-3) * norm['scale'] + norm['bias']
  if 'tlu' in params:
    return np.where(y < 0, params['tlu']['negative_scale'] * y, params['tlu']['scale'] * y)
  return np.maximum(y, 0)


def _unit(x, values, *path):
  a = _layer(x, values, *path, 'layer1')
  c = _layer(_layer(a, values, *path, 'layer2'), values, *path, 'layer3')
  return np.concatenate([a, c], -1)


def _unit_new(x, values, *path):
  b = _layer(_layer(x, values, *path, 'layer1'), values, *path, 'layer2')
  d = _layer(_layer(b, values, *path, 'layer3'), values, *path, 'layer4')
  return np.concatenate([b, d], -1)


def _unit_v2_4x(x, values, *path):
  a = _layer(x, values, *path, 'layer1')
  c = np.concatenate([a, _layer(a, values, *path, 'layer2')], -1)
  return np.concatenate([c, _layer(c, values, *path, 'layer3')], -1)


@pytest.mark.parametrize(
  ('unit', 'reference', 'channels'),
  [
    (Unit(3), _unit, 6),
    (Unit(3, norm=True), _unit, 6),
    (UnitNew(3), _unit_new, 6),
    (UnitV2x4(3), _unit_v2_4x, 12),
    (Layer(3, activation='relu'), _layer, 3),
  ],
  ids=['Unit', 'Unit with norm', 'UnitNew', 'UnitV2-4X', 'ReLU'],
)
def test_a_unit_joins_the_outputs_of_its_layers_in_the_order_of_the_authors(
  unit, reference, channels
):
  x = normal(1, 6, 5, 2)
  values = moved(variables(unit, x.shape))
  y = jax.jit(lambda v, x: unit.apply(v, x, train=False))(values, x)
  assert y.shape == (1, 6, 5, channels)
  np.testing.assert_allclose(y, reference(x, values), rtol=1e-4, atol=1e-4)


def _pooled(x):
  b, rows, columns, c = x.shape
  return x.reshape(b, rows // 2, 2, columns // 2, 2, c).max((2, 4))


N, U = _unit_new, _unit
# Units of a level, which of their outputs are pooled, the bridge's branches, which outputs of each
# of them go up.
JOINS = {
  'v1_bn': ((U, U), (0, 1), ((U, U), (U, U)), (1,)),
  'v1_bn_2x': ((U, U, U, U), (1, 3), ((U, U, U, U),), (1, 3)),
  'v1_2x': ((U, N), (0, 1), ((U, U), (N, U)), (1,)),
  'v1_4x': ((U, N), (0, 1), ((U, U), (N, U)), (1,)),
  'v2': ((N, N), (1,), ((U, N), (N, U)), (1,)),
  'v2_2x': ((N, N), (1,), ((U, N), (N, U)), (1,)),
  'v2_4x': ((_unit_v2_4x,), (0,), ((_layer, _layer),), (1,)),
}


def _captured(model, values, image):
  captured = model.apply(values, image, train=False, capture_intermediates=True)[1]
  layers = captured['intermediates']
  return {name: c['__call__'][0] for name, c in layers.items() if name != '__call__'}


@pytest.mark.parametrize('variant', JOINS)
def test_a_variant_joins_units_levels_and_branches_as_the_authors_did(variant):
  model, image = EmNetKhadangi(1, variant=variant, width=1 / 16), normal(1, 32, 16, 1)
  values = moved(variables(model, image.shape))
  outputs = jax.jit(lambda v, x: _captured(model, v, x))(values, image)
  outputs = jax.tree.map(np.asarray, outputs)
  units, pooled, branches, up = JOINS[variant]

  def check(name, expected):
    # Relative to the largest value: activations grow from level to level.
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(outputs[name] / scale, expected / scale, atol=1e-5, err_msg=name)

  x = image
  for level in (1, 2, 3, 4):
    for i, unit in enumerate(units, start=1):
      check(f'down{level}_{i}', unit(x, values, f'down{level}_{i}'))
      x = outputs[f'down{level}_{i}']
    x = _pooled(np.concatenate([outputs[f'down{level}_{i + 1}'] for i in pooled], -1))
  top = []
  for b, branch in enumerate(branches, start=1):
    y = x
    for i, unit in enumerate(branch, start=1):
      check(f'bridge{b}_{i}', unit(y, values, f'bridge{b}_{i}'))
      y = outputs[f'bridge{b}_{i}']
    top += [outputs[f'bridge{b}_{i + 1}'] for i in up]
  x = np.concatenate(top, -1)
  for level in (4, 3, 2, 1):
    check(f'upconv{level}', _layer(np.kron(x, np.ones((1, 2, 2, 1))), values, f'upconv{level}'))
    x = np.concatenate([outputs[f'upconv{level}'], outputs[f'down{level}_{len(units)}']], -1)
    check(f'up{level}_1', _layer(x, values, f'up{level}_1'))
    check(f'up{level}_2', _layer(outputs[f'up{level}_1'], values, f'up{level}_2'))
    x = outputs[f'up{level}_2']
  check('squeeze', _layer(x, values, 'squeeze'))


# Channels of the arrays after which the authors drop.
@pytest.mark.parametrize(
  ('variant', 'channels'),
  [
    ('v1_bn', [512]),
    ('v1_bn_2x', []),
    ('v1_2x', [512]),
    ('v1_4x', [1024, 512]),
    ('v2', []),
    ('v2_2x', []),
    ('v2_4x', [128, 256, 512, 1024, 1024]),
  ],
)
def test_dropout_takes_whole_channels_where_the_authors_have_it(variant, channels):
  drawn = [shape for shape in _traced(EmNetKhadangi(1, variant=variant))[1] if shape[0] == BATCH]
  assert drawn == [(BATCH, 1, 1, c) for c in channels]


# 3x3 convolutions in a row: of a level, of the longest branch of the bridge.
@pytest.mark.parametrize(
  ('variant', 'level', 'bridge'),
  [
    ('v1_bn', 3 + 3, 3 + 3),
    ('v1_bn_2x', 4 * 3, 4 * 3),
    ('v1_2x', 3 + 4, 4 + 3),
    ('v1_4x', 3 + 4, 4 + 3),
    ('v2', 4 + 4, 3 + 4),
    ('v2_2x', 4 + 4, 3 + 4),
    ('v2_4x', 3, 2),
  ],
)
def test_the_receptive_field_is_that_of_a_walk_through_the_layers(variant, level, bridge):
  spans = []
  for row in range(16):
    first, last = row - 1, row + 1  # the head
    for _ in range(4):
      first, last = (first - 2) // 2, (last + 2 + 1) // 2
    first, last = first - bridge, last + bridge
    for _ in range(4):
      first, last = 2 * first - level, 2 * last + 1 + level
    spans.append(last - first + 1)
  assert EmNetKhadangi(1, variant=variant).receptive_field == (max(spans),) * 2
