"""What exported models compute: normalisation, channels, padding and activation in one function."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emseg_jax.data import normalise
from emseg_jax.export import inference

KINDS = ('dataset', 'imagenet', 'caffe', 'scale')
RANGES = {'uint8': (0, 255), 'int16': (-(2**15), 2**15 - 1), 'float32': (0, 1)}


class Probe(nn.Module):
  """Gives the image back as logits, after noting its size."""

  outputs: int = 0
  divisor = (4, 4)

  @nn.compact
  def __call__(self, image, *, train):
    del train
    assert all(size % 4 == 0 for size in image.shape[1:3])
    return {'logits': image[..., : self.outputs] if self.outputs else image}


def seen(normalisation, image, **options):
  """What the network is given, by the logarithm of the softmax over two channels it gives back."""
  infer = inference.make_inference(Probe(), normalisation, independent=True, **options)
  return jax.scipy.special.logit(np.asarray(infer({}, image), np.float64))


def made(kind, channels, dtype, **options):
  known = {'mean': 0.4, 'std': 0.3} if dtype == 'float32' else {'mean': 90.0, 'std': 35.0}
  return normalise.Normalisation(kind, channels, **known | {'dtype': dtype} | options)


def pixels(dtype, *shape):
  low, high = RANGES[dtype]
  values = np.random.default_rng(0).uniform(0.3, 0.7, shape)  # where sigmoids are not all 1
  return (low + values * (high - low)).astype(dtype)


@pytest.mark.parametrize('dtype', RANGES)
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('kind', KINDS)
def test_affine_is_what_normalisation_does_to_a_section(kind, channels, dtype):
  normalisation = made(kind, channels, dtype)
  section = pixels(dtype, 5, 6, 3)
  expected = normalisation.apply(section)
  offset, scale = inference.affine(normalisation)
  grey = section.astype(np.float64).mean(-1, keepdims=True)
  found = ((grey if channels == 1 else section) - offset) / scale
  assert inference.normalises_inside(normalisation)
  np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize('given', [1, 3])
@pytest.mark.parametrize('channels', [1, 3])
def test_grey_is_repeated_and_colour_averaged(channels, given):
  normalisation = made('dataset', channels, 'uint8', mean=120.0, std=50.0)
  image = pixels('uint8', 2, 4, 8, given)
  expected = np.stack([normalisation.apply(section) for section in image])
  np.testing.assert_allclose(seen(normalisation, image), expected, atol=1e-4)


def test_each_of_several_planes_is_normalised_like_a_section():
  normalisation = made('dataset', 3, 'uint8', mean=120.0, std=50.0)
  planes = pixels('uint8', 3, 4, 8, 1)
  expected = np.concatenate([normalisation.apply(plane) for plane in planes], -1)
  found = seen(normalisation, np.concatenate(list(planes), -1)[None], planes=3)
  assert found.shape == (1, 4, 8, 9)
  np.testing.assert_allclose(found[0], expected, atol=1e-4)


@pytest.mark.parametrize('channels', [2, 4])
def test_other_numbers_of_channels_are_refused(channels):
  infer = inference.make_inference(Probe(), made('dataset', 1, 'uint8'))
  with pytest.raises(ValueError, match=f'has {channels} channels, it must have 1 or 3'):
    infer({}, jnp.zeros((1, 4, 4, channels)))


def test_what_needs_a_whole_volume_is_taken_as_normalised_outside():
  image = np.float32([[[[-0.5], [0.25], [2.0]]]])
  for kind, expected in (('per_volume', image), ('percentile', np.clip(image, 0, 1))):
    normalisation = made(kind, 1, 'uint8')
    assert not inference.normalises_inside(normalisation)
    np.testing.assert_allclose(seen(normalisation, image), expected, atol=1e-5)


def test_the_activation_makes_two_classes_of_one_sigmoid():
  identity = made('dataset', 3, 'float32', mean=0.0, std=1.0)
  x = np.random.default_rng(1).normal(size=(1, 3, 5, 3)).astype(np.float32)
  e = np.exp(x.astype(np.float64))
  softmax = inference.make_inference(Probe(), identity)({}, x)
  np.testing.assert_allclose(softmax, e / e.sum(-1, keepdims=True), atol=1e-6)
  sigmoid = e / (1 + e)
  each = inference.make_inference(Probe(), identity, independent=True)({}, x)
  np.testing.assert_allclose(each, sigmoid, atol=1e-6)
  one = inference.make_inference(Probe(1), identity)({}, x)
  both = np.stack([1 - sigmoid[..., 0], sigmoid[..., 0]], -1)
  np.testing.assert_allclose(one, both, atol=1e-6)
  assert one.dtype == jnp.float32


@pytest.mark.parametrize('size', [(4, 4), (1, 7), (9, 8)])
def test_any_size_comes_back(size):
  infer = inference.make_inference(Probe(), made('dataset', 3, 'uint8'))
  assert infer({}, np.zeros((2, *size, 1), np.uint8)).shape == (2, *size, 3)
