"""ResNet-50 of output stride 8: size, strides and dilations."""

import jax
import jax.numpy as jnp
import pytest
from model_support import count, equations, shapes

from emseg_jax.models.backbones.resnet import ResNet50D8

KEY = jax.random.key(0)


def _convolutions():
  """Parameters of every convolution, in the order in which they run."""
  model, image = ResNet50D8(width=1 / 16), jnp.zeros((1, 64, 64, 3))
  run = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))
  jaxpr = run(shapes(model, image.shape), image).jaxpr
  return [e.params for e in equations(jaxpr) if e.primitive.name == 'conv_general_dilated']


# 'v1': torchvision's 25,557,032 less the 2,049,000 of its classifier.
@pytest.mark.parametrize(('stem', 'expected'), [('v1c', 23_527_264), ('v1', 23_508_032)])
def test_the_number_of_parameters_is_that_of_mmsegmentation_and_torchvision(stem, expected):
  assert count(ResNet50D8(stem=stem), (1, 32, 32, 3)) == expected


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
  wide = _convolutions()
  dilations = [c['rhs_dilation'][0] for c in wide]
  strides = [c['window_strides'][0] for c in wide]
  stem, body = 3, 3 + 4 + 6 + 3
  assert len(wide) == stem + body  # each block has one; its 1x1 convolutions are products
  # Entry, then blocks of the stages; the first block of a dilated stage has half the dilation.
  assert dilations == [1] * 3 + [1] * 3 + [1] * 4 + [1] + [2] * 5 + [2] + [4] * 2
  assert strides == [2, 1, 1] + [1] * 3 + [2, 1, 1, 1] + [1] * 9


def test_padding_is_symmetric_as_in_pytorch():
  for conv in _convolutions():
    d = conv['rhs_dilation'][0]
    assert tuple(conv['padding']) == ((d, d), (d, d))
