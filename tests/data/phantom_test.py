"""The phantom is reproducible, looks like tissue to statistics, and defeats grey thresholds."""

import hashlib

import numpy as np
import pytest

from emseg_jax.data import phantom


def mean_iou(confusion):
  hits = np.diag(confusion)
  union = confusion.sum(0) + confusion.sum(1) - hits
  return np.mean(hits[union > 0] / union[union > 0])


def best_threshold_miou(image, labels, num_classes):
  """Largest mIoU over all thresholds and all pairs of classes below and above."""
  histogram = np.stack([np.bincount(image[labels == k], minlength=256) for k in range(num_classes)])
  below = histogram.cumsum(1)
  best = 0.0
  for low in range(num_classes):
    for high in range(num_classes):
      for threshold in range(256) if low != high else ():
        confusion = np.zeros((num_classes, num_classes))
        confusion[:, low] += below[:, threshold]
        confusion[:, high] += below[:, -1] - below[:, threshold]
        best = max(best, mean_iou(confusion))
  return best


def test_best_threshold_of_two_separate_grey_values_is_perfect():
  labels = np.array([[0, 0, 1, 1]])
  assert best_threshold_miou(np.array([[9, 9, 5, 5]]), labels, 2) == 1.0


def test_a_section_depends_on_seed_index_and_size_alone():
  images, labels = phantom.make_sections(count=3, size=(40, 56), seed=5)
  assert images.shape == labels.shape == (3, 40, 56)
  assert images.dtype == labels.dtype == np.uint8
  image, label = phantom.make_section(seed=5, index=2, size=(40, 56))
  np.testing.assert_array_equal(image, images[2])
  np.testing.assert_array_equal(label, labels[2])
  assert not np.array_equal(labels[0], labels[1])
  other, _ = phantom.make_section(seed=6, index=2, size=(40, 56))
  assert not np.array_equal(other, image)


# Recorded once: these pins guard every number that was measured on the phantom.
def test_the_labels_of_a_section_never_change():
  image, labels = phantom.make_section(seed=1, index=0, size=(256, 256))
  assert hashlib.sha256(labels.tobytes()).hexdigest()[:16] == 'babf224849b20dd6'
  assert image.mean() == pytest.approx(144.3, abs=0.5)


def test_the_labels_of_a_volume_never_change():
  image, labels = phantom.make_volume(shape=(24, 64, 64), seed=1)
  assert hashlib.sha256(labels.tobytes()).hexdigest()[:16] == 'b7c96da3a7a7e52e'
  assert image.mean() == pytest.approx(131.8, abs=0.5)


@pytest.mark.parametrize('size', [(128, 128), (256, 256), (150, 400)])
def test_no_grey_threshold_segments_a_section(size):
  for seed in range(6):
    image, labels = phantom.make_section(seed=seed, index=seed % 3, size=size)
    assert best_threshold_miou(image, labels, 3) < 0.5
    # Marking nothing as membrane already scores (1 - share) / 2, about 0.41.
    assert best_threshold_miou(image, (labels == 1).astype(int), 2) < 0.6


@pytest.mark.parametrize('seed', range(4))
def test_class_shares_are_those_of_tissue(seed):
  _, labels = phantom.make_sections(count=3, size=(192, 192), seed=seed)
  cytoplasm, membrane, mitochondrion = np.bincount(labels.ravel(), minlength=3) / labels.size
  assert 0.10 < membrane < 0.25
  assert 0.05 < mitochondrion < 0.15
  assert cytoplasm > 0.6


def test_grey_values_of_mitochondria_overlap_those_of_both_other_classes():
  images, labels = phantom.make_sections(count=4, size=(192, 192), seed=0)
  low, high = np.percentile(images[labels == 2], [10, 90])
  for other in (0, 1):
    values = images[labels == other]
    assert np.mean((values >= low) & (values <= high)) > 0.4


def test_a_volume_is_as_continuous_in_z_as_in_y_and_x():
  image, labels = phantom.make_volume(shape=(48, 80, 80), seed=0)
  assert image.shape == labels.shape == (48, 80, 80)
  same = [np.mean(np.diff(labels.astype(int), axis=axis) == 0) for axis in range(3)]
  assert min(same) > 0.9
  assert max(same) - min(same) < 0.03
  shares = np.bincount(labels.ravel(), minlength=3) / labels.size
  assert 0.10 < shares[1] < 0.25
  assert 0.05 < shares[2] < 0.15


def test_no_grey_threshold_segments_a_volume():
  image, labels = phantom.make_volume(shape=(32, 128, 128), seed=3)
  assert best_threshold_miou(image, labels, 3) < 0.5
  assert best_threshold_miou(image, (labels == 1).astype(int), 2) < 0.6


@pytest.mark.parametrize('size', [(1, 1), (3, 200), (33, 7)])
def test_any_size_is_made(size):
  image, labels = phantom.make_section(seed=0, index=0, size=size)
  assert image.shape == labels.shape == size
  assert labels.max() < len(phantom.CLASSES)


def test_cytoplasm_lies_between_mitochondria_and_membranes():
  _, labels = phantom.make_sections(count=2, size=(192, 192), seed=2)
  touching = 0
  for axis in (1, 2):
    a, b = np.moveaxis(labels, axis, 0)[:-1], np.moveaxis(labels, axis, 0)[1:]
    touching += np.count_nonzero(((a == 1) & (b == 2)) | ((a == 2) & (b == 1)))
  assert touching == 0
