"""Shared layers against flax's own, numpy loops and hand computation."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from model_support import normal

from emseg_jax.models import convolution, layers, resample


def _assert_same_value_and_gradients(ours, flax, params, x):
  target = normal(*flax.apply({'params': params}, x).shape, seed=9)

  def value_and_gradients(module):
    def loss(params, x):
      out = module.apply({'params': params}, x)
      return jnp.sum(target * out), out

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)

  expected = value_and_gradients(flax)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5, rtol=1e-4),
    value_and_gradients(ours),
    expected,
  )
  # Without a gradient, CPUs may compute it in another way.
  alone = jax.jit(ours.apply)({'params': params}, x)
  np.testing.assert_allclose(alone, expected[0][1], atol=5e-5, rtol=1e-4)


def test_channels_are_rounded_and_at_least_one():
  assert [layers.scaled(64, w) for w in (1.0, 0.375, 0.33, 1e-6)] == [64, 24, 21, 1]


def test_padding_adds_zeros_at_the_end_and_crop_removes_them():
  x = normal(2, 5, 8, 3)
  padded = resample.pad_to_multiple(x, 4)
  assert padded.shape == (2, 8, 8, 3)
  np.testing.assert_array_equal(padded[:, :5], x)
  assert not np.any(padded[:, 5:])
  np.testing.assert_array_equal(resample.crop(padded, (5, 8)), x)


def test_padding_and_cropping_work_on_volumes():
  assert resample.pad_to_multiple(normal(1, 3, 5, 8, 2), 4).shape == (1, 4, 8, 8, 2)
  assert resample.crop(normal(1, 4, 8, 8, 2), (3, 5, 8)).shape == (1, 3, 5, 8, 2)


def test_an_image_that_fits_is_neither_padded_nor_cropped():
  x = jnp.ones((1, 8, 16, 1))
  assert resample.pad_to_multiple(x, 8) is x
  assert resample.crop(x, (8, 16)) is x


@pytest.mark.parametrize(
  ('kernel_size', 'stride', 'dilation', 'size'),
  [
    (3, 1, 1, (8, 11)),
    (3, 1, 2, (8, 8)),
    (3, 1, 4, (9, 3)),  # taps that reach beyond the whole image
    (5, 1, 1, (6, 7)),
    (3, 2, 1, (8, 9)),
    (1, 1, 1, (4, 5)),
    (1, 2, 1, (7, 8)),
  ],
)
def test_conv_and_its_gradients_equal_flax(kernel_size, stride, dilation, size):
  pad = dilation * (kernel_size - 1) // 2
  ours = layers.Conv(4, kernel_size, stride=stride, dilation=dilation)
  flax = nn.Conv(
    4,
    (kernel_size, kernel_size),
    strides=stride,
    kernel_dilation=dilation,
    padding=((pad, pad), (pad, pad)),
  )
  x = normal(2, *size, 3)
  params = {'kernel': normal(kernel_size, kernel_size, 3, 4, seed=1), 'bias': normal(4, seed=2)}
  _assert_same_value_and_gradients(ours, flax, params, x)


@pytest.mark.parametrize(
  ('kernel_size', 'dilation', 'size'),
  [(3, 1, (8, 7)), (5, 3, (9, 8)), (7, 5, (6, 5)), ((1, 3), 2, (5, 6)), (2, 1, (4, 5))],
)
def test_depthwise_convolution_and_its_gradients_equal_flax(kernel_size, dilation, size):
  ours = layers.DepthwiseConv(kernel_size, dilation=dilation)
  ky, kx = (kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size
  flax = nn.Conv(
    3,
    (ky, kx),
    kernel_dilation=dilation,
    feature_group_count=3,
    use_bias=False,
    padding=[
      (dilation * (k - 1) // 2, dilation * (k - 1) - dilation * (k - 1) // 2) for k in (ky, kx)
    ],
  )
  x, params = normal(2, *size, 3), {'kernel': normal(ky, kx, 1, 3, seed=1)}
  _assert_same_value_and_gradients(ours, flax, params, x)


@pytest.mark.parametrize(
  ('kernel_size', 'stride', 'dilation'),
  [
    (3, 1, 1),
    ((1, 3, 3), 1, 1),
    ((5, 3, 3), 1, 2),
    ((3, 1, 3), 1, 2),
    ((3, 3, 1), 1, 1),
    (1, 1, 1),
    (3, 2, 1),
    (2, 1, 1),
  ],
)
def test_convolution_of_volumes_and_its_gradients_equal_flax(kernel_size, stride, dilation):
  ours = layers.Conv(4, kernel_size, stride=stride, dilation=dilation)
  size = (kernel_size,) * 3 if isinstance(kernel_size, int) else kernel_size
  totals = [dilation * (k - 1) for k in size]
  flax = nn.Conv(
    4,
    size,
    strides=stride,
    kernel_dilation=dilation,
    padding=[(total // 2, total - total // 2) for total in totals],
  )
  x, params = normal(2, 4, 6, 5, 3), {'kernel': normal(*size, 3, 4, seed=1), 'bias': normal(4)}
  _assert_same_value_and_gradients(ours, flax, params, x)


def test_the_kernel_gradient_of_accelerators_equals_that_of_cpus():
  x, grad = normal(2, 7, 6, 3), normal(2, 7, 6, 4, seed=1)
  zeros = jnp.zeros((3, 3, 3, 4))
  transpose = jax.linear_transpose(lambda k: convolution._plain(x, k, (1, 1), 2, 1), zeros)
  ours = convolution._kernel_gradient_on_cpu(x, grad, 2, (3, 3))
  np.testing.assert_allclose(ours, transpose(grad)[0], atol=2e-5)


def test_conv_starts_with_the_variance_of_he():
  kernel = layers.Conv(64).init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))['params']['kernel']
  np.testing.assert_allclose(np.var(kernel), 2 / (9 * 32), rtol=0.05)  # 2 / fan-in


def test_up_conv_starts_with_the_variance_of_he_for_one_tap():
  variables = layers.UpConv(64).init(jax.random.key(0), jnp.zeros((1, 2, 2, 128)))
  np.testing.assert_allclose(np.var(variables['params']['kernel']), 2 / 128, rtol=0.05)


@pytest.mark.parametrize('use_bias', [True, False])
def test_up_conv_equals_the_transposed_convolution_of_flax_with_the_same_parameters(use_bias):
  x = normal(2, 3, 5, 4)
  flax = nn.ConvTranspose(6, (2, 2), (2, 2), use_bias=use_bias)
  params = {'kernel': normal(2, 2, 4, 6, seed=1)}  # no symmetry, so a wrong flip shows
  params |= {'bias': normal(6, seed=2)} if use_bias else {}
  ours = layers.UpConv(6, use_bias=use_bias)
  init = ours.init(jax.random.key(0), x)['params']
  assert jax.tree.map(jnp.shape, init) == jax.tree.map(jnp.shape, params)
  np.testing.assert_allclose(
    ours.apply({'params': params}, x), flax.apply({'params': params}, x), atol=1e-5
  )


@pytest.mark.parametrize(
  ('shape', 'factor'),
  [
    ((2, 5, 4, 3), 1),
    ((2, 5, 4, 3), 2),
    ((2, 5, 4, 3), 3),
    ((1, 1, 2, 1), 8),
    ((1, 2, 3, 4, 2), 2),  # a volume
  ],
)
def test_bilinear_upsampling_equals_image_resize(shape, factor):
  x = normal(*shape)
  size = (shape[0], *(factor * s for s in shape[1:-1]), shape[-1])
  expected = jax.image.resize(x, size, 'linear')
  upsample = jax.jit(resample.upsample_linear, static_argnums=1)
  np.testing.assert_allclose(upsample(x, factor), expected, atol=1e-6)


def test_nearest_upsampling_repeats_voxels():
  x = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
  expected = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
  np.testing.assert_array_equal(resample.upsample_nearest(x, 2)[0, :, :, 0], expected)


def test_max_pooling_equals_flax():
  x = normal(2, 6, 8, 3)
  np.testing.assert_array_equal(resample.max_pool(x), nn.max_pool(x, (2, 2), (2, 2)))


def test_equal_largest_voxels_share_the_gradient():
  grad = jax.grad(lambda x: jnp.sum(resample.max_pool(x)))(jnp.ones((1, 2, 2, 1)))
  np.testing.assert_allclose(grad, jnp.full((1, 2, 2, 1), 0.25))


def _adaptive_pool_by_loops(x, bins, reduce):
  """PyTorch's definition, cell by cell."""
  out = np.zeros((x.shape[0], bins, bins, x.shape[-1]))
  for i in range(bins):
    for j in range(bins):
      y0, y1 = i * x.shape[1] // bins, -(-(i + 1) * x.shape[1] // bins)
      x0, x1 = j * x.shape[2] // bins, -(-(j + 1) * x.shape[2] // bins)
      out[:, i, j] = reduce(x[:, y0:y1, x0:x1], axis=(1, 2))
  return out


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('bins', [1, 2, 3, 6])
@pytest.mark.parametrize('size', [(12, 6), (7, 10), (16, 4)])  # divisible, overlapping, too small
def test_adaptive_pooling_equals_pytorchs_cells(mode, bins, size):
  x = normal(2, *size, 3)
  pool = jax.jit(functools.partial(resample.adaptive_pool, bins=bins, mode=mode))
  expected = _adaptive_pool_by_loops(x, bins, {'avg': np.mean, 'max': np.max}[mode])
  np.testing.assert_allclose(pool(x), expected, atol=1e-6)


def test_batch_norm_has_the_constants_of_pytorch():
  x = 3 + 2 * normal(4, 5, 5, 2)
  norm = layers.batch_norm(train=True, dtype=jnp.float32)
  variables = norm.init(jax.random.key(0), x)
  y, updates = norm.apply(variables, x, mutable=['batch_stats'])
  mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
  np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-4)
  stats = updates['batch_stats']
  np.testing.assert_allclose(stats['mean'], 0.1 * mean.ravel(), rtol=1e-4)  # from 0
  np.testing.assert_allclose(stats['var'], 0.9 + 0.1 * var.ravel(), rtol=1e-4)  # from 1


def test_batch_norm_statistics_of_bfloat16_input_are_float32():
  # 1 + k/128 is exact in bfloat16, but a sum of 4096 of them is not.
  x = jnp.tile(jnp.array([1.0, 1 + 1 / 128], jnp.bfloat16), 2048).reshape(1, 64, 64, 1)
  norm = layers.batch_norm(train=True, dtype=jnp.bfloat16)
  _, updates = norm.apply(norm.init(jax.random.key(0), x), x, mutable=['batch_stats'])
  mean = updates['batch_stats']['mean']
  assert mean.dtype == jnp.float32
  np.testing.assert_allclose(mean, 0.1 * (1 + 1 / 256), rtol=1e-5)


LAYERS = {
  'upsample_linear': lambda x: resample.upsample_linear(x, 2),
  'upsample_nearest': lambda x: resample.upsample_nearest(x, 2),
  'adaptive_avg': lambda x: resample.adaptive_pool(x, 3, mode='avg'),
  'adaptive_max': lambda x: resample.adaptive_pool(x, 3, mode='max'),
  'max_pool': resample.max_pool,
  'up_conv': lambda x: layers.UpConv(3).apply(
    {'params': {'kernel': normal(2, 2, 2, 3), 'bias': normal(3)}}, x
  ),
  'depthwise': lambda x: layers.DepthwiseConv(3, dilation=2).apply(
    {'params': {'kernel': normal(3, 3, 1, 2)}}, x
  ),
  'conv_dilated': lambda x: layers.Conv(3, dilation=2, use_bias=False).apply(
    {'params': {'kernel': normal(3, 3, 2, 3)}}, x
  ),
}


@pytest.mark.parametrize('name', LAYERS)
def test_a_layer_leaves_split_rows_on_their_device(name):
  mesh = jax.make_mesh(
    (2, 2), ('data', 'space'), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4]
  )
  split = NamedSharding(mesh, PartitionSpec('data', 'space'))
  x = normal(2, 16, 8, 2)

  def value_and_gradient(x):
    y, to_input = jax.vjp(LAYERS[name], x)
    return y, to_input(jnp.sin(y))[0]

  expected = jax.jit(value_and_gradient)(x)
  compiled = jax.jit(value_and_gradient, in_shardings=split).lower(x).compile()
  assert not re.search(r'all-gather|all-to-all', compiled.as_text())
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    compiled(jax.device_put(x, split)),
    expected,
  )
