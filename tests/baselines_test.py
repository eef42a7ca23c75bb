"""The two trivial predictions, on images whose best threshold is known by hand.

The search itself is tested with the metrics; here it is what images are made of: types, channels,
ignored pixels.
"""

import numpy as np
import pytest
from data_support import volume_split

from emseg_jax.baselines import trivial_baselines

LABEL = np.zeros((2, 8, 8), np.uint8)
LABEL[:, 2:6, 2:6] = 1  # a quarter of each section
CLASSES = ('no', 'yes')


def _baselines(image, label=LABEL, classes=CLASSES):
  split = volume_split((image, label), num_classes=len(classes), ignore_value=255)
  counts = np.bincount(label[label != 255], minlength=len(classes))
  # Only the row sums may count: everything was predicted as class 1.
  confusion = np.zeros((len(classes), len(classes)), np.int64)
  confusion[:, 1] = counts
  return trivial_baselines(split, confusion, classes)


def _between(low, high, *, dtype) -> np.ndarray:
  """Class 0 has values low[0]..low[1], class 1 high[0]..high[1]; both ends occur."""
  rng = np.random.default_rng(0)
  image = np.where(LABEL == 1, rng.uniform(*high, LABEL.shape), rng.uniform(*low, LABEL.shape))
  image[0, 0, :2], image[0, 3, 3:5] = low, high
  return image.astype(dtype)


@pytest.mark.parametrize(
  ('low', 'high', 'dtype'),
  [
    ((10, 99), (100, 250), np.uint8),
    ((1_000, 30_000), (31_000, 65_535), np.uint16),
    ((-3.0, -0.5), (-0.4, 7.25), np.float32),
    ((0.0, 1e-4), (2e-4, 3e-4), np.float32),
  ],
)
def test_a_threshold_between_two_ranges_is_perfect_for_every_type(low, high, dtype):
  found = _baselines(_between(low, high, dtype=dtype))['threshold']
  assert found['miou'] == 1.0
  assert found['accuracy'] == 1.0
  assert low[1] <= found['threshold'] <= high[0]
  assert (found['below'], found['above']) == CLASSES


def test_a_dark_structure_lies_below():
  found = _baselines(_between((150, 250), (10, 149), dtype=np.uint8))['threshold']
  assert (found['below'], found['above'], found['miou']) == ('yes', 'no', 1.0)


def test_colours_are_averaged():
  # No channel alone tells the classes apart, since 'no' has two colours; the means are 70 and 80.
  image = np.where(LABEL[..., None] == 1, (60, 90, 90), (200, 0, 10))
  image[:, :1] = (0, 200, 10)
  found = _baselines(image.astype(np.uint8))['threshold']
  assert found['miou'] == 1.0
  assert 70 < found['threshold'] <= 80


def test_ignored_pixels_do_not_count():
  image, label = _between((10, 99), (100, 250), dtype=np.uint8), LABEL.copy()
  image[:, 7], label[:, 7] = 255, 255  # background as bright as can be
  found = _baselines(image, label)
  assert found['threshold']['miou'] == 1.0
  assert found['majority']['accuracy'] == 1 - 16 / 56


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_on_constant_images_a_threshold_is_no_better_than_the_majority(dtype):
  found = _baselines(np.full(LABEL.shape, 7, dtype))
  assert found['majority']['class'] == 'no'
  for name in ('majority', 'threshold'):
    assert found[name]['accuracy'] == 0.75
    assert found[name]['miou'] == 0.75 / 2


def test_of_three_classes_a_threshold_finds_two():
  label = LABEL.copy()
  label[:, :, 7] = 2  # 8 of 64 pixels, as grey as class 0
  found = _baselines(_between((10, 99), (100, 250), dtype=np.uint8), label, ('no', 'yes', 'rare'))
  # Class 0: 40 of 48 below the threshold are right; class 1 is found, class 2 never.
  assert found['threshold']['miou'] == pytest.approx((40 / 48 + 1 + 0) / 3)
  assert found['majority']['miou'] == pytest.approx((40 / 64 + 0 + 0) / 3)
