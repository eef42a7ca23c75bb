"""Threshold curves against counting voxels, threshold by threshold, and against hand counts."""

import json

import numpy as np
import pytest

from emseg_jax.metrics import thresholds

BINS = thresholds.BINS


def random_item(seed, shape, num_classes):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, num_classes, shape).astype(np.uint8)
  p = rng.dirichlet(np.full(num_classes, 0.5), shape).astype(np.float32)
  p += 0.3 * np.eye(num_classes, dtype=np.float32)[labels]  # a network that knows something
  p /= p.sum(axis=-1, keepdims=True)
  labels[rng.random(shape) < 0.1] = 255
  p[labels == 255] = np.nan
  return p, labels


def count(p, is_class, threshold):
  """TP, FP, FN, TN of p >= threshold; nothing is predicted at 1, whose bin is the last one."""
  predicted = p >= threshold if threshold < 1 else np.zeros_like(is_class)
  return (
    np.sum(predicted & is_class),
    np.sum(predicted & ~is_class),
    np.sum(~predicted & is_class),
    np.sum(~predicted & ~is_class),
  )


@pytest.mark.parametrize(
  ('num_classes', 'shape', 'scored'), [(2, (30, 20), [1]), (3, (4, 9, 10), [0, 1, 2])]
)
def test_curves_equal_counting_at_every_threshold(num_classes, shape, scored):
  classes = 'abc'[:num_classes]
  p, labels = random_item(0, shape, num_classes)
  found = thresholds.threshold_scores(thresholds.probability_histograms(p, labels), classes)
  assert list(found['per_class']) == [classes[k] for k in scored]
  for k in scored:
    row = found['per_class'][classes[k]]
    curve = row['curve']
    np.testing.assert_allclose(curve['threshold'], np.linspace(0, 1, 129))
    values, is_class = p[labels != 255][:, k], labels[labels != 255] == k
    for i, t in enumerate(curve['threshold']):
      tp, fp, fn, tn = count(values, is_class, t)
      assert curve['precision'][i] == (pytest.approx(tp / (tp + fp)) if tp + fp else None)
      assert curve['recall'][i] == pytest.approx(tp / (tp + fn))
      assert curve['f1'][i] == pytest.approx(2 * tp / (2 * tp + fp + fn))
      assert curve['iou'][i] == pytest.approx(tp / (tp + fp + fn))
      miou = (tp / (tp + fp + fn) + tn / (tn + fp + fn)) / 2
      assert curve['miou'][i] == pytest.approx(miou)
    every = [count(values, is_class, i / BINS)[:3] for i in range(BINS + 1)]
    ious = [tp / (tp + fp + fn) for tp, fp, fn in every]
    assert row['best_iou'] == pytest.approx(max(ious))
    assert row['best_threshold'] == np.argmax(ious) / BINS
    assert row['best_f1'] == pytest.approx(max(2 * a / (2 * a + b + c) for a, b, c in every))


@pytest.mark.parametrize('seed', range(3))
def test_average_precision_equals_the_sum_over_sorted_voxels(seed):
  # Probabilities on the bins: no two distinct ones share a bin, so nothing is lost.
  rng = np.random.default_rng(seed)
  p = rng.integers(0, 60, 300) / 64
  labels = (rng.random(300) < p).astype(np.uint8)
  expected, last = 0.0, 0.0
  for t in sorted(set(p.tolist()), reverse=True):
    tp, fp, fn, _ = count(p, labels == 1, t)
    recall = tp / (tp + fn)
    expected += (recall - last) * tp / (tp + fp)
    last = recall
  histograms = thresholds.probability_histograms(np.stack([1 - p, p], axis=-1), labels)
  found = thresholds.threshold_scores(histograms, ['a', 'b'])['per_class']['b']
  assert found['average_precision'] == pytest.approx(expected)


def test_scores_of_five_voxels_by_hand():
  p = np.array([0.125, 0.25, 0.5, 0.75, 1.0])
  labels = np.array([0, 1, 0, 1, 1])
  histograms = thresholds.probability_histograms(np.stack([1 - p, p], axis=-1), labels)
  found = thresholds.threshold_scores(histograms, ['rest', 'cell'])['per_class']['cell']
  # recall rises by 1/3 at 1 (precision 1), .75 (1) and .25 (3 of 4)
  assert found['average_precision'] == pytest.approx((1 + 1 + 3 / 4) / 3)
  # above .125 up to .25: 3 found, 1 wrong; the first such threshold is the next bin's
  assert found['best_iou'] == found['curve']['iou'][32] == 3 / 4
  assert found['best_f1'] == pytest.approx(6 / 7)
  assert found['best_threshold'] == 129 / 1024
  assert found['curve']['precision'][-1] is None  # nothing is predicted at 1
  assert found['curve']['miou'][64] == pytest.approx((2 / 4 + 1 / 3) / 2)  # p >= .5


def test_histograms_add_up_over_images_and_leave_the_ignored_out():
  items = [random_item(1, (8, 9), 3), random_item(2, (5, 4), 3)]
  total = sum(thresholds.probability_histograms(p, labels) for p, labels in items)
  p = np.concatenate([p.reshape(-1, 3) for p, _ in items])
  labels = np.concatenate([labels.ravel() for _, labels in items])
  np.testing.assert_array_equal(thresholds.probability_histograms(p, labels), total)
  counted = sum(np.sum(labels != 255) for _, labels in items)
  np.testing.assert_array_equal(total.sum(axis=(1, 2)), [counted] * 3)


def test_an_absent_class_has_no_best_threshold():
  p = np.tile([0.25, 0.75], (6, 1))
  histograms = thresholds.probability_histograms(p, np.zeros(6, np.uint8))
  found = thresholds.threshold_scores(histograms, ['a', 'b'])['per_class']['b']
  assert found['best_iou'] is found['best_threshold'] is found['average_precision'] is None
  assert found['curve']['iou'][0] == 0.0  # predicted everywhere, labelled nowhere
  assert found['curve']['iou'][-1] is None
  assert found['curve']['miou'][-1] == 1.0  # only the rest is there, and all of it is found
  assert set(found['curve']['recall']) == {None}
  assert json.loads(json.dumps(found)) == found


def test_a_class_everywhere_is_best_at_the_lowest_threshold():
  p = np.tile([0.25, 0.75], (6, 1))
  histograms = thresholds.probability_histograms(p, np.ones(6, np.uint8))
  found = thresholds.threshold_scores(histograms, ['a', 'b'])['per_class']['b']
  assert (found['best_iou'], found['best_threshold'], found['average_precision']) == (1, 0, 1)


def test_nothing_scored_is_all_null():
  histograms = thresholds.probability_histograms(
    np.full((2, 3, 2), np.nan), np.full((2, 3), 255, np.uint8)
  )
  assert histograms.shape == (1, 2, BINS)
  assert not histograms.any()
  found = thresholds.threshold_scores(histograms, ['a', 'b'])['per_class']['b']
  assert found['best_iou'] is None
  assert set(found['curve']['miou']) == {None}


def test_shapes_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match=r'\(4, 5, 2\) do not fit labels \(4, 4\)'):
    thresholds.probability_histograms(np.zeros((4, 5, 2)), np.zeros((4, 4), np.uint8))
  with pytest.raises(ValueError, match='for 3 classes'):
    thresholds.threshold_scores(np.zeros((1, 2, BINS), int), ['a', 'b', 'c'])
