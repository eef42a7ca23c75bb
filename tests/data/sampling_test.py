"""Random regions of sections: where they lie, what they hold, and what is not scored."""

import numpy as np
import pytest
from data_support import cut_out, rules

from emseg_jax.config import Sampling
from emseg_jax.data import normalise, pairs, sampling, volumes

RAW = normalise.Normalisation('dataset', 1, 0.0, 1.0, 'float32')  # leaves pixels as they are


def split_of(shape, *, ignore_value=None, colour=False):
  """One section whose image holds its own flat pixel numbers and whose label is that modulo 5."""
  number = np.arange(np.prod(shape)).reshape(shape)
  image = number.astype(np.float32)
  if colour:
    image = np.stack([image] * 3, axis=-1)
  volume = volumes.ArrayVolume(image[None])
  label = volumes.ArrayVolume((number % 5).astype(np.uint8)[None])
  return pairs.Split(
    [pairs.Section('memory', volume, 0, label, 0)],
    rules=rules(5, ignore_value=ignore_value),
    cache_bytes=10**6,
  )


def draw(split, region, seed=0, normalisation=RAW):
  return draw_from(split, region, np.random.default_rng(seed), normalisation)


def draw_from(split, region, rng, normalisation=RAW):
  sampler = sampling.Sampler(split, patch=region, region=region, options=Sampling())
  drawn = sampler.draw(0, rng)
  return cut_out(split, drawn, ndim=2, normalisation=normalisation)


def corner(example, shape):
  """(y, x) of the first pixel, read from its number."""
  return tuple(int(i) for i in np.unravel_index(int(example['image'][0, 0, 0]), shape))


def test_image_label_and_weight_are_cut_at_the_same_place():
  shape, region = (20, 30), (8, 6)
  for seed in range(10):
    example = draw(split_of(shape), region, seed)
    y, x = corner(example, shape)
    number = np.arange(600).reshape(shape)[y : y + 8, x : x + 6]
    np.testing.assert_array_equal(example['image'][..., 0], number)
    np.testing.assert_array_equal(example['label'], number % 5)
    np.testing.assert_array_equal(example['weight'], np.ones(region))
    np.testing.assert_array_equal(example['valid'], region)


def test_the_origin_is_the_first_two_draws_y_then_x():
  # What a run draws must stay the same from one version of the program to the next.
  for seed in range(5):
    rng = np.random.default_rng(seed)
    expected = int(rng.integers(0, 13)), int(rng.integers(0, 25))
    assert corner(draw(split_of((20, 30)), (8, 6), seed), (20, 30)) == expected


def test_the_types_are_those_of_a_batch():
  example = draw(split_of((9, 9)), (4, 4))
  assert {name: value.dtype for name, value in example.items()} == {
    'image': np.float32,
    'label': np.int32,
    'weight': np.float32,
    'valid': np.int32,
  }
  assert example['image'].shape == (4, 4, 1)


def test_the_place_is_uniform_over_all_places_corners_included():
  # A 6 x 5 image holds 3 x 4 = 12 places of a 4 x 2 region.
  shape, region, count = (6, 5), (4, 2), 3000
  split = split_of(shape)
  rng = np.random.default_rng(0)
  seen = {}
  for _ in range(count):
    example = draw_from(split, region, rng)
    place = corner(example, shape)
    seen[place] = seen.get(place, 0) + 1
  assert set(seen) == {(y, x) for y in range(3) for x in range(4)}
  # 250 expected, standard deviation sqrt(3000/12 * 11/12) = 15; five of them
  assert max(abs(n - count / 12) for n in seen.values()) < 75


def test_an_image_of_the_size_of_the_region_is_taken_whole():
  example = draw(split_of((6, 7)), (6, 7))
  np.testing.assert_array_equal(example['image'][..., 0], np.arange(42).reshape(6, 7))


@pytest.mark.parametrize('shape', [(3, 5), (3, 12), (12, 5), (1, 1)])
def test_an_image_smaller_than_the_region_lies_top_left_and_the_rest_does_not_count(shape):
  region = (8, 9)
  example = draw(split_of(shape), region, seed=3)
  height, width = min(shape[0], 8), min(shape[1], 9)
  np.testing.assert_array_equal(example['valid'], [height, width])
  weight = np.zeros(region)
  weight[:height, :width] = 1
  np.testing.assert_array_equal(example['weight'], weight)
  y, x = corner(example, shape)
  number = np.arange(np.prod(shape)).reshape(shape)[y : y + 8, x : x + 9]
  np.testing.assert_array_equal(example['image'][:height, :width, 0], number)
  # Padding shows tissue, mirrored, so that augmentation never sees a black border.
  padding = [(0, 8 - height), (0, 9 - width)]
  np.testing.assert_array_equal(example['image'][..., 0], np.pad(number, padding, 'symmetric'))
  assert (example['label'][weight == 0] == 0).all()


def test_ignored_pixels_have_weight_zero_and_a_harmless_class():
  example = draw(split_of((12, 12), ignore_value=3), (12, 12))
  ignored = np.arange(144).reshape(12, 12) % 5 == 3
  assert ignored.any()
  np.testing.assert_array_equal(example['weight'], ~ignored)
  assert (example['label'][ignored] == 0).all()
  assert set(np.unique(example['label'])) == {0, 1, 2, 4}


def test_colour_is_cut_like_grey():
  example = draw(
    split_of((4, 4), colour=True),
    (6, 3),
    normalisation=normalise.Normalisation('dataset', 3, 0.0, 1.0, 'float32'),
  )
  assert example['image'].shape == (6, 3, 3)
  for channel in range(3):
    np.testing.assert_array_equal(example['image'][..., channel], example['image'][..., 0])


def test_the_region_is_normalised_with_the_statistics_of_the_whole_volume():
  split = split_of((10, 10))
  n = normalise.Normalisation('per_volume', 1, 0.0, 1.0, 'float32')
  example = draw(split, (3, 3), seed=1, normalisation=n)
  number = draw(split, (3, 3), seed=1)['image']
  # Of 0 .. 99 the mean is 49.5 and the variance (100² - 1) / 12.
  np.testing.assert_allclose(example['image'], (number - 49.5) / np.sqrt(9999 / 12), rtol=1e-5)


def test_a_draw_depends_on_its_generator_alone():
  split = split_of((40, 40))
  one, same, other = (draw(split, (5, 5), seed) for seed in (1, 1, 2))
  for name in one:
    np.testing.assert_array_equal(one[name], same[name])
  assert not np.array_equal(one['image'], other['image'])
