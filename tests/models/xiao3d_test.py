"""The network of Xiao et al.: parameter counts, deep supervision, and all of it against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_support import KEYS, apply, count, normal, variables

from emseg_jax.models.xiao3d import Xiao3D

SHAPE = (1, 1, 8, 8, 1)
TINY = Xiao3D(2, width=1 / 8)
IMAGE = (2, 3, 8, 16, 1)


def test_the_number_of_parameters_is_that_of_the_published_implementation():
  assert count(Xiao3D(2), SHAPE) == 1_073_007
  # Three norms per residual block, one per up-convolution and two of three channels.
  blocks, up = 2 * (32 + 48 + 64) + 80, 32 + 48 + 64
  assert count(Xiao3D(2), SHAPE, 'batch_stats') == 2 * (3 * blocks + up + 2 * 3)


def test_the_patch_of_the_paper_has_auxiliary_outputs_of_its_size_in_training_only():
  model, image = Xiao3D(2), jnp.zeros((1, 20, 256, 256, 1))
  values = jax.eval_shape(lambda: model.init(KEYS, image, train=False))
  for train, names in ((True, {'logits', 'aux/level1', 'aux/level2'}), (False, {'logits'})):
    out = jax.eval_shape(
      lambda v, train=train: model.apply(v, image, train=train, mutable=['batch_stats'])[0], values
    )
    assert {n: leaf.shape for n, leaf in out.items()} == dict.fromkeys(names, (1, 20, 256, 256, 2))


@pytest.mark.parity
def test_the_network_is_the_one_written_with_pytorch_and_its_auxiliary_outputs_too():
  torch = pytest.importorskip('torch')
  functional = torch.nn.functional
  image, rng = normal(*IMAGE), np.random.default_rng(1)
  values = dict(variables(TINY, IMAGE))
  values['params'] = jax.tree.map(
    lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype('f'), values['params']
  )
  params = jax.tree.map(torch.from_numpy, values['params'])

  def conv(x, module):
    kernel = module['kernel'].permute(4, 3, 0, 1, 2)
    return functional.conv3d(x, kernel, module['bias'], padding=kernel.shape[-1] // 2)

  def conv_elu(x, module):
    norm = module['norm']
    x = conv(x, module['conv'])
    x = functional.batch_norm(x, None, None, norm['scale'], norm['bias'], training=True, eps=1e-3)
    return functional.elu(x)

  def residual(x, name):
    module = params[name]
    long = conv_elu(conv_elu(x, module['conv1']), module['conv2'])
    return long + conv_elu(x, module['shortcut'])

  def up(x, factor=2):
    return functional.interpolate(x, scale_factor=(1, factor, factor), mode='nearest')

  x, skips = conv_elu(torch.from_numpy(image).movedim(-1, 1), params['stem']), []
  for i in (1, 2, 3):
    skips.append(residual(x, f'down{i}'))
    x = functional.max_pool3d(skips[-1], (1, 2, 2))
  x = residual(x, 'bridge')
  expected = {}
  for i in (3, 2, 1):
    x = conv_elu(up(x), params[f'upconv{i}'])  # repeated first, as published
    if i == 1:
      expected['aux/level2'] = conv(x, params['aux_level2'])
    x = residual(x + skips[i - 1], f'up{i}')
    if i == 3:
      expected['aux/level1'] = conv(up(up(x)), params['aux_level1'])
  expected['logits'] = conv(conv_elu(x, params['end']), params['head'])
  out = apply(TINY, values, image, True)[0]
  assert out.keys() == expected.keys()
  for name, reference in expected.items():
    np.testing.assert_allclose(out[name], reference.movedim(1, -1), atol=2e-3)
