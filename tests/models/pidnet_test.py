"""PIDNet: parameter counts, its parts against numpy, pooling and the whole against PyTorch."""

import jax
import model_support
import numpy as np
import pytest

from emseg_jax.models import pidnet_blocks as blocks
from emseg_jax.models.pidnet import PidNet


def _apply(module, variables, *inputs, train=False):
  def run(variables, *inputs):
    return module.apply(variables, *inputs, train=train, mutable=['batch_stats'])[0]

  return jax.jit(run)(variables, *inputs)


# The published S, M and L with both heads for training, two classes and three channels.
@pytest.mark.parametrize(
  ('size', 'expected'), [('s', 7_716_549), ('m', 28_758_725), ('l', 37_305_573)]
)
def test_the_number_of_parameters_is_that_of_the_published_network(size, expected):
  assert model_support.count(PidNet(2, size=size), (1, 64, 64, 3)) == expected


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _norm(variables, x, *path):
  params, stats = variables['params'], variables['batch_stats']
  for key in path:
    params, stats = params[key], stats[key]
  return (x - stats['mean']) / np.sqrt(stats['var'] + 1e-5) * params['scale'] + params['bias']


def _project(variables, x, name):
  """1x1 convolution and norm."""
  return _norm(variables, x @ variables['params'][name]['conv']['kernel'][0, 0], name, 'norm')


def _linear(x, factor):
  """Interpolation between half-pixel centres, one line at a time."""
  for axis in (1, 2):
    length = x.shape[axis]
    position = (np.arange(length * factor) + 0.5) / factor - 0.5
    x = np.apply_along_axis(
      lambda line, p=position: np.interp(p, np.arange(len(line)), line), axis, x
    )
  return x


def test_pixel_attention_blends_by_the_similarity_of_the_projections():
  x, y = model_support.normal(2, 8, 12, 6), model_support.normal(2, 4, 6, 6, seed=1)
  module = blocks.PixelAttention(3, 2)
  variables = model_support.random_values(module, x, y, train=True)
  key, query = _project(variables, x, 'key'), _linear(_project(variables, y, 'query'), 2)
  sigma = _sigmoid(np.sum(key * query, axis=-1, keepdims=True))
  expected = (1 - sigma) * x + sigma * _linear(y, 2)
  np.testing.assert_allclose(_apply(module, variables, x, y), expected, atol=1e-5)


def test_light_boundary_fusion_adds_each_branch_where_the_other_is_gated():
  p, i, d = (model_support.normal(2, 3, 5, 4, seed=s) for s in range(3))
  module = blocks.LightBoundaryFusion(6)
  variables = model_support.random_values(module, p, i, d, train=True)
  sigma = _sigmoid(d)
  expected = _project(variables, (1 - sigma) * i + p, 'detail')
  expected += _project(variables, i + sigma * p, 'context')
  np.testing.assert_allclose(_apply(module, variables, p, i, d), expected, atol=1e-5)


def test_boundary_fusion_takes_detail_on_the_boundary_and_context_elsewhere():
  p, i, d = (model_support.normal(2, 3, 5, 4, seed=s) for s in range(3))
  module = blocks.BoundaryFusion(6)
  variables = model_support.random_values(module, p, i, d, train=True)
  sigma = _sigmoid(d)
  x = np.maximum(_norm(variables, sigma * p + (1 - sigma) * i, 'conv', 'norm'), 0)
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  kernel = variables['params']['conv']['conv']['kernel']
  expected = sum(padded[:, a : a + 3, b : b + 5] @ kernel[a, b] for a in range(3) for b in range(3))
  np.testing.assert_allclose(_apply(module, variables, p, i, d), expected, atol=1e-5)


def test_zeros_beyond_the_image_count_in_the_mean():
  # The first window of 5 rows and columns has 3 of each inside, the second 5.
  expected = np.array([[9, 15], [15, 25]], np.float32).reshape(1, 2, 2, 1) / 25
  got = blocks.average_pool(np.ones((1, 5, 5, 1), np.float32), 5, 2)
  np.testing.assert_allclose(got[:, :2, :2], expected, rtol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize(('window', 'stride'), [(5, 2), (9, 4), (17, 8)])
@pytest.mark.parametrize('size', [(8, 16), (5, 11), (1, 3)])
def test_average_pooling_equals_pytorch(window, stride, size):
  torch = pytest.importorskip('torch')
  x = model_support.normal(2, *size, 3)
  pool = torch.nn.AvgPool2d(window, stride, window // 2)
  expected = pool(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
  got = blocks.average_pool(x, window, stride)
  assert got.shape == expected.shape
  np.testing.assert_allclose(got, expected, atol=1e-6)


class _Torch:
  """The layers of PIDNet in PyTorch, reading the variables of a module by name."""

  def __init__(self, torch, variables, train):
    self.torch, self.f, self.train = torch, torch.nn.functional, train
    self.params, self.stats = variables['params'], variables['batch_stats']

  def inside(self, name):
    variables = {'params': self.params[name], 'batch_stats': self.stats.get(name, {})}
    return _Torch(self.torch, variables, self.train)

  def conv(self, x, name, stride=1, groups=1):
    leaves = {k: self.torch.tensor(np.asarray(v)) for k, v in self.params[name].items()}
    kernel = leaves['kernel'].permute(3, 2, 0, 1)
    padding = kernel.shape[-1] // 2
    return self.f.conv2d(x, kernel, leaves.get('bias'), stride, padding, groups=groups)

  def norm(self, x, name='norm'):
    params, stats = (
      {k: self.torch.tensor(np.array(v)) for k, v in tree[name].items()}
      for tree in (self.params, self.stats)
    )
    return self.f.batch_norm(
      x, stats['mean'], stats['var'], params['scale'], params['bias'], self.train
    )

  def resize(self, x, like):
    return self.f.interpolate(x, size=like.shape[2:], mode='bilinear', align_corners=False)

  def block(self, x, name, stride=1):
    inner = self.inside(name)
    return inner.norm(inner.conv(x, 'conv', stride))

  def pre(self, x, name, groups=1):
    inner = self.inside(name)
    return inner.conv(inner.norm(x).relu(), 'conv', groups=groups)

  def residual(self, x, name, stride=1):
    """A basic block or, with a third convolution, a bottleneck, without the last ReLU."""
    inner = self.inside(name)
    shortcut = inner.block(x, 'shortcut', stride) if 'shortcut' in inner.params else x
    if 'conv3' not in inner.params:
      return inner.block(inner.block(x, 'conv1', stride).relu(), 'conv2') + shortcut
    x = inner.block(inner.block(x, 'conv1').relu(), 'conv2', stride).relu()
    return inner.block(x, 'conv3') + shortcut

  def basics(self, x, name, stride=1):
    count = sum(key.startswith(f'{name}_') for key in self.params)
    for b in range(1, count + 1):
      x = self.residual(x, f'{name}_{b}', stride if b == 1 else 1)
      x = x.relu() if b < count else x
    return x

  def pyramid(self, x, parallel):
    first = self.pre(x, 'scale0')
    pooled = [self.f.avg_pool2d(x, *pool) for pool in ((5, 2, 2), (9, 4, 4), (17, 8, 8))]
    pooled.append(self.f.adaptive_avg_pool2d(x, 1))
    levels = [first]
    pooled = [self.resize(self.pre(level, f'scale{i + 1}'), x) for i, level in enumerate(pooled)]
    if parallel:
      joined = self.torch.cat([level + first for level in pooled], 1)
      levels.append(self.pre(joined, 'process', groups=4))
    else:
      for i, level in enumerate(pooled):
        levels.append(self.pre(level + levels[-1], f'process{i + 1}'))
    return self.pre(self.torch.cat(levels, 1), 'compress') + self.pre(x, 'shortcut')

  def pag(self, x, y):
    similarity = self.block(x, 'key') * self.resize(self.block(y, 'query'), x)
    sigma = similarity.sum(1, keepdim=True).sigmoid()
    return (1 - sigma) * x + sigma * self.resize(y, x)

  def fuse(self, p, i, d, light):
    sigma = d.sigmoid()
    if not light:
      return self.pre(sigma * p + (1 - sigma) * i, 'conv')
    return self.block((1 - sigma) * i + p, 'detail') + self.block(i + sigma * p, 'context')

  def head(self, x, name):
    inner = self.inside(name)
    return inner.conv(inner.norm(inner.pre(x, 'conv')).relu(), 'head')

  def features(self, x, light):
    """The P branch after stage 3, the D branch after stage 4, the fused branches."""
    x = self.block(self.block(x, 'stem1', 2).relu(), 'stem2', 2).relu()
    x = self.basics(self.basics(x, 'i1').relu(), 'i2', 2).relu()
    p, d = self.basics(x, 'p3'), self.basics(x, 'd3')
    x = self.basics(x, 'i3', 2).relu()
    p3 = self.inside('pag3').pag(p, self.block(x, 'compress3'))
    d = d + self.resize(self.block(x, 'diff3'), d)
    x = self.basics(x, 'i4', 2).relu()
    p = self.inside('pag4').pag(self.basics(p3.relu(), 'p4'), self.block(x, 'compress4'))
    d = self.residual(d.relu(), 'd4') if light else self.basics(d.relu(), 'd4')
    d4 = d + self.resize(self.block(x, 'diff4'), d)
    p, d = self.residual(p.relu(), 'p5'), self.residual(d4.relu(), 'd5')
    x = self.residual(self.residual(x, 'i5_1', 2), 'i5_2')
    x = self.resize(self.inside('pyramid').pyramid(x, light), d)
    return p3, d4, self.inside('fusion').fuse(p, x, d, light)


@pytest.mark.parity
@pytest.mark.parametrize('parallel', [True, False])
def test_pyramid_pooling_equals_pytorch(parallel):
  torch = pytest.importorskip('torch')
  x = model_support.normal(2, 8, 16, 5)  # multiples of 8
  module = blocks.PyramidPooling(3, 4, parallel)
  variables = model_support.random_values(module, x, train=True)
  there = _Torch(torch, variables, train=False)
  expected = there.pyramid(torch.tensor(x).permute(0, 3, 1, 2), parallel).permute(0, 2, 3, 1)
  np.testing.assert_allclose(_apply(module, variables, x), expected, atol=2e-5)


@pytest.mark.parity
@pytest.mark.parametrize('size', ['s', 'l'])
def test_the_network_equals_its_published_flow_in_pytorch(size):
  torch = pytest.importorskip('torch')
  model, image = PidNet(3, size=size, width=1 / 8), model_support.normal(2, 128, 64, 1)
  variables = model_support.random_values(model, image, train=True)
  there = _Torch(torch, variables, train=True)
  image_there = torch.tensor(image).permute(0, 3, 1, 2)
  features = there.inside('branches').features(image_there, size == 's')
  got = _apply(model, variables, image, train=True)
  heads = {'aux/p': 'head_p', 'boundary': 'head_d', 'logits': 'head'}
  assert got.keys() == heads.keys()
  for (name, head), x in zip(heads.items(), features, strict=True):
    expected = there.resize(there.head(x, head), image_there).permute(0, 2, 3, 1)
    np.testing.assert_allclose(got[name], expected, atol=1e-2, err_msg=name)  # norms over 4 values
