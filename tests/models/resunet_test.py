"""Res-U-Net: parameter counts; a block and the whole network against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_support import apply, moved, normal, shapes, size, variables

from emseg_jax.models.resunet import ResidualBlock, ResUNet


# 'plain' is the Keras network with three input channels, one class. The residual bridge adds a 1x1
# convolution of 256 to 256 channels and a norm: 256 · 256 + 256 + 2 · 256 = 66,304.
@pytest.mark.parametrize(
  ('bridge', 'expected', 'statistics'),
  [('plain', 4_715_761, 4_723_057 - 4_715_761), ('residual', 4_782_065, 7_296 + 512)],
)
def test_the_number_of_parameters_is_that_of_the_keras_network(bridge, expected, statistics):
  model = ResUNet(1, bridge=bridge)
  values = shapes(model, (1, 32, 32, 3))
  assert size(values['params']) == expected
  assert size(values['batch_stats']) == statistics


class _Torch:
  """The network's layers in PyTorch, with the same weights."""

  def __init__(self, values, train):
    self.torch = pytest.importorskip('torch')
    self.functional = self.torch.nn.functional
    self.train = train
    self.params = jax.tree.map(self.torch.tensor, values['params'])
    self.stats = jax.tree.map(self.torch.tensor, values['batch_stats'])

  def conv(self, x, params, stride=1):
    kernel = params['kernel'].permute(3, 2, 0, 1)
    padding = kernel.shape[-1] // 2  # on both sides
    return self.functional.conv2d(x, kernel, params['bias'], stride=stride, padding=padding)

  def norm(self, x, params, stats):
    scale, bias = params['norm']['scale'], params['norm']['bias']
    mean, var = stats['norm']['mean'].clone(), stats['norm']['var'].clone()
    return self.functional.batch_norm(x, mean, var, scale, bias, training=self.train, eps=1e-3)

  def norm_relu_conv(self, x, params, stats, stride=1):
    return self.conv(self.norm(x, params, stats).relu(), params['conv'], stride)

  def shortcut(self, x, params, stats, stride=1):
    return self.norm(self.conv(x, params['conv'], stride), params, stats)

  def block(self, x, params, stats, stride=1):
    y = self.norm_relu_conv(x, params['block1'], stats['block1'], stride)
    y = self.norm_relu_conv(y, params['block2'], stats['block2'])
    return y + self.shortcut(x, params['shortcut'], stats['shortcut'], stride)

  def network(self, x, bridge):
    params, stats = self.params, self.stats

    def named(layer, x, name, **kwargs):
      return layer(x, params[name], stats[name], **kwargs)

    y = self.conv(x, params['stem_conv'])
    x = named(self.norm_relu_conv, y, 'stem_block') + named(self.shortcut, x, 'stem_shortcut')
    skips = []
    for level in (2, 3, 4, 5):
      skips.append(x)
      x = named(self.block, x, f'down{level}', stride=2)
    if bridge == 'residual':
      x = named(self.block, x, 'bridge')
    else:
      x = named(self.norm_relu_conv, x, 'bridge1')
      x = named(self.norm_relu_conv, x, 'bridge2')
    for level in (4, 3, 2, 1):
      x = self.functional.interpolate(x, scale_factor=2, mode='nearest')
      x = named(self.block, self.torch.cat([x, skips[level - 1]], 1), f'up{level}')
    return self.conv(x, params['head'])


def _nchw(x):
  return np.ascontiguousarray(np.moveaxis(x, -1, 1))


@pytest.mark.parity
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [(12, 8), (9, 7)])
def test_a_residual_block_is_that_of_pytorch_with_symmetric_padding(size, stride, train):
  torch = pytest.importorskip('torch')
  block, x = ResidualBlock(4, stride), normal(3, *size, 5)
  values = moved(variables(block, x.shape))
  run = jax.jit(lambda v, x: block.apply(v, x, train=train, mutable=['batch_stats'])[0])
  reference = _Torch(values, train)
  expected = reference.block(torch.tensor(_nchw(x)), reference.params, reference.stats, stride)
  np.testing.assert_allclose(_nchw(run(values, x)), expected.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize('bridge', ['plain', 'residual'])
def test_the_network_is_that_of_pytorch_with_the_same_weights(bridge):
  torch = pytest.importorskip('torch')
  model, image = ResUNet(2, width=1 / 8, bridge=bridge), normal(2, 48, 32, 3)
  values = moved(variables(model, image.shape))
  logits = apply(model, values, image, False)[0]['logits']
  expected = _Torch(values, False).network(torch.tensor(_nchw(image)), bridge).numpy()
  scale = np.abs(expected).max()
  np.testing.assert_allclose(_nchw(logits) / scale, expected / scale, atol=1e-5)


def test_batch_norm_has_the_momentum_of_keras():
  block, x = ResidualBlock(4), 3 + 2 * normal(2, 8, 8, 3)
  run = jax.jit(lambda v, x: block.apply(v, x, train=True, mutable=['batch_stats'])[1])
  stats = run(variables(block, x.shape), x)['batch_stats']['block1']['norm']
  np.testing.assert_allclose(stats['mean'], 0.01 * x.mean((0, 1, 2)), rtol=1e-4)
  np.testing.assert_allclose(stats['var'], 0.99 + 0.01 * x.var((0, 1, 2)), rtol=1e-4)


def test_the_block_does_not_normalise_before_the_shortcut_or_after_the_sum():
  # With kernels of zero the biases remain: of the second convolution, and of the shortcut's norm,
  # where the shortcut's own bias stands out as (bias - mean) / sqrt(var + 1e-3).
  block, x = ResidualBlock(1), normal(1, 4, 4, 1)
  values = jax.tree.map(np.zeros_like, variables(block, x.shape))
  params = values['params']
  params['block2']['conv']['bias'] = np.array([-5.0], np.float32)
  params['shortcut']['conv']['bias'] = np.array([2.0], np.float32)
  params['shortcut']['norm'] = {k: np.array([3.0], np.float32) for k in ('scale', 'bias')}
  values['batch_stats']['shortcut']['norm']['var'] = np.array([4 - 1e-3], np.float32)
  y = block.apply(values, x, train=False)
  np.testing.assert_allclose(y, jnp.full((1, 4, 4, 1), -5 + 3 * 2 / 2 + 3), atol=1e-5)


def test_the_receptive_field_is_that_of_a_walk_through_the_layers():
  spans = []
  for row in range(16):
    first = last = row
    for _ in range(4):
      first, last = (first - 2) // 2, (last + 2) // 2
    first, last = first - 2, last + 2
    for _ in range(4):  # the second convolution, then the strided one
      first, last = 2 * (first - 1) - 1, 2 * (last + 1) + 1
    spans.append(last + 2 - (first - 2) + 1)
  assert ResUNet(1).receptive_field == (max(spans),) * 2
