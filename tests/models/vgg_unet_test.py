"""VGG-UNet: parameter counts, decoder against PyTorch's layers, constants and start of Keras."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_support import apply, count, normal, variables

from emseg_jax.models.backbones.vgg import Vgg
from emseg_jax.models.vgg_unet import DecoderBlock, VggUNet

NARROW = VggUNet(2, width=1 / 16)


# The encoder's 14,714,688; up-convolutions 4·(512·512 + 512·256 + 256·128 + 128·64) + 960 =
# 1,737,664; 3x3 convolutions 9·(1024 + 512)·512 and so on with 1920 biases, 9,402,240; head 65.
# Batch norm has two parameters and two statistics for each of 2·(512 + 256 + 128 + 64) channels.
# 19 layers have one convolution more of 256 channels, 590,080, and two of 512, 4,719,616.
@pytest.mark.parametrize(
  ('options', 'expected', 'statistics'),
  [
    ({}, 25_858_497, 3_840),
    ({'norm': 'none'}, 25_854_657, 0),
    ({'depth': 19}, 25_858_497 + 590_080 + 4_719_616, 3_840),
  ],
)
def test_the_number_of_parameters_is_that_of_the_common_keras_network(
  options, expected, statistics
):
  model = VggUNet(1, **options)
  assert count(model, (1, 32, 32, 3)) == expected
  assert count(model, (1, 32, 32, 3), 'batch_stats') == statistics


@pytest.mark.parametrize(('depth', 'span'), [(16, 260), (19, 316)])
def test_the_receptive_field_follows_the_depth(depth, span):
  # By hand, see the docstring: a cell of 16 and 122 or 150 voxels on each side.
  assert VggUNet(1, depth=depth).receptive_field == (span, span)


def _moved(values, seed=1):
  """Small variances, so that epsilon matters, and biases, means and scales that are not 0 or 1."""
  rng = np.random.default_rng(seed)

  def move(path, x):
    if path[-1].key == 'var':
      return rng.uniform(1e-3, 1e-2, x.shape).astype(np.float32)
    if path[-1].key == 'scale':
      return rng.uniform(0.05, 0.1, x.shape).astype(np.float32)
    return x if x.ndim > 1 else rng.uniform(-0.2, 0.2, x.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(move, values)


@pytest.mark.parity
def test_the_decoder_is_that_of_keras_built_from_the_layers_of_pytorch():
  torch = pytest.importorskip('torch')
  functional = torch.nn.functional
  image = normal(2, 32, 48, 3)
  values = _moved(variables(NARROW, image.shape))
  params, stats = values['params'], values['batch_stats']

  def convolve(x, p):
    kernel = torch.tensor(p['kernel'].transpose(3, 2, 0, 1))
    return functional.conv2d(x, kernel, torch.tensor(p['bias']), padding=kernel.shape[-1] // 2)

  features, _ = apply(Vgg(width=1 / 16), {'params': params['backbone']}, image, False)
  *skips, x = (torch.tensor(np.asarray(f)).permute(0, 3, 1, 2) for f in features)
  for level in (4, 3, 2, 1):
    # The transposed convolution of flax, which UpConv equals, has its taps the other way round.
    up = params[f'upconv{level}']
    kernel = torch.tensor(up['kernel'][::-1, ::-1].transpose(2, 3, 0, 1).copy())
    x = functional.conv_transpose2d(x, kernel, torch.tensor(up['bias']), stride=2)
    x = torch.cat([x, skips[level - 1]], 1)
    block, block_stats = params[f'up{level}'], stats[f'up{level}']
    for i in (1, 2):
      x = convolve(x, block[f'conv{i}'])
      mean, var = (torch.tensor(block_stats[f'norm{i}'][k]) for k in ('mean', 'var'))
      scale, bias = (torch.tensor(block[f'norm{i}'][k]) for k in ('scale', 'bias'))
      x = functional.relu(functional.batch_norm(x, mean, var, scale, bias, eps=1e-3))
  expected = convolve(x, params['head']).permute(0, 2, 3, 1).numpy()
  logits = apply(NARROW, values, image, False)[0]['logits']
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_the_running_mean_keeps_99_of_100_parts_as_in_keras():
  block, image = DecoderBlock(4, norm=True, dtype=jnp.float32), normal(2, 8, 8, 3)
  values = variables(block, image.shape)
  raised = jax.tree.map(np.copy, values)
  raised['batch_stats']['norm1']['mean'] += 5
  means = [
    apply(block, v, image, True)[1]['batch_stats']['norm1']['mean'] for v in (values, raised)
  ]
  np.testing.assert_allclose(means[1] - means[0], np.full(4, 0.99 * 5), rtol=1e-5)


def test_the_convolutions_of_the_decoder_start_glorot_uniform():
  block = DecoderBlock(32, norm=False, dtype=jnp.float32)
  params = block.init(jax.random.key(0), jnp.zeros((1, 4, 4, 16)), train=False)['params']
  # Uniform within sqrt(6 / (inputs + outputs)), each channel counting its 9 taps.
  for name, channels in (('conv1', 16 + 32), ('conv2', 32 + 32)):
    limit, kernel = np.sqrt(6 / (9 * channels)), params[name]['kernel']
    assert 0.99 * limit < np.abs(kernel).max() <= limit
    np.testing.assert_allclose(np.std(kernel), limit / np.sqrt(3), rtol=0.03)
