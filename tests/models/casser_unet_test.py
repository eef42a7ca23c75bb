"""The U-Net of Casser et al.: parameter counts, up-convolution, where it drops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_support import KEYS, count, equations, normal, shapes, variables

from emseg_jax.models.casser_unet import CasserUNet


# One class: the published network. A head for three has 9 · 16 · 6 + 6 + 6 · 3 + 3 = 891 parameters
# instead of 9 · 16 · 2 + 2 + 2 + 1 = 293.
@pytest.mark.parametrize(('classes', 'expected'), [(1, 1_958_533), (3, 1_958_533 - 293 + 891)])
def test_the_number_of_parameters_is_that_of_the_authors_network(classes, expected):
  assert count(CasserUNet(classes), (1, 32, 32, 1)) == expected


def test_the_convolutions_on_the_way_up_have_the_authors_widths():
  params = shapes(CasserUNet(1), (1, 32, 32, 1))['params']
  kernels = [params[f'upconv{i}']['conv']['kernel'].shape for i in (4, 3, 2, 1)]
  assert kernels == [(2, 2, 256, 128), (2, 2, 128, 64), (2, 2, 64, 64), (2, 2, 32, 16)]


@pytest.fixture(scope='module')
def run():
  """(parameters, output of every layer by name) in evaluation."""
  model, shape = CasserUNet(1, width=1 / 4), (1, 48, 32, 1)
  rng = np.random.default_rng(1)
  values = jax.tree.map(  # biases are 0 at the start
    lambda v: v if v.any() else rng.uniform(-0.2, 0.2, v.shape).astype(np.float32),
    variables(model, shape),
  )
  apply = jax.jit(lambda v, x: model.apply(v, x, train=False, capture_intermediates=True)[1])
  captured = apply(values, normal(*shape))['intermediates']
  outputs = {name: c['__call__'][0] for name, c in captured.items() if name != '__call__'}
  return values['params'], jax.tree.map(np.asarray, outputs)


def _same_2x2(x, kernel, bias):
  """A 2x2 convolution that pads one row and column of zeros at the end, as Keras does."""
  _, rows, columns, _ = x.shape
  y = np.zeros((1, rows, columns, kernel.shape[-1]))
  for i, j in np.ndindex(rows, columns):
    y[0, i, j] = bias
    for p, q in np.ndindex(2, 2):
      if i + p < rows and j + q < columns:
        y[0, i, j] += x[0, i + p, j + q] @ kernel[p, q]
  return y


@pytest.mark.parametrize(('below', 'name'), [('bridge_2', 'upconv4'), ('up4_2', 'upconv3')])
def test_the_way_up_repeats_voxels_and_convolves_with_zeros_at_the_end(run, below, name):
  params, out = run
  repeated = np.kron(out[below], np.ones((1, 2, 2, 1)))
  layer = params[name]['conv']
  expected = np.maximum(_same_2x2(repeated, layer['kernel'], layer['bias']), 0)
  assert expected.any()
  np.testing.assert_allclose(out[name], expected, rtol=1e-4, atol=1e-4)


def test_the_head_is_a_relu_layer_and_a_product(run):
  params, out = run
  padded = np.pad(out['up1_2'], ((0, 0), (1, 1), (1, 1), (0, 0)))
  layer, last = params['squeeze']['conv'], params['head']
  y = layer['bias'] + sum(
    padded[:, p : p + 48, q : q + 32] @ layer['kernel'][p, q] for p, q in np.ndindex(3, 3)
  )
  assert y.shape[-1] == 2
  expected = np.maximum(y, 0) @ last['kernel'][0, 0] + last['bias']
  np.testing.assert_allclose(out['head'], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ('options', 'expected'),
  [({}, [(2, 4, 6, 128), (2, 2, 3, 256)]), ({'dropout': 0.0}, [])],
)
def test_dropout_is_after_level_4_and_the_bridge(options, expected):
  model, image = CasserUNet(1, **options), jnp.zeros((2, 32, 48, 1))
  jaxpr = jax.make_jaxpr(
    lambda v, x: model.apply(v, x, train=True, rngs={'dropout': KEYS['dropout']})
  )(shapes(model, image.shape), image)
  drawn = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == 'random_bits']
  assert [e.params['shape'] for e in drawn] == expected


def test_the_receptive_field_is_that_of_a_walk_through_the_layers():
  spans = []
  for row in range(16):
    first, last = row - 1, row + 1  # the head
    for _ in range(4):
      first, last = (first - 2) // 2, (last + 2 + 1) // 2
    first, last = first - 2, last + 2
    for _ in range(4):
      first, last = 2 * first - 2, 2 * last + 1 + 2
    spans.append(last - first + 1)
  assert CasserUNet(1).receptive_field == (max(spans),) * 2
