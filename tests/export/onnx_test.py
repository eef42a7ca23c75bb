"""model.onnx: what onnxruntime computes is what JAX computes."""

import json
import sys

import bundle_support
import jax
import jax.numpy as jnp
import model_support
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emseg_jax import bundle as bundle_lib
from emseg_jax import models
from emseg_jax.data import normalise
from emseg_jax.errors import ConfigError, OutputError
from emseg_jax.export import inference, onnx
from emseg_jax.models import resample
from emseg_jax.models.backbones.resnet import ResNet50D8

pytestmark = pytest.mark.parity  # where the extra is installed for them
library = pytest.importorskip('onnx')
runtime = pytest.importorskip('onnxruntime')

SMALL = {'width': 1 / 16}
# As small as the networks get, with the parts of their full form.
NETWORKS = dict.fromkeys(models.MODELS, SMALL) | {
  'rescrnet': {'filters': 2, 'conv_blocks': 1, 'lstm_blocks': 1},
  'segmenter': {'width': 1 / 16, 'depth': 2, 'grid': (4, 4)},
  'segvit': {'width': 1 / 16, 'depth': 2, 'taps': (0, 1), 'decoder_layers': 1, 'grid': (4, 4)},
}
# Residual networks whose features grow from block to block if they are not trained: a softmax of
# numbers in the thousands is no fair comparison.
GROWING = {'cheng2d', 'cheng3d', 'deeplabv3plus', 'pidnet', 'pmcanet', 'resunet'}


def _halved_scale(path, value):
  return value / 2 if path[-1].key == 'scale' else value


@pytest.mark.parametrize('name', NETWORKS)
def test_onnxruntime_and_jax_give_the_same_probabilities(name, monkeypatch):
  stages = tuple(s._replace(blocks=2) for s in ResNet50D8.stages)
  monkeypatch.setattr(ResNet50D8, 'stages', stages)
  model = models.create_model(name, 2, **NETWORKS[name])
  least = 32 if len(model.divisor) == 2 else 8
  size = tuple(max(least, 2 * d) for d in model.divisor)
  # Not `variables`, which would keep them for the tests of the whole network.
  values = model_support.moved(
    model_support.start_values(model_support.shapes(model, (1, *size, 1)))
  )
  if name in GROWING:
    values = jax.tree_util.tree_map_with_path(_halved_scale, values)
  infer = inference.make_inference(model, normalise.Normalisation('scale', 1, 0.0, 1.0, 'uint8'))
  made = onnx.convert(lambda x: infer(values, x), (*size, 1))
  # Three images: their number is free, and none has a part in another's result.
  image = np.random.default_rng(0).integers(0, 256, (3, *size, 1)).astype(np.float32)
  expected = np.asarray(jax.jit(infer)(values, image))
  assert expected.std() > 0.003
  assert ((expected > 0.01) & (expected < 0.99)).mean() > 0.1
  np.testing.assert_allclose(onnx.run(made.SerializeToString(), image), expected, atol=1e-4)


def test_a_bundle_gets_a_model_with_channels_first_that_says_what_it_is(tmp_path):
  bundle = bundle_support.make_bundle()
  bundle_lib.write_bundle(tmp_path / 'model', bundle, forms={'onnx': onnx.write})
  form = bundle_lib.read_bundle(tmp_path / 'model').record.forms['onnx']
  assert (form['axes'], form['opset']) == ('bcyx', 17)
  assert (form['input'], form['output']) == (['b', '1', '32', '32'], ['b', '2', '32', '32'])
  assert form['sizes'] == 'Any number of images of 32 x 32 (y, x) voxels.'
  assert form['largest_difference'] < 1e-5
  session = runtime.InferenceSession(tmp_path / 'model' / 'model.onnx')
  assert session.get_inputs()[0].shape == ['b', 1, 32, 32]
  pixels = np.moveaxis(bundle.sample[0], -1, 1)
  (found,) = session.run(None, {'image': np.concatenate([pixels, 255 - pixels])})
  np.testing.assert_allclose(found[0], np.moveaxis(bundle.sample[1], -1, 1)[0], atol=1e-5)
  known = session.get_modelmeta().custom_metadata_map
  assert json.loads(known['classes']) == ['cell', 'membrane']
  assert json.loads(known['normalisation'])['mean'] == 120.0


def test_the_graph_of_a_network_has_no_transposition_but_those_of_up_convolutions():
  model = models.create_model('unet', 2, width=1 / 32)
  values = model_support.variables(model, (1, 32, 32, 1))
  made = onnx.convert(lambda x: model.apply(values, x, train=False)['logits'], (32, 32, 1))
  kinds = [node.op_type for node in made.graph.node]
  assert kinds.count('Transpose') == 4  # one for each time it doubles the image
  assert not set(kinds) & {'Shape', 'Expand', 'If'}


# Each has its own way into the graph: [B, 4, 6, 2] -> [B, 4, 6, ...].
FUNCTIONS = {
  'strided': lambda x: x[:, ::2, ::3],
  'picked': lambda x: x[:, :, :, 1:] - x[:, 0:1],
  'last row first': lambda x: jnp.flip(x, (1, 2)) * jnp.arange(6.0).reshape(1, 1, 6, 1),
  'pairs of rows': lambda x: x.reshape(-1, 2, 2, 6, 2).max(2),
  'merged': lambda x: x.reshape(x.shape[0], 24, 2).transpose(0, 2, 1).reshape(-1, 4, 6, 2),
  'repeated': lambda x: resample.upsample_nearest(x, 2),
  'interpolated': lambda x: resample.upsample_linear(x, (2, 3)),
  'resized': lambda x: resample.resize_align_corners(x, (7, 5)),
  'shifted': lambda x: resample.shift(resample.shift(x, 1, 2), 2, -1),
  'same for all images': lambda x: jnp.concatenate(
    [jnp.broadcast_to(jnp.arange(2.0), (*x.shape[:3], 2)), x], -1
  ),
  'neighbours': lambda x: jax.lax.conv_general_dilated(
    x, jnp.ones((3, 3, 2, 2)), (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  ),
  'of the image': lambda x: x - x.mean((1, 2), keepdims=True) / (1 + x.std((1, 2), keepdims=True)),
  'attention': lambda x: jnp.einsum('byic,byjc->byij', x, jax.nn.softmax(x, -1)),
  'choice': lambda x: jnp.where((x > 0.2) & (x != 1) | ~(x >= -1), jax.nn.gelu(x), jax.nn.elu(x)),
  'powers': lambda x: jnp.abs(x) ** 3 + jnp.sqrt(jnp.abs(x)) + jnp.square(x) ** 0.7 - jnp.tanh(-x),
  'largest of windows': lambda x: jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
  ),
  'sum of windows': lambda x: jax.lax.reduce_window(
    x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
  ),
  'strided convolution': lambda x: jax.lax.conv_general_dilated(
    x, jnp.arange(36.0).reshape(3, 3, 1, 4), (2, 1), ((1, 0), (2, 1)), rhs_dilation=(1, 2),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=2,
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', FUNCTIONS)
def test_an_operation_gives_what_it_gives_in_jax(name):
  x = model_support.normal(3, 4, 6, 2)
  made = onnx.convert(FUNCTIONS[name], x.shape[1:])
  expected = FUNCTIONS[name](jnp.asarray(x))
  found = onnx.run(made.SerializeToString(), x)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('reverse', [False, True])
def test_a_loop_sees_rows_in_order_and_keeps_its_state_for_each_image(reverse):
  def sums(x):  # of all rows so far, and of the matrix around the loop
    matrix = jnp.asarray([[1.0, 2.0], [0.0, 1.0]])

    def step(state, row):
      state = state + row @ matrix
      return state, state

    zeros = jnp.zeros((x.shape[0], x.shape[2], 2))
    return jax.lax.scan(step, zeros, jnp.moveaxis(x, 1, 0), reverse=reverse)[1].transpose(
      1, 0, 2, 3
    )

  x = model_support.normal(3, 4, 6, 2)
  made = onnx.convert(sums, x.shape[1:])
  y = np.stack([x[..., 0], 2 * x[..., 0] + x[..., 1]], -1)
  expected = np.cumsum(y[:, ::-1], 1)[:, ::-1] if reverse else np.cumsum(y, 1)
  np.testing.assert_allclose(onnx.run(made.SerializeToString(), x), expected, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_axes_may_be_split_merged_and_moved_at_will(data):
  """numpy does the same; the convolution stores the array with channels first."""
  steps, shape = [], [4, 6, 4]
  for _ in range(data.draw(st.integers(1, 4))):
    axis = data.draw(st.integers(0, len(shape) - 1))
    kind = data.draw(st.sampled_from(['split', 'merge', 'move']))
    if kind == 'split' and shape[axis] % 2 == 0:
      shape = [*shape[:axis], 2, shape[axis] // 2, *shape[axis + 1 :]]
      steps.append(('reshape', tuple(shape)))
    elif kind == 'merge' and axis + 1 < len(shape):
      shape = [*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]]
      steps.append(('reshape', tuple(shape)))
    elif kind == 'move':
      order = data.draw(st.permutations(range(len(shape))))
      shape = [shape[axis] for axis in order]
      steps.append(('transpose', tuple(1 + axis for axis in order)))

  def function(x):
    for kind, argument in steps:
      prefix = (x.shape[0],) if kind == 'reshape' else (0,)
      x = getattr(x, kind)((*prefix, *argument))
    return x

  doubled = jnp.eye(4) * 2
  x = model_support.normal(2, 4, 6, 4)
  made = onnx.convert(lambda x: function(x @ doubled), x.shape[1:])
  np.testing.assert_allclose(onnx.run(made.SerializeToString(), x), function(x * 2), rtol=1e-6)


def test_what_onnx_lacks_is_named():
  with pytest.raises(NotImplementedError, match='the operation sort'):
    onnx.convert(lambda x: jnp.sort(x, axis=1), (4, 6, 2))
  with pytest.raises(NotImplementedError, match='depends on the image'):
    onnx.convert(lambda x: jnp.take(x, x[0, 0, :, 0].astype(int), axis=1), (4, 6, 2))


def test_a_network_that_onnxruntime_computes_otherwise_is_not_written(tmp_path, monkeypatch):
  bundle = bundle_support.make_bundle()
  monkeypatch.setattr(onnx, 'run', lambda model, image: bundle.sample[1] + 0.01)
  with pytest.raises(OutputError, match=r'model\.onnx: .* 0\.01 from those of JAX, .* 0\.001'):
    bundle_lib.write_bundle(tmp_path / 'model', bundle, forms={'onnx': onnx.write})
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('missing', ['onnx', 'onnxruntime'])
def test_a_missing_extra_is_named(missing, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, missing, None)
  with pytest.raises(ConfigError, match=rf'needs {missing}, .*pip install "\.\[onnx\]"'):
    onnx.write(tmp_path, bundle_support.make_bundle())
