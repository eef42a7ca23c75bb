"""ResNet-50 of output stride 8: size, strides and dilations."""

import jax
import jax.numpy as jnp
import pytest

from emseg_jax.models.backbones.resnet import ResNet50D8

KEY = jax.random.key(0)


def _convolutions(jaxpr):
  """Parameters of every convolution, in the order in which they run."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'conv_general_dilated':
      yield equation.params
    for value in equation.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from _convolutions(inner)


def _model_jaxpr(size):
  model = ResNet50D8(width=1 / 16)
  image = jnp.zeros((1, *size, 3))
  variables = jax.eval_shape(lambda: model.init(KEY, image, train=False))
  return jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, image)


# 'v1': torchvision's 25,557,032 less the 2,049,000 of its classifier.
@pytest.mark.parametrize(('stem', 'expected'), [('v1c', 23_527_264), ('v1', 23_508_032)])
def test_the_number_of_parameters_is_that_of_mmsegmentation_and_torchvision(stem, expected):
  model = ResNet50D8(stem=stem)
  shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes['params'])) == expected


def test_the_stages_have_the_channels_and_strides_of_the_table():
  model = ResNet50D8()
  outputs, _ = jax.eval_shape(
    lambda: model.init_with_output(KEY, jnp.zeros((2, 64, 96, 3)), train=False)
  )
  assert [x.shape for x in outputs] == [
    (2, 16, 24, 256),
    (2, 8, 12, 512),
    (2, 8, 12, 1024),
    (2, 8, 12, 2048),
  ]


def test_dilations_replace_the_strides_of_the_last_two_stages():
  wide = list(_convolutions(_model_jaxpr((64, 64)).jaxpr))
  dilations = [c['rhs_dilation'][0] for c in wide]
  strides = [c['window_strides'][0] for c in wide]
  stem, body = 3, 3 + 4 + 6 + 3
  assert len(wide) == stem + body  # each block has one; its 1x1 convolutions are products
  # Entry, then blocks of the stages; the first block of a dilated stage has half the dilation.
  assert dilations == [1] * 3 + [1] * 3 + [1] * 4 + [1] + [2] * 5 + [2] + [4] * 2
  assert strides == [2, 1, 1] + [1] * 3 + [2, 1, 1, 1] + [1] * 9


def test_padding_is_symmetric_as_in_pytorch():
  for conv in _convolutions(_model_jaxpr((64, 64)).jaxpr):
    d = conv['rhs_dilation'][0]
    assert tuple(conv['padding']) == ((d, d), (d, d))
