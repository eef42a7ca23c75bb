"""SegNet: parameter counts, unpooling by hand and against PyTorch, the whole network likewise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_support import apply, count, normal, variables

from emseg_jax.models.resample import max_pool
from emseg_jax.models.segnet import SegNet, unpool

# (inputs, outputs) of every convolution but the first and the last, at width 1.
ENCODER = (
  [(64, 64), (64, 128), (128, 128), (128, 256)] + [(256, 256)] * 2 + [(256, 512)] + [(512, 512)] * 5
)
DECODER = (
  [(512, 512)] * 5
  + [(512, 256), (256, 256), (256, 256), (256, 128), (128, 128)]
  + [
    (128, 64),
    (64, 64),
  ]
)


# By hand: 9 weights for each pair of channels, a bias and a scale and offset of batch norm for each
# output channel, and a mean and a variance.
@pytest.mark.parametrize(
  ('width', 'expected', 'statistics'), [(1, 29_444_166, 15_876), (0.5, 7_367_718, 7_940)]
)
def test_the_number_of_parameters_is_the_sum_of_the_layers(width, expected, statistics):
  inside = [(int(i * width), int(o * width)) for i, o in ENCODER + DECODER]
  convolutions = [(3, int(64 * width)), *inside, (int(64 * width), 2)]
  assert len(convolutions) == 26
  assert sum(9 * i * o + 3 * o for i, o in convolutions) == expected
  assert 2 * sum(o for _, o in convolutions) == statistics
  model = SegNet(2, width=width)
  assert count(model, (1, 32, 32, 3)) == expected
  assert count(model, (1, 32, 32, 3), 'batch_stats') == statistics


def test_unpooling_puts_each_voxel_where_the_first_largest_was():
  pooled_from = np.array(
    [
      [1, 2, 7, 7],  # cells: largest at the upper right; both upper ones equal
      [0, 1, 3, 7],
      [5, 5, 0, 0],  # all equal; the lower left
      [5, 5, 4, 1],
    ],
    np.float32,
  )
  x = np.array([[10, 20], [30, 40]], np.float32)
  expected = [[0, 10, 20, 0], [0, 0, 0, 0], [30, 0, 0, 0], [0, 0, 40, 0]]
  y = jax.jit(unpool)(x.reshape(1, 2, 2, 1), pooled_from.reshape(1, 4, 4, 1))
  np.testing.assert_array_equal(y.reshape(4, 4), expected)


def test_unpooling_does_not_hide_what_is_not_a_number():
  pooled_from = np.array([[1.0, np.nan], [2.0, 3.0]], np.float32).reshape(1, 2, 2, 1)
  assert np.isnan(unpool(max_pool(pooled_from), pooled_from)).any()


def _nchw(torch, x):
  return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


@pytest.mark.parity
def test_pooling_and_unpooling_are_those_of_pytorch_in_values_and_gradient():
  torch = pytest.importorskip('torch')
  functional = torch.nn.functional
  rng = np.random.default_rng(0)
  # Three values for four voxels: every cell has equal ones, many of them as its largest.
  image = rng.integers(0, 3, (2, 12, 16, 5)).astype(np.float32)
  other, weights = normal(2, 6, 8, 5), normal(2, 12, 16, 5, seed=1)
  pooled, indices = functional.max_pool2d(_nchw(torch, image), 2, return_indices=True)
  np.testing.assert_array_equal(max_pool(image), pooled.permute(0, 2, 3, 1).numpy())
  x = _nchw(torch, other).requires_grad_()
  expected = functional.max_unpool2d(x, indices, 2)
  np.testing.assert_array_equal(unpool(other, image), expected.detach().permute(0, 2, 3, 1).numpy())
  (expected * _nchw(torch, weights)).sum().backward()
  gradient = jax.grad(lambda x: jnp.sum(unpool(x, image) * weights))(other)
  np.testing.assert_array_equal(gradient, x.grad.permute(0, 2, 3, 1).numpy())


def _moved(values):
  """Biases, scales and statistics that are not 0 or 1."""
  rng = np.random.default_rng(1)

  def move(path, x):
    if x.ndim > 1:
      return x
    low, high = (0.8, 1.2) if path[-1].key in ('scale', 'var') else (-0.2, 0.2)
    return rng.uniform(low, high, x.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(move, values)


@pytest.mark.parity
def test_the_logits_are_those_of_the_same_network_built_from_the_layers_of_pytorch():
  torch = pytest.importorskip('torch')
  functional = torch.nn.functional
  model, image = SegNet(2, width=1 / 16), normal(2, 64, 96, 3)
  values = _moved(variables(model, image.shape))

  def convolve(x, path, conv, norm, relu=True):
    p, s = values['params'], values['batch_stats']
    for key in path:
      p, s = p[key], s[key]
    kernel = torch.tensor(p[conv]['kernel'].transpose(3, 2, 0, 1))
    x = functional.conv2d(x, kernel, torch.tensor(p[conv]['bias']), padding=1)
    mean, var = (torch.tensor(s[norm][k]) for k in ('mean', 'var'))
    scale, bias = (torch.tensor(p[norm][k]) for k in ('scale', 'bias'))
    x = functional.batch_norm(x, mean, var, scale, bias, eps=1e-5)
    return functional.relu(x) if relu else x

  x, indices = _nchw(torch, image), []
  for block, n in enumerate((2, 2, 3, 3, 3), start=1):
    for i in range(1, n + 1):
      x = convolve(x, ['backbone'], f'block{block}_conv{i}', f'block{block}_norm{i}')
    x, where = functional.max_pool2d(x, 2, return_indices=True)
    indices.append(where)
  for block, n in ((5, 3), (4, 3), (3, 3), (2, 2), (1, 1)):
    x = functional.max_unpool2d(x, indices[block - 1], 2)
    for i in range(1, n + 1):
      x = convolve(x, [f'up{block}_block{i}'], 'conv', 'norm')
  expected = convolve(x, ['head'], 'conv', 'norm', relu=False).permute(0, 2, 3, 1).numpy()
  logits = apply(model, values, image, False)[0]['logits']
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
