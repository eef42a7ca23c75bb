"""DeepLabv3+'s pyramid and decoder against PyTorch with the same weights and hand computation."""

import functools

import jax
import jax.numpy as jnp
import model_support
import numpy as np
import pytest

from emseg_jax.models import layers
from emseg_jax.models.aspp import Aspp, Decoder, SeparableBlock
from emseg_jax.models.layers import keras_conv_block


def _evaluate(module, variables, *inputs):
  return jax.jit(lambda v, *x: module.apply(v, *x, train=False))(variables, *inputs)


class _Torch:
  """The same layers in PyTorch, which reads the variables by name."""

  def __init__(self, torch, variables, epsilon):
    self.torch, self.variables, self.epsilon = torch, variables, epsilon

  def image(self, x):
    return self.torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)

  def leaf(self, *path, collection='params'):
    tree = self.variables[collection]
    for key in path:
      tree = tree[key]
    return self.torch.tensor(np.asarray(tree))

  def conv(self, x, *path, dilation=1, groups=1):
    kernel = self.leaf(*path, 'kernel').permute(3, 2, 0, 1)
    *parents, last = path
    tree = functools.reduce(lambda t, k: t[k], path, self.variables['params'])
    bias = self.leaf(*parents, last, 'bias') if 'bias' in tree else None
    padding = dilation * (kernel.shape[-1] // 2)
    conv2d = self.torch.nn.functional.conv2d
    return conv2d(x, kernel, bias, padding=padding, dilation=dilation, groups=groups)

  def norm_relu(self, x, *path):
    mean, var = (self.leaf(*path, s, collection='batch_stats') for s in ('mean', 'var'))
    scale, bias = (self.leaf(*path, s) for s in ('scale', 'bias'))
    norm = self.torch.nn.functional.batch_norm
    return norm(x, mean, var, scale, bias, eps=self.epsilon).relu()

  def block(self, x, *path, dilation=1):
    return self.norm_relu(self.conv(x, *path, 'conv', dilation=dilation), *path, 'norm')

  def separable(self, x, *path, dilation=1):
    x = self.conv(x, *path, 'depthwise', dilation=dilation, groups=x.shape[1])
    x = self.norm_relu(x, *path, 'depthwise_norm')
    return self.block(x, *path, 'pointwise')

  def resize(self, x, size):
    resize = self.torch.nn.functional.interpolate
    return resize(x, size=size, mode='bilinear', align_corners=False)


# The blocks of the two networks, the epsilon of their norms, the kernel of their projection.
STYLES = {
  'separable': (layers.ConvBlock, SeparableBlock, 1e-5, 3),
  'dense': (keras_conv_block, keras_conv_block, 1e-3, 1),
}


@pytest.mark.parity
@pytest.mark.parametrize('style', STYLES)
def test_the_pyramid_equals_pytorch(style):
  torch = pytest.importorskip('torch')
  block, atrous, epsilon, projection = STYLES[style]
  module = Aspp(5, (2, 3, 7), block=block, atrous=atrous, projection=projection)
  x = model_support.normal(2, 9, 6, 4)  # rate 7 reaches beyond the image
  variables = model_support.random_values(module, x, train=True)
  there = _Torch(torch, variables, epsilon)
  image = there.image(x)
  mean = torch.nn.functional.adaptive_avg_pool2d(image, 1)
  branches = [there.resize(there.block(mean, 'pool'), (9, 6)), there.block(image, 'point')]
  dilated = there.separable if style == 'separable' else there.block
  branches += [dilated(image, f'rate{rate}', dilation=rate) for rate in (2, 3, 7)]
  expected = there.block(torch.cat(branches, 1), 'project').permute(0, 2, 3, 1)
  np.testing.assert_allclose(_evaluate(module, variables, x), expected, atol=2e-5)


@pytest.mark.parity
@pytest.mark.parametrize('style', STYLES)
def test_the_decoder_equals_pytorch(style):
  torch = pytest.importorskip('torch')
  block, refine, epsilon, _ = STYLES[style]
  module = Decoder(5, 3, factor=2, block=block, refine=refine)
  low, deep = model_support.normal(2, 8, 6, 7), model_support.normal(2, 4, 3, 4, seed=1)
  variables = model_support.random_values(module, low, deep, train=True)
  there = _Torch(torch, variables, epsilon)
  reduced = there.block(there.image(low), 'low')
  x = torch.cat([reduced, there.resize(there.image(deep), (8, 6))], 1)
  refined = there.separable if style == 'separable' else there.block
  expected = refined(refined(x, 'refine1'), 'refine2').permute(0, 2, 3, 1)
  np.testing.assert_allclose(_evaluate(module, variables, low, deep), expected, atol=2e-5)


def test_a_dilated_separable_block_spreads_a_voxel_to_nine_at_the_distance_of_its_rate():
  module = SeparableBlock(1, dilation=3)
  x = np.zeros((1, 11, 11, 1), np.float32)
  x[0, 5, 5] = 1
  variables = dict(model_support.variables(module, x.shape))
  params = jax.tree.map(np.copy, variables['params'])
  params['depthwise']['kernel'][:] = 1
  params['pointwise']['conv']['kernel'][:] = 1
  expected = np.zeros_like(x)
  expected[:, 2::3, 2::3] = 1  # 2, 5 and 8 of 11
  got = _evaluate(module, {**variables, 'params': params}, x)
  np.testing.assert_allclose(got, expected, atol=1e-4)  # the norms divide by sqrt(1 + 1e-5)


def test_the_mean_of_the_image_reaches_every_voxel():
  module = Aspp(2, (1,), block=layers.ConvBlock, atrous=layers.ConvBlock, projection=1)
  x = model_support.normal(2, 3, 5, 4)
  variables = jax.tree.map(np.copy, model_support.variables(module, x.shape))
  # The projection takes the first branch as it is, and nothing of the others.
  kernel = np.zeros((1, 1, 6, 2), np.float32)
  kernel[0, 0, :2] = np.eye(2)
  variables['params']['project']['conv']['kernel'] = kernel
  to_features = variables['params']['pool']['conv']['kernel'][0, 0]
  expected = np.maximum(x.mean(axis=(1, 2)) @ to_features, 0)
  assert (expected > 0).any()
  got = _evaluate(module, variables, jnp.asarray(x))
  assert got.shape == (2, 3, 5, 2)
  # The two norms divide by sqrt(1 + 1e-5).
  whole = np.broadcast_to(expected[:, None, None, :], got.shape)
  np.testing.assert_allclose(got, whole, rtol=1e-4)
