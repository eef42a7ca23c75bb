"""The five normalisations against their formulas in numpy."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emseg_jax.data import normalise
from emseg_jax.data.normalise import Normalisation, VolumeStatistics
from emseg_jax.errors import DataError

KINDS = ('dataset', 'per_volume', 'percentile', 'imagenet', 'caffe', 'scale')


def sections(dtype=np.uint8, count=3, colour=False):
  """Sections of unequal size and brightness."""
  rng = np.random.default_rng(1)
  shapes = [(7 + i, 5 + 2 * i) + (3,) * colour for i in range(count)]
  high = 1.0 if np.dtype(dtype).kind == 'f' else np.iinfo(dtype).max
  return [(rng.random(s) * high * (i + 1) / count).astype(dtype) for i, s in enumerate(shapes)]


def pixels(images):
  return np.concatenate([image.ravel() for image in images]).astype(np.float64)


def test_dataset_is_zero_mean_unit_deviation_over_all_training_pixels():
  images = sections()
  n = normalise.fit('dataset', 1, images)
  # Every pixel counts alike, however large its section.
  assert n.mean == pytest.approx(pixels(images).mean(), rel=1e-12)
  assert n.std == pytest.approx(pixels(images).std(), rel=1e-12)
  out = np.concatenate([n.apply(image).ravel() for image in images])
  assert out.dtype == np.float32
  assert out.mean() == pytest.approx(0, abs=1e-5)
  assert out.std() == pytest.approx(1, rel=1e-5)
  np.testing.assert_allclose(
    n.apply(images[0])[..., 0],
    (images[0] - pixels(images).mean()) / pixels(images).std(),
    rtol=1e-4,
  )


def test_per_volume_uses_the_statistics_of_the_volume():
  images = sections(np.uint16)
  volume = normalise.volume_statistics(images)
  n = normalise.fit('per_volume', 1, images)
  assert n.needs_volume
  expected = (images[1] - pixels(images).mean()) / pixels(images).std()
  np.testing.assert_allclose(n.apply(images[1], volume)[..., 0], expected, rtol=1e-4, atol=1e-6)


def test_percentile_maps_1_to_99_percent_to_0_to_1_and_clips():
  images = [np.arange(10_001, dtype=np.float32).reshape(1, -1) / 10_000]
  volume = normalise.volume_statistics(images)
  # Of the ramp 0, 0.0001, ... 1 the percentiles are 0.01 and 0.99.
  assert (volume.low, volume.high) == pytest.approx((0.01, 0.99), rel=1e-5)
  out = normalise.fit('percentile', 1, images).apply(images[0], volume)[..., 0]
  np.testing.assert_allclose(out, np.clip((images[0] - 0.01) / 0.98, 0, 1), atol=1e-6)
  assert (out.min(), out.max()) == (0, 1)


def test_percentiles_of_a_large_section_come_from_an_even_sample():
  image = np.arange(2**18, dtype=np.float32).reshape(512, 512)
  volume = normalise.volume_statistics([image])
  assert volume.low == pytest.approx(0.01 * 2**18, rel=1e-2)
  assert volume.high == pytest.approx(0.99 * 2**18, rel=1e-2)
  assert volume.mean == pytest.approx((2**18 - 1) / 2)


@pytest.mark.parametrize(
  ('dtype', 'value', 'expected'),
  [
    (np.uint8, 51, 51 / 255),
    (np.uint16, 13107, 13107 / 65535),
    (np.int8, -128, 0.0),
    (np.int16, 32767, 1.0),
    (np.float32, 0.25, 0.25),  # floats are taken to lie in 0..1
    (bool, True, 1.0),
  ],
)
def test_scale_maps_the_range_of_the_type_to_0_to_1(dtype, value, expected):
  image = np.full((2, 3), value, dtype)
  out = normalise.fit('scale', 1, [image]).apply(image)
  np.testing.assert_allclose(out, np.full((2, 3, 1), expected), rtol=1e-6, atol=1e-7)


def test_imagenet_uses_the_statistics_of_torchvision_on_0_to_255():
  n = normalise.fit('imagenet', 3, sections())
  out = n.apply(np.full((1, 1), 100, np.uint8))
  # (100 - 123.675) / 58.395, (100 - 116.28) / 57.12, (100 - 103.53) / 57.375
  np.testing.assert_allclose(out[0, 0], [-0.405429, -0.285014, -0.061525], atol=1e-5)
  # torchvision prints them for 0..1: mean 0.485 0.456 0.406, std 0.229 0.224 0.225
  np.testing.assert_allclose(np.divide(normalise.IMAGENET_MEAN, 255), [0.485, 0.456, 0.406])
  np.testing.assert_allclose(np.divide(normalise.IMAGENET_STD, 255), [0.229, 0.224, 0.225])


def test_imagenet_brings_other_types_to_0_to_255_first():
  n = normalise.fit('imagenet', 3, sections())
  eight, sixteen = (np.full((1, 1), v, t) for v, t in ((100, np.uint8), (25700, np.uint16)))
  np.testing.assert_allclose(n.apply(eight), n.apply(sixteen), rtol=1e-5)  # 25700 = 257 * 100


def test_imagenet_with_one_channel_uses_the_mean_of_the_statistics():
  out = normalise.fit('imagenet', 1, sections()).apply(np.full((1, 1), 100, np.uint8))
  # means: (123.675 + 116.28 + 103.53) / 3 = 114.495, (58.395 + 57.12 + 57.375) / 3 = 57.63
  np.testing.assert_allclose(out, [[[(100 - 114.495) / 57.63]]], rtol=1e-5)


# ---- channels -----------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['dataset', 'per_volume', 'percentile', 'scale'])
def test_grey_is_repeated_for_three_channels(kind):
  images = sections()
  volume = normalise.volume_statistics(images)
  one = normalise.fit(kind, 1, images).apply(images[0], volume)
  three = normalise.fit(kind, 3, images).apply(images[0], volume)
  assert one.shape == (*images[0].shape, 1)
  assert three.shape == (*images[0].shape, 3)
  for channel in range(3):
    np.testing.assert_array_equal(three[..., channel], one[..., 0])


def test_colour_is_averaged_for_one_channel():
  image = np.array([[[30, 60, 90], [0, 0, 3]]], np.uint8)
  out = normalise.fit('scale', 1, [image]).apply(image)
  np.testing.assert_allclose(out, np.array([[[60 / 255], [1 / 255]]]), rtol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_the_shape_is_that_of_the_section_with_the_channels_asked_for(kind):
  for colour in (False, True):
    images = sections(colour=colour)
    volume = normalise.volume_statistics(images)
    for channels in (1, 3):
      out = normalise.fit(kind, channels, images).apply(images[2], volume)
      assert out.shape == (*images[2].shape[:2], channels)
      assert out.dtype == np.float32
      assert np.isfinite(out).all()


# ---- statistics ---------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(value=st.floats(-1e6, 1e6, width=32), count=st.integers(1, 9), size=st.integers(1, 70))
def test_training_images_of_one_value_are_refused_whatever_the_value(value, count, size):
  # Σx² - n·mean² leaves a rounding error here, which a division would blow up.
  images = [np.full((size, size + 3), value, np.float32)] * count
  with pytest.raises(DataError, match='all training pixels have the same value'):
    normalise.fit('dataset', 1, images)


def test_small_differences_on_a_large_offset_keep_their_deviation():
  image = 1e6 + np.random.default_rng(0).normal(0, 0.01, (64, 64))
  n = normalise.fit('dataset', 1, np.split(image, 4))
  assert n.std == pytest.approx(image.std(), rel=1e-6)


@pytest.mark.parametrize('kind', ['per_volume', 'percentile'])
@pytest.mark.parametrize('value', [0, 0.1, 255])
def test_a_blank_volume_becomes_zero(kind, value):
  blank = np.full((4, 5), value, np.float32)
  volume = normalise.volume_statistics([blank, blank])
  out = normalise.fit(kind, 1, [blank]).apply(blank, volume)
  np.testing.assert_array_equal(out, np.zeros((4, 5, 1)))


def test_only_the_dataset_kind_reads_more_than_one_section():
  read = []

  def stream():
    for image in sections():
      read.append(image)
      yield image

  for kind in KINDS:
    read.clear()
    normalise.fit(kind, 1, stream())
    assert len(read) == (3 if kind == 'dataset' else 1)


def test_no_training_images_are_an_error():
  with pytest.raises(DataError, match='no training images'):
    normalise.fit('scale', 1, [])


@pytest.mark.parametrize('kind', ['per_volume', 'percentile'])
def test_forgetting_the_volume_is_a_programming_error(kind):
  with pytest.raises(ValueError, match='needs the statistics'):
    normalise.fit(kind, 1, sections()).apply(sections()[0])


# ---- record -------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
def test_the_record_goes_through_json_and_normalises_the_same(kind):
  images = sections(np.uint16)
  n = normalise.fit(kind, 3, images)
  again = Normalisation.from_json(json.loads(json.dumps(n.to_json())))
  assert again == n
  assert again.dtype == 'uint16'
  volume = VolumeStatistics(100.0, 7.0, 3.0, 900.0)
  np.testing.assert_array_equal(again.apply(images[0], volume), n.apply(images[0], volume))


def test_caffe_subtracts_the_mean_of_keras_vgg_and_divides_nothing():
  out = normalise.fit('caffe', 3, sections()).apply(np.full((1, 1), 100, np.uint8))
  # keras.applications.imagenet_utils, mode 'caffe', turned from BGR to RGB
  np.testing.assert_allclose(out[0, 0], [100 - 123.68, 100 - 116.779, 100 - 103.939], atol=1e-4)
