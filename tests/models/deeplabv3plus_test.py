"""DeepLabv3+ on ResNet-50: parameter counts, which stage of the backbone feeds what."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import model_support
import numpy as np
import pytest

from emseg_jax.models import deeplabv3plus
from emseg_jax.models.deeplabv3plus import DeepLabV3Plus

BACKBONE, V1_BACKBONE = 23_527_264, 23_508_032  # as tested there


def _by_hand(num_classes, stem='v1c', aux=True):
  """A kernel has inputs·outputs per tap, a norm a scale and an offset per channel."""
  backbone = BACKBONE if stem == 'v1c' else V1_BACKBONE
  point = 2048 * 512 + 1024
  pyramid = 2 * point + 3 * (9 * 2048 + 2 * 2048 + point) + (9 * 5 * 512 * 512 + 1024)
  low = 256 * 48 + 96
  refine1 = (9 * 560 + 2 * 560) + (560 * 512 + 1024)
  refine2 = (9 * 512 + 2 * 512) + (512 * 512 + 1024)
  head = 512 * num_classes + num_classes
  fcn = (9 * 1024 * 256 + 512) + (256 * num_classes + num_classes)
  return backbone + pyramid + low + refine1 + refine2 + head + aux * fcn


# The paper of PmcaNet prints 43.58 M.
@pytest.mark.parametrize(
  ('num_classes', 'options', 'expected'),
  [
    (2, {}, 43_576_788),
    (3, {}, 43_577_558),
    (2, {'aux': False}, 41_216_466),
    (2, {'stem': 'v1'}, 43_557_556),
  ],
)
def test_the_number_of_parameters_is_that_of_the_paper_and_of_the_sum(
  num_classes, options, expected
):
  assert _by_hand(num_classes, **options) == expected
  assert model_support.count(DeepLabV3Plus(num_classes, **options), (1, 16, 16, 3)) == expected


class ChannelsAsStages(nn.Module):
  """A backbone whose four outputs are one channel of the image each."""

  width: float
  stem: str
  dtype: jnp.dtype

  def __call__(self, x, *, train):
    strides = (4, 8, 8, 8)
    return tuple(x[:, ::s, ::s, c : c + 1] for c, s in enumerate(strides))


def test_logits_come_from_the_first_and_last_stage_and_auxiliary_ones_from_the_third(monkeypatch):
  monkeypatch.setattr(deeplabv3plus, 'ResNet50D8', ChannelsAsStages)
  model = DeepLabV3Plus(2, width=1 / 64)
  image = model_support.normal(2, 24, 40, 4)
  variables = model_support.variables.__wrapped__(model, image.shape)  # not for the cache

  @jax.jit
  def run(image):
    rngs = model_support.KEYS
    return model.apply(variables, image, train=True, mutable=['batch_stats'], rngs=rngs)[0]

  before = run(image)
  matters = {name: [] for name in before}
  for channel in range(4):
    moved = image.copy()
    moved[:, 8, 16, channel] += 5
    for name, logits in run(moved).items():
      matters[name].append(bool(np.abs(logits - before[name]).max() > 1e-3))
  assert matters == {
    'logits': [True, False, False, True],
    'aux/fcn': [False, False, True, False],
  }
