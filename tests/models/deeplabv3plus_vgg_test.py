"""DeepLabv3+ with a VGG19-like encoder: parameter counts, layout of the encoder, low level."""

import jax
import jax.numpy as jnp
import model_support
import numpy as np
import pytest

from emseg_jax.models.deeplabv3plus_vgg import DeepLabV3PlusVgg, VggEncoder

# By hand: a convolution has its kernel, a bias and a scale and an offset of the norm per channel.
# Inputs and outputs of the encoder's 23 convolutions, of the pyramid's six and the decoder's three.
ENCODER = [
  *((1, 32), (32, 32)),
  *((32, 64), (64, 64)),
  *((64, 128), *[(128, 128)] * 3),
  *((128, 256), *[(256, 256)] * 3),
  *[(256, 256)] * (4 + 3 + 2 + 2),
]
PYRAMID_3X3, PYRAMID_1X1 = [(256, 256)] * 3, [(256, 256)] * 2 + [(5 * 256, 256)]
DECODER_3X3, DECODER_1X1 = [(256 + 48, 256), (256, 256)], [(64, 48)]
TOTAL = sum(
  size * i * o + 3 * o
  for size, layers in ((9, ENCODER + PYRAMID_3X3 + DECODER_3X3), (1, PYRAMID_1X1 + DECODER_1X1))
  for i, o in layers
)


@pytest.mark.parametrize(
  ('num_classes', 'channels', 'low_level', 'expected'),
  [
    (1, 1, 'block2', 12_675_057),
    (2, 1, 'block2', 12_675_314),
    (2, 3, 'block2', 12_675_890),
    (1, 1, 'block3', 12_678_129),
  ],
)
def test_the_number_of_parameters_is_the_sum_over_the_layers(
  num_classes, channels, low_level, expected
):
  model = DeepLabV3PlusVgg(num_classes, low_level=low_level)
  more = 9 * (channels - 1) * 32 + 48 * (64 if low_level == 'block3' else 0)
  assert TOTAL + more + num_classes * (256 + 1) == expected
  assert model_support.count(model, (1, 16, 16, channels)) == expected


def test_the_encoder_has_23_convolutions_in_blocks_of_2_2_4_4_4_3_2_2():
  encoder = model_support.shapes(VggEncoder(), (1, 16, 16, 1))['params']
  per_block = [sum(name.startswith(f'block{b}_') for name in encoder) for b in range(1, 9)]
  assert per_block == [2, 2, 4, 4, 4, 3, 2, 2]  # 23 and 8 are the paper's
  widths = [encoder[f'block{b}_1']['conv']['kernel'].shape[-1] for b in range(1, 9)]
  assert widths == [32, 64, 128, 256, 256, 256, 256, 256]


def test_a_voxel_of_the_last_block_depends_on_764_rows():
  # 1; 2 convolutions at 1/1, pooling; 2 at 1/2, pooling; 4 at 1/4, pooling; 4 at 1/8, pooling; at
  # 1/16 4 of rate 1, 3 of rate 2, 2 of rate 4, 2 of rate 1. A convolution adds 2·rate voxels of its
  # grid and pooling one.
  expected = 1 + (4 + 1) + (8 + 2) + (32 + 4) + (64 + 8) + 16 * (8 + 12 + 16 + 4)
  assert expected == 764
  encoder = VggEncoder(width=1 / 32)
  shape = (1, 1024, 16, 1)
  variables = jax.tree.map(np.abs, model_support.variables(encoder, shape))
  image = np.ones(shape, np.float32)  # equal voxels share the gradient of max pooling

  def middle(image):
    return jnp.sum(encoder.apply(variables, image, train=False)[-1][:, 32])

  gradient = jax.jit(jax.grad(middle))(image)
  rows = np.flatnonzero((np.asarray(gradient) != 0).any(axis=(0, 2, 3)))
  assert rows[-1] - rows[0] + 1 == expected
  assert rows[0] == 32 * 16 - (expected - 16) // 2


@pytest.mark.parametrize(('low_level', 'inputs', 'stride'), [('block2', 64, 2), ('block3', 128, 4)])
def test_the_decoder_works_at_the_size_of_the_block_it_adds(low_level, inputs, stride):
  model, shape = DeepLabV3PlusVgg(1, low_level=low_level), (1, 48, 32, 1)
  variables = model_support.shapes(model, shape)
  assert variables['params']['decoder']['low']['conv']['kernel'].shape == (1, 1, inputs, 48)

  def run(variables):
    image = jnp.zeros(shape)
    return model.apply(variables, image, train=False, capture_intermediates=True)[1]

  captured = jax.eval_shape(run, variables)['intermediates']
  assert captured['decoder']['__call__'][0].shape == (1, 48 // stride, 32 // stride, 256)
