"""3D U-Net: parameter counts, anisotropic pooling, and the whole network against PyTorch."""

import jax
import numpy as np
import pytest
from model_support import apply, count, normal, shapes, variables

from emseg_jax import models
from emseg_jax.models.unet3d import UNet3D

SHAPE = (1, 8, 8, 8, 1)
SECTIONS = ((1, 2, 2), (1, 2, 2), (2, 2, 2))  # poolings for a stack of thick sections
TINY = UNet3D(2, width=1 / 32, pool=SECTIONS)


@pytest.mark.parametrize(
  ('model', 'channels', 'expected'),
  [
    (UNet3D(3, norm='none', up_bias=False), 3, 19_069_955),  # the figure of the paper
    (UNet3D(3, norm='none'), 3, 19_070_851),  # and biases of the up-convolutions: 512 + 256 + 128
    (UNet3D(3), 3, 19_075_523),  # and batch norm: 2 for each of 2336 channels
    (UNet3D(2), 1, 19_073_730),  # less 2·27·32 of the first convolution and 65 of the last
  ],
)
def test_the_number_of_parameters_is_that_of_the_paper(model, channels, expected):
  assert count(model, (1, 8, 8, 8, channels)) == expected


def test_running_statistics_are_a_mean_and_a_variance_for_each_of_2336_channels():
  assert count(UNet3D(2), SHAPE, 'batch_stats') == 2 * 2336


def test_up_convolutions_undo_the_poolings():
  params = shapes(UNet3D(2, pool=SECTIONS), SHAPE)['params']
  kernels = [params[f'upconv{i}']['kernel'].shape for i in (1, 2, 3)]
  assert kernels == [(1, 2, 2, 128, 128), (1, 2, 2, 256, 256), (2, 2, 2, 512, 512)]
  assert UNet3D(2, pool=SECTIONS).divisor == (2, 8, 8)
  assert UNet3D(2).divisor == (8, 8, 8)


def test_poolings_may_be_given_as_the_lists_of_json(monkeypatch):
  monkeypatch.setitem(models.MODELS, 'unet3d', UNet3D)
  model = models.create_model('unet3d', 2, pool=[list(factors) for factors in SECTIONS])
  assert model == UNet3D(2, pool=SECTIONS)
  for wrong in ([[2, 2, 2]] * 2, [[2, 2]] * 3, [[2, 2, 0]] * 3, [[2, 2, 2.0]] * 3):
    with pytest.raises(ValueError, match=r'options\.pool'):
      models.create_model('unet3d', 2, pool=wrong)


# Three convolutions in full size reach 1 each, and so on: 14 on each side without any pooling.
@pytest.mark.parametrize(('factors', 'span'), [((1, 1, 1), 29), ((1, 1, 2), 34), ((2, 2, 2), 100)])
def test_the_receptive_field_follows_the_poolings(factors, span):
  model = UNet3D(2, pool=tuple((f, 1, 2) for f in factors))
  assert model.receptive_field == (span, 29, 100)


def test_the_receptive_field_is_the_largest_span_that_nan_comes_from():
  # Two images with one plane of NaN each, at the two places in a cell of 2 voxels in z.
  image = np.zeros((2, 48, 8, 8, 1), np.float32)
  image[0, 24] = image[1, 25] = np.nan
  logits = apply(TINY, variables(TINY, image.shape), image, False)[0]['logits']
  reached = np.isnan(np.asarray(logits)).any((2, 3, 4))
  assert not reached[:, [0, -1]].any()  # the image is large enough
  spans = []
  for phase in range(2):
    place, output = np.nonzero(reached[:, phase::2])
    seen = place - 2 * output  # as if all these outputs were in the same cell
    spans.append(seen.max() - seen.min() + 1)
  assert max(spans) == TINY.receptive_field[0]


@pytest.mark.parity
def test_the_network_is_the_one_written_with_pytorch():
  torch = pytest.importorskip('torch')
  functional = torch.nn.functional
  image = normal(2, 4, 8, 16, 3)
  values = variables(TINY, image.shape)
  rng = np.random.default_rng(1)
  values = {
    **values,
    'params': {
      name: jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype('f'), module)
      for name, module in values['params'].items()
    },
  }
  params = jax.tree.map(torch.from_numpy, values['params'])

  def double_conv(x, name):
    for i in (1, 2):
      conv, norm = params[f'{name}_{i}']['conv'], params[f'{name}_{i}']['norm']
      x = functional.conv3d(x, conv['kernel'].permute(4, 3, 0, 1, 2), conv['bias'], padding=1)
      x = functional.batch_norm(x, None, None, norm['scale'], norm['bias'], training=True)
      x = functional.relu(x)
    return x

  x, skips = torch.from_numpy(image).movedim(-1, 1), []
  for i, window in enumerate(SECTIONS):
    skips.append(double_conv(x, f'down{i + 1}'))
    x = functional.max_pool3d(skips[-1], window)
  x = double_conv(x, 'bridge')
  for i in (2, 1, 0):
    up = params[f'upconv{i + 1}']
    kernel = up['kernel'].permute(3, 4, 0, 1, 2).flip(2, 3, 4)
    x = functional.conv_transpose3d(x, kernel, up['bias'], stride=SECTIONS[i])
    x = double_conv(torch.cat([skips[i], x], 1), f'up{i + 1}')
  expected = x.movedim(1, -1) @ params['head']['kernel'][0, 0, 0] + params['head']['bias']
  logits = apply(TINY, values, image, True)[0]['logits']
  np.testing.assert_allclose(logits, expected, atol=2e-3)
