"""FCN-8s: parameter counts, transposed convolutions, alignment, head against PyTorch's layers."""

import jax
import numpy as np
import pytest
from model_support import apply, count, normal, variables

from emseg_jax.models.backbones.vgg import Vgg
from emseg_jax.models.fcn8s import BilinearUpConv, Fcn8s

VGG16 = 14_714_688  # torchvision's vgg16 without classifier
NARROW = Fcn8s(2, width=1 / 16, fc_channels=512, fc_kernel=3, norm='batch')


def _expected(fc_channels, fc_kernel, classes):
  """By hand: weights and biases of fc6 and fc7, three scores, two 4x4 and one 16x16 kernel."""
  fc6 = fc_kernel**2 * 512 * fc_channels + fc_channels
  fc7 = fc_channels**2 + fc_channels
  scores = (fc_channels + 512 + 256) * classes + 3 * classes
  return VGG16 + fc6 + fc7 + scores + (2 * 4**2 + 16**2) * classes**2


@pytest.mark.parametrize(
  ('fc_channels', 'fc_kernel', 'classes', 'expected'),
  [
    (4096, 7, 1, 134_265_699),
    (4096, 7, 2, 134_271_430),
    (4096, 3, 1, 50_379_619),
    (512, 3, 1, 17_338_723),
  ],
)
def test_the_number_of_parameters_is_the_sum_of_the_layers(
  fc_channels, fc_kernel, classes, expected
):
  assert _expected(fc_channels, fc_kernel, classes) == expected
  model = Fcn8s(classes, fc_channels=fc_channels, fc_kernel=fc_kernel)
  assert count(model, (1, 32, 32, 3)) == expected
  assert count(model, (1, 32, 32, 3), 'batch_stats') == 0


def test_batch_norm_follows_the_convolutions_of_vgg_and_both_fc_layers():
  model = Fcn8s(1, fc_channels=512, fc_kernel=3, norm='batch')
  channels = 4224 + 2 * 512  # VGG's 2·64 + 2·128 + 3·256 + 6·512
  assert count(model, (1, 32, 32, 3)) == 17_338_723 + 2 * channels
  assert count(model, (1, 32, 32, 3), 'batch_stats') == 2 * channels


@pytest.mark.parametrize(('fc_kernel', 'span'), [(7, 468), (3, 340)])
def test_the_receptive_field_follows_the_kernel_of_fc6(fc_kernel, span):
  # By hand: a voxel after pool5 sees 32 + 2·(2·1 + 2·2 + 3·4 + 3·8 + 3·16) = 212 and the next one
  # begins 32 later; an output voxel sees 3 after fc6, hence fc_kernel + 2 before.
  assert span == 212 + 32 * (fc_kernel + 1)
  assert Fcn8s(1, fc_kernel=fc_kernel).receptive_field == (span, span)


@pytest.mark.parametrize('factor', [2, 8])
def test_upsampling_adds_the_kernel_at_each_voxel_and_cuts_half_a_factor(factor):
  up = BilinearUpConv(3, factor)
  x, kernel = normal(2, 3, 4, 2), normal(2 * factor, 2 * factor, 2, 3, seed=1)
  whole = np.zeros((2, 4 * factor, 5 * factor, 3))
  for i in range(3):
    for j in range(4):
      added = np.einsum('bc,uvcf->buvf', x[:, i, j], kernel)
      whole[:, i * factor :, j * factor :][:, : 2 * factor, : 2 * factor] += added
  half = factor // 2
  expected = whole[:, half : half + 3 * factor, half : half + 4 * factor]
  ours = up.apply({'params': {'kernel': kernel}}, x)
  np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('factor', [2, 8])
def test_upsampling_starts_as_linear_interpolation_between_voxel_centres(factor):
  # An affine function of the position stays one, with the position (n + 1/2) / factor - 1/2.
  def image(y, x):
    y, x = y[:, None], x[None, :]
    return np.stack([2 + 3 * y - x, 1 - 0.5 * y + 2 * x], -1)[None].astype(np.float32)

  coarse = image(np.arange(5), np.arange(4))
  up = BilinearUpConv(2, factor)
  fine, _ = up.init_with_output(jax.random.key(0), coarse)
  assert fine.shape == (1, 5 * factor, 4 * factor, 2)
  expected = image(*((np.arange(n * factor) + 0.5) / factor - 0.5 for n in (5, 4)))
  inside = slice(factor // 2, -(factor // 2))  # beyond the outermost centres there are zeros
  np.testing.assert_allclose(fine[:, inside, inside], expected[:, inside, inside], rtol=1e-5)


def test_upsampling_fades_towards_zero_outside():
  ones = np.ones((1, 2, 2, 1), np.float32)
  fine, _ = BilinearUpConv(1, 2).init_with_output(jax.random.key(0), ones)
  edge = np.array([0.75, 1, 1, 0.75])  # a quarter of the first voxel comes from the zero before it
  np.testing.assert_allclose(fine[0, :, :, 0], np.outer(edge, edge), rtol=1e-6)


def test_with_symmetric_kernels_a_mirrored_image_has_mirrored_logits():
  image = normal(1, 64, 96, 3)
  values = jax.tree.map(
    lambda x: (x + x[::-1, ::-1] + x[::-1] + x[:, ::-1]) / 2 if x.ndim == 4 else x,
    variables(NARROW, image.shape),
  )
  logits = apply(NARROW, values, image, False)[0]['logits']
  mirrored = apply(NARROW, values, image[:, ::-1, ::-1], False)[0]['logits']
  assert np.abs(logits - logits[:, ::-1, ::-1]).max() > 0.1  # the logits are not symmetric
  np.testing.assert_allclose(mirrored[:, ::-1, ::-1], logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parity
def test_the_head_is_that_of_fcn_8s_built_from_the_layers_of_pytorch():
  torch = pytest.importorskip('torch')
  functional = torch.nn.functional
  model = Fcn8s(2, width=1 / 16, fc_channels=128, fc_kernel=7)
  image = normal(2, 64, 96, 3)
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: x if x.ndim > 1 else rng.uniform(-0.2, 0.2, x.shape).astype(np.float32),
    variables(model, image.shape)['params'],
  )

  def convolve(name, x):
    p = params[name].get('conv', params[name])
    kernel = torch.tensor(p['kernel'].transpose(3, 2, 0, 1))
    return functional.conv2d(x, kernel, torch.tensor(p['bias']), padding=kernel.shape[-1] // 2)

  def upsample(name, x, factor):
    kernel = torch.tensor(params[name]['kernel'].transpose(2, 3, 0, 1))
    assert kernel.shape == (2, 2, 2 * factor, 2 * factor)
    return functional.conv_transpose2d(x, kernel, stride=factor, padding=factor // 2)

  encoder = Vgg(width=1 / 16)
  features, _ = apply(encoder, {'params': params['backbone']}, image, False)
  pool3, pool4, x = (
    functional.max_pool2d(torch.tensor(np.asarray(f)).permute(0, 3, 1, 2), 2) for f in features[2:]
  )
  for name in ('fc6', 'fc7'):
    x = functional.relu(convolve(name, x))
  scores = upsample('up_fc7', convolve('score_fc7', x), 2)
  scores = upsample('up_pool4', scores + convolve('score_pool4', pool4), 2)
  scores = upsample('up_pool3', scores + convolve('score_pool3', pool3), 8)
  expected = scores.permute(0, 2, 3, 1).numpy()
  logits = apply(model, {'params': params}, image, False)[0]['logits']
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
