"""PmcaNet: parameter counts of the ablations, attention against numpy, gradients, modes."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from model_support import KEYS, count, normal, start_values

from emseg_jax.models import layers, pmcanet
from emseg_jax.models.backbones.resnet import ResNet50D8
from emseg_jax.models.pmcanet import AttentionFusion, LevelAttention, PmcaNet, PyramidAttention

BATCH = (4, 32, 32, 3)


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _variables(model, *inputs):
  """Not cached: tests exchange the backbone of equal networks."""
  return start_values(jax.eval_shape(lambda: model.init(KEYS, *inputs, train=True)))


def _apply(model, variables, image, train):
  def run(variables, image):
    return model.apply(variables, image, train=train, mutable=['batch_stats'], rngs=KEYS)

  return jax.jit(run)(variables, image)


def _stuck(model, batches):
  """Names of the parameters without gradient in all of some batches of inputs."""
  variables = _variables(model, *batches[0])
  params = variables.pop('params')

  @jax.jit
  def gradient(params, *inputs):
    def loss(params):
      all_variables = {'params': params, **variables}
      out = model.apply(all_variables, *inputs, train=True, mutable=['batch_stats'], rngs=KEYS)[0]
      return sum(jnp.mean(jnp.sin(x + inputs[0][..., :1])) for x in jax.tree.leaves(out))

    return jax.grad(loss)(params)

  learns = jax.tree.map(lambda _: False, params)
  for inputs in batches:
    grads = gradient(params, *inputs)
    learns = jax.tree.map(lambda a, g: a or bool(np.any(np.abs(g) > 1e-9)), learns, grads)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
  return {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, leaf in jax.tree_util.tree_leaves_with_path(learns)
    if not leaf
  }


class TinyBackbone(nn.Module):
  """The interface of the backbone in four convolutions, where the head is what is tested."""

  width: float
  stem: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, *, train):
    outputs = []
    for i, (channels, stride) in enumerate(((256, 4), (512, 2), (1024, 1), (2048, 1))):
      features = layers.scaled(channels, self.width)
      x = layers.ConvBlock(features, stride=stride, name=f'stage{i + 1}')(x, train=train)
      outputs.append(x)
    return tuple(outputs)


@pytest.fixture
def tiny_backbone(monkeypatch):
  monkeypatch.setattr(pmcanet, 'ResNet50D8', TinyBackbone)


def _shorten_stages(monkeypatch, blocks):
  stages = tuple(stage._replace(blocks=blocks) for stage in ResNet50D8.stages)
  monkeypatch.setattr(ResNet50D8, 'stages', stages)


# Variant B of the head and its ablations, variant A (low_level = 'none'): sums of the layer table.
@pytest.mark.parametrize(
  ('options', 'expected'),
  [
    ({}, {2: 32_791_292, 3: 32_791_614}),
    ({'low_level': 'none'}, {2: 32_785_020, 3: 32_785_294}),
    ({'attention': 'se'}, {2: 32_823_080}),
    ({'attention': 'eca'}, {2: 32_789_244}),
    ({'attention': 'none'}, {2: 32_788_196}),
    ({'bins': (1,)}, {2: 31_214_570}),
    ({'fusion': 'add'}, {2: 32_791_292 - 4 * 257}),  # without the scores of four levels
    ({'aux': False}, {2: 32_791_292 - 2_360_322}),  # without the FCN head
    ({'laca_scope': 'region', 'pool': 'max'}, {2: 32_791_292}),
  ],
  ids=str,
)
def test_the_number_of_parameters_is_that_of_the_layer_table(options, expected):
  for num_classes, parameters in expected.items():
    assert count(PmcaNet(num_classes, **options), (1, 32, 32, 3)) == parameters


def test_laca_kernel_sizes_are_those_of_equation_4():
  # ln(31.5) = 3.45, ln(63.5) = 4.15, 4.85, 5.54, ln(511.5) = 6.24, ln(1023.5) = 6.93
  sizes = {64: 3, 128: 5, 256: 5, 512: 5, 1024: 7, 2048: 7, 16: 3, 3: 1, 2: 1, 1: 1}
  assert {c: pmcanet.laca_kernel_size(c) for c in sizes} == sizes


def test_eca_kernel_sizes_are_those_of_its_paper():
  # |log2(C) / 2 + 1 / 2| = 3.5, 4, 4.5, 5, 5.5, 6, truncated, made odd
  sizes = {64: 3, 128: 5, 256: 5, 512: 5, 1024: 5, 2048: 7}
  assert {c: pmcanet.eca_kernel_size(c) for c in sizes} == sizes


def _across_channels(x, kernel):
  """Correlation of [..., C] with an odd kernel, zeros outside."""
  half = len(kernel) // 2
  padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(half, half)])
  return sum(kernel[k] * padded[..., k : k + x.shape[-1]] for k in range(len(kernel)))


def _attention_parameters(module, x):
  """Random ones, since a kernel of 1 and an offset of 0 could hide a mistake."""
  shapes = jax.eval_shape(lambda: module.init(KEYS, x, train=True))['params']
  leaves, tree = jax.tree.flatten(shapes)
  return jax.tree.unflatten(tree, [normal(*s.shape, seed=i) for i, s in enumerate(leaves)])


@pytest.mark.parametrize('per_cell', [False, True])
def test_laca_is_equation_1(per_cell):
  x = normal(5, 2, 2, 64)
  module = LevelAttention('laca', per_cell)
  params = _attention_parameters(module, x)
  out, _ = module.apply({'params': params}, x, train=True, mutable=['batch_stats'])
  pooled = x if per_cell else x.mean((1, 2), keepdims=True)
  y = _across_channels(pooled, params['conv']['kernel'][:, 0, 0])
  assert len(params['conv']['kernel']) == 3  # eq. 4 for 64 channels
  mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
  y = (y - mean) / np.sqrt(var + 1e-5) * params['norm']['scale'] + params['norm']['bias']
  np.testing.assert_allclose(out, _sigmoid(y), atol=1e-5)


def test_eca_is_laca_without_norm():
  x = normal(3, 6, 6, 128)
  module = LevelAttention('eca')
  params = _attention_parameters(module, x)
  y = _across_channels(x.mean((1, 2), keepdims=True), params['conv']['kernel'][:, 0, 0])
  np.testing.assert_allclose(
    module.apply({'params': params}, x, train=True), _sigmoid(y), atol=1e-5
  )


def test_se_squeezes_by_16_and_excites():
  x = normal(3, 2, 2, 32)
  module = LevelAttention('se')
  params = _attention_parameters(module, x)
  squeeze, excite = params['squeeze'], params['excite']
  assert squeeze['kernel'].shape == (32, 2)
  y = np.maximum(x.mean((1, 2), keepdims=True) @ squeeze['kernel'] + squeeze['bias'], 0)
  y = y @ excite['kernel'] + excite['bias']
  np.testing.assert_allclose(
    module.apply({'params': params}, x, train=True), _sigmoid(y), atol=1e-5
  )


def test_maf_is_equations_5_and_6():
  attentions = [normal(3, 1, 1, 8, seed=i) for i in range(4)]
  params = {f'score{i + 1}': {'kernel': normal(8, 1, seed=9 + i), 'bias': normal(1, seed=20 + i)}
            for i in range(4)}  # fmt: skip
  out = AttentionFusion('maf').apply({'params': params}, attentions)
  scores = [a @ p['kernel'] + p['bias'] for a, p in zip(attentions, params.values(), strict=True)]
  weights = np.exp(scores) / np.sum(np.exp(scores), axis=0)
  expected = sum(w * a for w, a in zip(weights, attentions, strict=True))
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_add_and_multiply_have_no_weights():
  a, b, c = (normal(2, 1, 1, 4, seed=i) for i in range(3))
  np.testing.assert_allclose(AttentionFusion('add').apply({}, [a, b, c]), a + b + c, rtol=1e-6)
  np.testing.assert_allclose(AttentionFusion('multiply').apply({}, [a, b, c]), a * b * c, rtol=1e-6)


PYRAMID = {'attention': 'laca', 'per_cell': False, 'fusion': 'maf', 'pool': 'avg', 'bins': (1, 2)}


@pytest.mark.parametrize(
  'options',
  [
    {'attention': 'none'},
    {'attention': 'eca', 'fusion': 'add'},
    {'attention': 'se', 'fusion': 'multiply', 'pool': 'max'},
    {'attention': 'laca', 'per_cell': True},
  ],
  ids=str,
)
def test_every_parameter_of_an_ablation_learns(options):
  pyramid = PyramidAttention(**{**PYRAMID, **options}, dtype=jnp.float32)
  batches = [(normal(4, 8, 6, 16, seed=i), normal(4, 4, 3, 8, seed=9 + i)) for i in range(3)]
  assert _stuck(pyramid, batches) == set()


def test_without_attention_the_mean_of_the_pooled_levels_is_added():
  pyramid = PyramidAttention(**{**PYRAMID, 'attention': 'none', 'bins': (1, 1)}, dtype=jnp.float32)
  f, c5 = normal(2, 8, 6, 4), normal(2, 4, 3, 5)
  variables = _variables(pyramid, f, c5)
  kernels = [variables['params'][f'level{i}']['conv']['kernel'][0, 0] for i in (1, 2)]
  mean = c5.mean((1, 2), keepdims=True)
  # In evaluation the batch norm starts as 1 / sqrt(1 + 1e-5).
  context = sum(np.maximum(mean @ k, 0) / np.sqrt(1 + 1e-5) for k in kernels) / 2
  out = pyramid.apply(variables, f, c5, train=False)
  np.testing.assert_allclose(out, f + context, atol=1e-5)


def test_attention_weights_the_channels_of_f_alike_everywhere():
  pyramid = PyramidAttention(**PYRAMID, dtype=jnp.float32)
  f, c5 = normal(2, 8, 6, 4), normal(2, 4, 3, 5)
  weights = pyramid.apply(_variables(pyramid, f, c5), f, c5, train=False) / f
  np.testing.assert_allclose(weights, np.broadcast_to(weights[:, :1, :1], f.shape), rtol=1e-4)
  assert ((weights > 0) & (weights < 1)).all()  # a convex combination of sigmoids


def test_attention_of_regions_differs_between_regions():
  pyramid = PyramidAttention(**{**PYRAMID, 'per_cell': True}, dtype=jnp.float32)
  f, c5 = normal(2, 8, 6, 4), normal(2, 4, 3, 5)
  weights = np.asarray(pyramid.apply(_variables(pyramid, f, c5), f, c5, train=False) / f)
  assert np.ptp(weights, axis=(1, 2)).max() > 1e-2


def test_the_auxiliary_head_answers_in_training_only(tiny_backbone):
  model, image = PmcaNet(2, width=1 / 16), normal(*BATCH)
  variables = _variables(model, image)
  trained, updates = _apply(model, variables, image, True)
  evaluated, kept = _apply(model, variables, image, False)
  assert set(trained) == {'logits', 'aux/fcn'}
  assert set(evaluated) == {'logits'}
  before = variables['batch_stats']
  jax.tree.map(np.testing.assert_array_equal, kept['batch_stats'], before)
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), updates['batch_stats'], before)
  assert all(jax.tree.leaves(moved))


def test_an_odd_size_is_padded_with_zeros_at_the_end_and_cropped(tiny_backbone):
  model, image = PmcaNet(2, width=1 / 16), normal(1, 27, 30, 3)
  variables = _variables(model, image)
  padded = np.pad(image, ((0, 0), (0, 5), (0, 2), (0, 0)))  # to 32 x 32, multiples of 8
  logits = _apply(model, variables, image, False)[0]['logits']
  whole = _apply(model, variables, padded, False)[0]['logits']
  np.testing.assert_allclose(logits, whole[:, :27, :30], rtol=1e-4, atol=1e-4)


def test_one_constant_image_gives_finite_outputs_and_statistics_at_the_start(tiny_backbone):
  # The level of one bin then normalises a single value: its variance is 0.
  model, image = PmcaNet(2, width=1 / 16), np.full((1, 32, 32, 3), 5.0, np.float32)
  variables = jax.jit(lambda: model.init(KEYS, image, train=True))()
  out = _apply(model, variables, image, True)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((variables, out)))


def test_one_value_per_channel_has_a_finite_gradient_in_training():
  block = layers.ConvBlock(4, 1)
  x = normal(1, 1, 1, 3)
  variables = block.init(KEYS, x, train=True)

  def loss(variables):
    out, _ = block.apply(variables, x, train=True, mutable=['batch_stats'])
    return jnp.sum(out)

  assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.grad(loss)(variables)))


def test_rows_split_over_devices_are_not_gathered_and_change_nothing(monkeypatch):
  _shorten_stages(monkeypatch, 1)
  model, image = PmcaNet(2, width=1 / 16), normal(2, 64, 32, 3)
  variables = _variables(model, image)

  # Evaluation: with batch statistics, rounding errors of 1e-7 grow to percents at this width.
  def loss(params, image):
    logits = model.apply({**variables, 'params': params}, image, train=False)['logits']
    return jnp.mean(jnp.sin(logits)), logits

  mesh = jax.make_mesh(
    (1, 2), ('data', 'space'), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:2]
  )
  shardings = (
    NamedSharding(mesh, PartitionSpec()),
    NamedSharding(mesh, PartitionSpec('data', 'space')),
  )
  arguments = (variables['params'], image)
  step = jax.jit(jax.value_and_grad(loss, has_aux=True), in_shardings=shardings)
  compiled = step.lower(*arguments).compile()
  assert not re.search(r'all-gather|all-to-all', compiled.as_text())
  assert re.search(r'collective-permute', compiled.as_text())  # the exchange of border rows
  (_, logits), _ = compiled(*jax.device_put(arguments, shardings))
  expected = _apply(model, variables, image, False)[0]['logits']
  np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
