"""Scores of volumes counted in parts equal those of the whole volume at once."""

import numpy as np
import pytest
from data_support import BoxVolume, rules, volume_split
from volume_support import Stand

from emseg_jax import errors, evaluation, metrics, predict, volume_scores
from emseg_jax.data import pairs
from emseg_jax.data.pairs import IGNORED
from emseg_jax.metrics.collect import METRICS
from emseg_jax.metrics.details import Details

SHAPE, CLASSES = (11, 34, 30), ('dark', 'grey', 'bright')


@pytest.fixture(scope='module')
def volume():
  """Image and labels of blobs; some voxels are not scored."""
  z, y, x = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing='ij')
  wave = np.sin(z / 3) + np.sin(y / 4) + np.cos(x / 5)
  label = np.digitize(wave, [-0.6, 0.6]).astype(np.uint8)
  noise = np.random.default_rng(0).normal(0, 40, SHAPE)
  image = (np.array([30, 128, 225])[label] + noise).clip(0, 255).astype(np.uint8)
  label[:, :2] = IGNORED
  return image, label


def split_of(volume):
  return volume_split(volume, num_classes=3, ignore_value=IGNORED, cache_bytes=10**7)


def in_boxes(volume, block, *names, **options):
  network = Stand((5, 16, 16), CLASSES, predict={'block': block})
  return evaluation.evaluate_split(network, split_of(volume), extra_metrics=names, **options)


def at_once(volume, *names):
  """Class map, Collector and Details of the whole volume."""
  network, split = Stand((5, 16, 16), CLASSES), split_of(volume)
  probabilities = network.group_probabilities(split, tuple(range(len(split))))
  prediction = predict.label_values(probabilities, network.config.task)
  collector, details = metrics.Collector(names, CLASSES), Details(CLASSES, multilabel=False)
  for counted in (collector, details):
    counted.add(prediction, volume[1], probabilities)
  return prediction, collector, details


def assert_close(ours, theirs):
  if isinstance(ours, dict):
    assert ours.keys() == theirs.keys()
    for name in ours:
      assert_close(ours[name], theirs[name])
  elif isinstance(ours, list):
    assert len(ours) == len(theirs)
    for pair in zip(ours, theirs, strict=True):
      assert_close(*pair)
  elif isinstance(ours, float):
    assert ours == pytest.approx(theirs, rel=1e-5)
  else:
    assert ours == theirs


@pytest.mark.parametrize('block', [(4, 20, 20), (3, 34, 30), (11, 34, 30), None])
def test_every_score_is_that_of_the_whole_volume(volume, block):
  result = in_boxes(volume, block, *METRICS)
  prediction, collector, details = at_once(volume, *METRICS)
  scored = volume[1] != IGNORED
  confusion = np.zeros((3, 3), np.int64)
  np.add.at(confusion, (volume[1][scored], prediction[scored]), 1)
  np.testing.assert_array_equal(result.confusion, confusion)
  assert len(result.images) == 11  # scores and intervals are over sections, as before
  assert_close(result.extras, collector.result())
  assert_close(result.calibration, details.calibration())
  assert result.objects == details.objects([None])


def test_class_maps_come_section_by_section_in_order(volume):
  seen = []
  in_boxes(volume, (4, 20, 20), on_prediction=lambda i, found: seen.append((i, found)))
  prediction, _, _ = at_once(volume)
  assert [index for index, _ in seen] == list(range(11))
  np.testing.assert_array_equal(np.stack([found for _, found in seen]), prediction)


def test_scores_of_voxels_hold_no_whole_volume(volume, monkeypatch):
  sizes = []
  add = metrics.Collector.add

  def spy(self, prediction, *rest, unit=None):
    sizes.append((unit, prediction.shape))
    add(self, prediction, *rest, unit=unit)

  monkeypatch.setattr(metrics.Collector, 'add', spy)
  in_boxes(volume, (4, 20, 20), 'soft', 'thresholds')
  assert {unit for unit, _ in sizes} == {'voxel'}
  assert max(shape for _, shape in sizes) == (4, 20, 20)


def test_a_stop_request_is_heard_between_batches(volume):
  with pytest.raises(errors.Interrupted):
    in_boxes(volume, (4, 20, 20), should_stop=lambda: True)


def test_a_huge_section_is_scored_in_boxes_as_a_small_one_is_at_once(volume, monkeypatch):
  def score(large):
    monkeypatch.setattr(evaluation, 'LARGE', large)
    network = Stand((16, 16), CLASSES, predict={'block': (12, 20)})
    names = ('soft', 'thresholds', 'border', 'instances')
    return evaluation.evaluate_split(network, split_of(volume), extra_metrics=names)

  boxes, whole = score(34 * 30 - 1), score(34 * 30)
  np.testing.assert_array_equal(boxes.confusion, whole.confusion)
  assert_close(boxes.extras, whole.extras)
  assert_close(boxes.calibration, whole.calibration)
  assert boxes.objects == whole.objects
  assert boxes.objects['ndim'] == 2


def test_nothing_larger_than_a_layer_is_read_however_deep_the_volume(volume):
  # What is really held is measured by large_volume_test.py.
  largest = []
  for depth in (11, 33):
    image, label = (BoxVolume(np.tile(array, (depth // 11, 1, 1))) for array in volume)
    sections = [pairs.Section(n, image, i, label, i) for i, n in enumerate(image.names)]
    split = pairs.Split(sections, rules=rules(3, ignore_value=IGNORED), cache_bytes=0)
    network = Stand((5, 16, 16), CLASSES, predict={'block': (4, 20, 20)})
    assert [section.shape for section in _sections(network, split)] == [SHAPE[1:]] * depth
    largest.append([max(_depth(box) for box in v.boxes) for v in (image, label)])
  assert largest[0] == largest[1]
  assert largest[1][1] == 4  # labels of a layer; the tiles of a box reach over more


def _sections(network, split):
  collector = metrics.Collector(('soft', 'thresholds'), CLASSES)
  details = Details(CLASSES, multilabel=False)
  group = tuple(range(len(split)))
  return volume_scores.predict_sections(network, split, group, collector, details)


def _depth(box):
  (first, *_), (last, *_) = box
  return last - first
