"""The parts of EM-Net with hybrid convolutions, against loops, SciPy and PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_support import normal
from scipy import ndimage

from emseg_jax.models import hvec

KERNELS = ((1, 3, 3), (3, 1, 3), (3, 3, 1), (1, 3, 3))


def _variables(module, *inputs):
  """Random values, so that biases and slopes matter too."""
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, train=True))
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda s: rng.normal(0, 0.5, s.shape).astype(np.float32), shapes)


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, variables, *inputs):
  return module.apply(variables, *inputs, train=False)


def _correlate(x, kernel):
  """Zero-padded convolution of [B, Z, Y, X, C] with [*k, C, F], a channel at a time."""
  out = np.zeros((*x.shape[:-1], kernel.shape[-1]))
  for b, c, f in np.ndindex(x.shape[0], *kernel.shape[-2:]):
    out[b, ..., f] += ndimage.correlate(x[b, ..., c], kernel[..., c, f], mode='constant')
  return out


def _normalised(x):
  axes = (1, 2, 3)
  return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)


def _pooled(x):
  """Maxima of 1x2x2 cells, by a loop; an axis of length 1 is not pooled."""
  ky, kx = (min(2, n) for n in x.shape[2:4])
  out = np.zeros((*x.shape[:2], x.shape[2] // ky, x.shape[3] // kx, x.shape[4]))
  for i, j in np.ndindex(out.shape[2:4]):
    out[:, :, i, j] = x[:, :, ky * i : ky * i + ky, kx * j : kx * j + kx].max((2, 3))
  return out


def _nearest(x, size):
  """Voxel i of an axis is voxel floor(i·l / L)."""
  y, x_ = ([i * n // new for i in range(new)] for n, new in zip(x.shape[2:4], size, strict=True))
  return x[:, :, y][:, :, :, x_]


def _sub_block(x, params, transform):
  quarters = np.split(x, 4, axis=-1)
  outputs = []
  for i, (quarter, size) in enumerate(zip(quarters, KERNELS, strict=True)):
    if i > 0:
      carried = outputs[-1]
      if transform:
        t = params[f'transform{i}']
        carried = carried @ t['kernel'][0, 0, 0] + t['bias']
      quarter = quarter + carried
    kernel = params[f'conv{i + 1}']['kernel']
    assert kernel.shape[:3] == size
    if i < 3:
      y = _correlate(quarter, kernel)
    else:
      y = _nearest(_correlate(_pooled(quarter), kernel), x.shape[2:4])
    outputs.append(_normalised(y))
  return np.concatenate(outputs, -1) @ params['join']['kernel'][0, 0, 0] + params['join']['bias']


# Sizes: all even; odd in the plane; a single row.
@pytest.mark.parametrize(
  ('channels', 'features', 'size'), [(4, 8, (3, 4, 6)), (8, 8, (2, 5, 7)), (8, 4, (3, 1, 3))]
)
def test_a_sub_block_with_transforms_is_the_four_convolutions_in_series(channels, features, size):
  module, x = hvec.HvecSubBlock(features, True), normal(2, *size, channels)
  variables = _variables(module, x)
  out = _apply(module, variables, x)
  np.testing.assert_allclose(out, _sub_block(x, variables['params'], True), atol=2e-4)


def test_a_sub_block_without_transforms_adds_the_outputs_as_they_are():
  module, x = hvec.HvecSubBlock(8, False), normal(1, 2, 5, 7, 8)
  variables = _variables(module, x)
  assert not any(name.startswith('transform') for name in variables['params'])
  out = _apply(module, variables, x)
  np.testing.assert_allclose(out, _sub_block(x, variables['params'], False), atol=2e-4)


def test_a_module_is_two_sub_blocks_a_shuffle_and_a_shortcut():
  features = 12
  module, x = hvec.Hvec(features), normal(2, 2, 5, 4, 4)
  slope = jnp.array(0.3)
  variables = _variables(module, x, slope)
  params = variables['params']

  def prelu(y):
    return np.where(y > 0, y, slope * y)

  y = prelu(_normalised(_sub_block(x, params['block1'], True)))
  shuffled = np.zeros_like(y)
  for g, j in np.ndindex(4, features // 4):
    shuffled[..., 4 * j + g] = y[..., g * features // 4 + j]
  y = _sub_block(shuffled, params['block2'], False) + x @ params['shortcut']['kernel'][0, 0, 0]
  expected = prelu(_normalised(y))
  out = _apply(module, variables, x, slope)
  np.testing.assert_allclose(out, expected, atol=1e-3)


def test_prelu_multiplies_what_is_negative():
  x = jnp.array([-2.0, -0.5, 0.0, 3.0])
  np.testing.assert_array_equal(hvec.prelu(x, jnp.array(0.25)), [-0.5, -0.125, 0, 3])


@pytest.mark.parity
def test_the_channel_shuffle_is_pytorchs_view_and_transpose():
  torch = pytest.importorskip('torch')
  x = normal(2, 3, 12)
  view = torch.from_numpy(x).movedim(-1, 1).reshape(2, 4, 3, 3)  # [B, groups, C / groups, voxels]
  expected = view.transpose(1, 2).reshape(2, 12, 3).movedim(1, -1)
  np.testing.assert_array_equal(hvec.channel_shuffle(jnp.asarray(x), 4), expected)


@pytest.mark.parity
@pytest.mark.parametrize('length', [2, 3, 4, 5, 7, 9, 17])
def test_unpooling_is_pytorchs_nearest_interpolation(length):
  torch = pytest.importorskip('torch')
  size = (2, length, length + 1)
  x = normal(1, 2, length // 2, (length + 1) // 2, 3)
  interpolated = torch.nn.functional.interpolate(
    torch.from_numpy(x).movedim(-1, 1), size=size, mode='nearest'
  )
  out = hvec.unpool_in_plane(jnp.asarray(x), size)
  np.testing.assert_array_equal(out, interpolated.movedim(1, -1))


def test_pooling_and_unpooling_leave_axes_of_length_one_alone():
  x = jnp.asarray(normal(1, 2, 1, 5, 3))
  pooled = hvec.pool_in_plane(x)
  assert pooled.shape == (1, 2, 1, 2, 3)
  assert hvec.unpool_in_plane(pooled, (2, 1, 5)).shape == x.shape


@pytest.mark.parity
def test_instance_norm_is_pytorchs():
  torch = pytest.importorskip('torch')
  x = 3 + 2 * normal(2, 3, 4, 5, 6)
  expected = torch.nn.InstanceNorm3d(6)(torch.from_numpy(x).movedim(-1, 1)).movedim(1, -1)
  out = hvec.InstanceNorm().apply({}, x, train=True)
  np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parity
def test_running_statistics_follow_pytorchs():
  torch = pytest.importorskip('torch')
  reference = torch.nn.InstanceNorm3d(6, track_running_stats=True)
  module, x = hvec.InstanceNorm('volume'), 3 + 2 * normal(2, 3, 4, 5, 6)
  variables = module.init(jax.random.key(0), x, train=True)
  for step in range(2):
    trained, variables = module.apply(variables, x + step, train=True, mutable=['batch_stats'])
    expected = reference(torch.from_numpy(x + step).movedim(-1, 1)).movedim(1, -1)
    np.testing.assert_allclose(trained, expected.detach(), atol=1e-5)
  stats = variables['batch_stats']
  np.testing.assert_allclose(stats['mean'], reference.running_mean, rtol=1e-5)
  # PyTorch's running variance, unlike the one it divides by, is that of a sample of 60 voxels.
  n = 60
  start = 0.9**2  # what is left of the initial 1
  sample = start + (stats['var'] - start) * n / (n - 1)
  np.testing.assert_allclose(sample, reference.running_var, rtol=1e-5)
  evaluated = module.apply({'batch_stats': {'mean': stats['mean'], 'var': sample}}, x, train=False)
  expected = reference.eval()(torch.from_numpy(x).movedim(-1, 1)).movedim(1, -1)
  np.testing.assert_allclose(evaluated, expected, atol=1e-5)


def test_only_running_statistics_make_a_voxel_independent_of_the_others():
  x = normal(1, 2, 4, 4, 3)
  module = functools.partial(hvec.InstanceNorm().apply, {}, train=False)
  assert np.abs(module(x)[:, :, :2] - module(x[:, :, :2])).max() > 1e-2
  stats = {'batch_stats': {'mean': np.float32([1, 2, 3]), 'var': np.float32([1, 4, 9])}}
  out = hvec.InstanceNorm('volume').apply(stats, x, train=False)
  np.testing.assert_allclose(out[..., 1], (x[..., 1] - 2) / 2, atol=1e-4)  # √(4 + 1e-5) ≈ 2
  part = hvec.InstanceNorm('volume').apply(stats, x[:, :, :2], train=False)
  np.testing.assert_array_equal(part, out[:, :, :2])


def test_initialisation_leaves_the_running_statistics_at_zero_and_one():
  x = 3 + normal(1, 2, 4, 4, 3)
  stats = hvec.InstanceNorm('volume').init(jax.random.key(0), x, train=True)['batch_stats']
  np.testing.assert_array_equal(stats['mean'], np.zeros(3))
  np.testing.assert_array_equal(stats['var'], np.ones(3))


def test_statistics_of_bfloat16_are_float32():
  # In bfloat16 the neighbours of 256 are 2 apart, and a sum of 512 such voxels is off by more.
  x = jnp.asarray(256 + 8 * np.sign(normal(1, 8, 8, 8, 1)), jnp.bfloat16)
  out = hvec.InstanceNorm(dtype=jnp.bfloat16).apply({}, x, train=True)
  assert out.dtype == jnp.bfloat16
  expected = _normalised(np.asarray(x, np.float64))
  np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=1e-2)
