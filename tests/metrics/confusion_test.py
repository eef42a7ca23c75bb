"""Scores against hand-computed matrices, baselines against brute force over every choice."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from emseg_jax import errors, metrics


def test_confusion_matrix_counts_label_by_row_and_prediction_by_column():
  labels = jnp.array([[0, 0, 1, 2, -1, 255]])
  predictions = jnp.array([[0, 1, 1, 0, 2, 0]])
  weights = jnp.array([[1.0, 1.0, 0.5, 1.0, 0.0, 0.0]])
  confusion = metrics.confusion_matrix(predictions, labels, weights, num_classes=3)
  assert confusion.dtype == jnp.int32
  np.testing.assert_array_equal(confusion, [[1, 1, 0], [0, 1, 0], [1, 0, 0]])


def test_confusion_matrix_equals_a_loop_and_adds_up_over_parts():
  rng = np.random.default_rng(0)
  labels, predictions = rng.integers(0, 4, (2, 6, 9, 8))
  weights = rng.integers(0, 2, (6, 9, 8))
  expected = np.zeros((4, 4), np.int64)
  for place in np.ndindex(labels.shape):
    expected[labels[place], predictions[place]] += weights[place]
  whole = metrics.confusion_matrix(predictions, labels, weights, num_classes=4)
  np.testing.assert_array_equal(whole, expected)
  parts = [
    metrics.confusion_matrix(predictions[i], labels[i], weights[i], num_classes=4) for i in range(6)
  ]
  np.testing.assert_array_equal(sum(parts), expected)


def test_confusion_matrix_is_exact_beyond_the_integers_of_float32():
  count = 2**24 + 1  # the first integer that float32 cannot hold
  ones = np.ones((count,), np.uint8)
  confusion = metrics.confusion_matrix(ones, ones, ones, num_classes=2)
  np.testing.assert_array_equal(confusion, [[0, 0], [0, count]])


def test_confusion_matrix_is_the_same_when_the_batch_is_split_over_devices():
  labels, predictions = np.random.default_rng(1).integers(0, 3, (2, 8, 16, 16))
  mesh = jax.make_mesh((4, 2), ('data', 'space'), axis_types=(AxisType.Auto,) * 2)
  split = NamedSharding(mesh, PartitionSpec('data', 'space'))
  arrays = predictions, labels, np.ones_like(labels)
  sharded = [jax.device_put(a, split) for a in arrays]
  compiled = metrics.confusion_matrix.lower(*sharded, num_classes=3).compile()
  assert 'all-gather' not in compiled.as_text()
  np.testing.assert_array_equal(
    compiled(*sharded), metrics.confusion_matrix(*arrays, num_classes=3)
  )


def test_scores_equal_those_computed_by_hand():
  # class a: 6 voxels, 4 found; class b: 4 voxels, 3 found
  result = metrics.scores(np.array([[4, 2], [1, 3]]), ['a', 'b'])
  assert result['accuracy'] == pytest.approx(7 / 10)
  assert result['miou'] == pytest.approx((4 / 7 + 3 / 6) / 2)
  assert result['mean_dice'] == pytest.approx((8 / 11 + 6 / 9) / 2)
  expected = {'iou': 4 / 7, 'dice': 8 / 11, 'precision': 4 / 5, 'recall': 4 / 6, 'share': 0.6}
  assert result['per_class']['a'] == pytest.approx(expected)
  expected = {'iou': 3 / 6, 'dice': 6 / 9, 'precision': 3 / 5, 'recall': 3 / 4, 'share': 0.4}
  assert result['per_class']['b'] == pytest.approx(expected)


@pytest.mark.parametrize(
  ('confusion', 'expected'),
  [
    # K = 2: (TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN)), binary by definition
    ([[4, 2], [1, 3]], (4 * 3 - 2 * 1) / (5 * 6 * 4 * 5) ** 0.5),
    ([[0, 3], [5, 0]], -1.0),
    ([[3, 0, 0], [0, 1, 0], [0, 0, 2]], 1.0),
    # labels uuuvvw, predictions uuvvww: s = 6, c = 4, t = (3, 2, 1), p = (2, 2, 2)
    ([[2, 1, 0], [0, 1, 1], [0, 0, 1]], (4 * 6 - 12) / ((36 - 12) * (36 - 14)) ** 0.5),
    ([[2, 2], [3, 3]], 0.0),  # independent
    ([[4, 0], [6, 0]], None),
    # the first case, 2^35 times as many voxels
    ([[4 << 35, 2 << 35], [1 << 35, 3 << 35]], 10 / 600**0.5),
  ],
)
def test_matthews_correlation_equals_the_formula_by_hand(confusion, expected):
  classes = 'abc'[: len(confusion)]
  assert metrics.scores(np.array(confusion), classes)['mcc'] == pytest.approx(expected)


def test_matthews_correlation_is_the_correlation_of_one_hot_vectors():
  # Gorodkin 2004, eq. 8: cov(X, Y) / sqrt(cov(X, X) cov(Y, Y)), cov = mean over the classes
  labels, predictions = np.random.default_rng(3).integers(0, 4, (2, 50))
  X, Y = np.eye(4)[labels], np.eye(4)[predictions]
  X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
  expected = (X * Y).sum() / np.sqrt((X * X).sum() * (Y * Y).sum())
  confusion = np.zeros((4, 4), int)
  np.add.at(confusion, (labels, predictions), 1)
  assert metrics.scores(confusion, 'abcd')['mcc'] == pytest.approx(expected)


def test_micro_scores_sum_the_counts_of_all_classes():
  # a: TP 4, FP 1, FN 2; b: TP 3, FP 2, FN 1; together TP 7, FP 3, FN 3
  micro = metrics.scores(np.array([[4, 2], [1, 3]]), ['a', 'b'])['micro']
  expected = {'iou': 7 / 13, 'dice': 14 / 20, 'precision': 7 / 10, 'recall': 7 / 10}
  assert micro == pytest.approx(expected)


def test_dice_and_jaccard_of_the_papers_convert_into_each_other():
  # Res-CR-Net: F1 = .924 goes with Jaccard .859; J = D / (2 - D) for any counts.
  per_class = metrics.scores(np.array([[900, 76], [76, 924]]), ['rest', 'cell'])['per_class']
  assert per_class['cell']['dice'] == pytest.approx(0.924)
  assert per_class['cell']['iou'] == pytest.approx(0.859, abs=5e-4)


def test_absent_classes_are_null_and_left_out_of_the_means():
  confusion = np.array([[5, 0, 1], [0, 0, 0], [2, 0, 2]])
  result = metrics.scores(confusion, ['a', 'absent', 'c'])
  absent = {'iou': None, 'dice': None, 'precision': None, 'recall': None, 'share': 0.0}
  assert result['per_class']['absent'] == absent
  assert result['miou'] == pytest.approx((5 / 8 + 2 / 5) / 2)
  # predicted though absent: a score of 0, and it counts
  result = metrics.scores(np.array([[5, 1], [0, 0]]), ['a', 'absent'])
  assert result['miou'] == pytest.approx((5 / 6 + 0) / 2)
  assert result['per_class']['absent']['recall'] is None
  assert json.loads(json.dumps(result)) == result


def test_scores_of_nothing_are_null():
  result = metrics.scores(np.zeros((2, 2), int), ['a', 'b'])
  assert result['accuracy'] is result['miou'] is result['mean_dice'] is result['mcc'] is None
  assert set(result['micro'].values()) == {None}
  assert result['per_class']['a']['share'] is None
  with pytest.raises(ValueError, match='for 3 classes'):
    metrics.scores(np.zeros((2, 2), int), ['a', 'b', 'c'])


def test_scores_stay_exact_for_counts_beyond_32_bits():
  result = metrics.scores(np.array([[3 * 2**40, 2**40], [0, 2**40]]), ['a', 'b'])
  assert result['accuracy'] == 4 / 5
  assert result['per_class']['b']['dice'] == pytest.approx(2 / 3)


def test_majority_predicts_the_most_frequent_class_everywhere():
  # share .792: accuracy .792, mean IoU .396, as for one class everywhere on ISBI 2012
  expected = {'class': 1, 'accuracy': 0.792, 'miou': 0.396, 'mean_dice': 0.792 / 1.792}
  for counts in ([208, 792], [[200, 8], [392, 400]]):
    found = metrics.majority(np.array(counts))
    assert found.pop('mcc') is None  # nothing varies, so nothing correlates
    assert found == pytest.approx(expected)
  assert metrics.majority(np.array([0, 7]))['miou'] == 1.0  # an absent class does not count


def brute_force_threshold(histograms, edges):
  """The best mean IoU over every edge and ordered pair, from the voxels themselves."""
  labels = np.concatenate([np.repeat(k, h.sum()) for k, h in enumerate(histograms)])
  bins = np.concatenate([np.repeat(np.arange(len(h)), h) for h in histograms])
  best = -1.0
  for edge in range(len(edges)):
    for below, above in itertools.permutations(range(len(histograms)), 2):
      predictions = np.where(bins < edge, below, above)
      ious = []
      for k in range(len(histograms)):
        union = np.sum((labels == k) | (predictions == k))
        if union:
          ious.append(np.sum((labels == k) & (predictions == k)) / union)
      best = max(best, np.mean(ious))
  return best


@pytest.mark.parametrize('num_classes', [2, 3, 4])
@pytest.mark.parametrize('seed', range(6))
def test_best_threshold_equals_brute_force(num_classes, seed):
  rng = np.random.default_rng(seed)
  histograms = rng.integers(0, 6, (num_classes, 9))
  histograms[rng.random(num_classes) < 0.3] = 0  # some classes absent
  histograms[0, 0] += 1
  edges = np.linspace(-1, 1, 10)
  found = metrics.best_threshold(histograms, edges)
  assert found['miou'] == pytest.approx(brute_force_threshold(histograms, edges))
  assert found['miou'] >= metrics.majority(histograms.sum(axis=1))['miou'] - 1e-12
  # The scores belong to the threshold and the pair that are returned.
  edge = int(np.argmin(np.abs(edges - found['threshold'])))
  confusion = np.zeros((num_classes, num_classes), int)
  confusion[:, found['below']] += histograms[:, :edge].sum(axis=1)
  confusion[:, found['above']] += histograms[:, edge:].sum(axis=1)
  scores = metrics.scores(confusion, [str(k) for k in range(num_classes)])
  for name in ('accuracy', 'miou', 'mean_dice', 'mcc'):
    assert found[name] == pytest.approx(scores[name])


def test_best_threshold_finds_either_polarity():
  dark, bright = np.array([4, 3, 1, 0]), np.array([0, 0, 2, 5])
  edges = np.array([0.0, 64.0, 128.0, 192.0, 256.0])
  # At 128: class of `dark` 7 of 8 found, none wrong; the other 7 found, 1 wrong.
  expected = {'threshold': 128.0, 'accuracy': 14 / 15, 'miou': (7 / 8 + 7 / 8) / 2}
  found = metrics.best_threshold(np.stack([dark, bright]), edges)
  assert (found['below'], found['above']) == (0, 1)
  assert {key: found[key] for key in expected} == pytest.approx(expected)
  found = metrics.best_threshold(np.stack([bright, dark]), edges)
  assert (found['below'], found['above']) == (1, 0)
  assert {key: found[key] for key in expected} == pytest.approx(expected)


def test_baselines_without_a_labelled_voxel_say_what_to_check():
  with pytest.raises(errors.DataError, match=r'task\.ignore_value'):
    metrics.majority(np.zeros(2, int))
  with pytest.raises(errors.DataError, match=r'task\.ignore_value'):
    metrics.best_threshold(np.zeros((2, 4), int), np.arange(5))
  with pytest.raises(ValueError, match='5 edges, got 4'):
    metrics.best_threshold(np.ones((2, 4), int), np.arange(4))


def test_table_shows_network_baselines_and_classes():
  confusion = np.array([[4, 2, 0], [1, 3, 0], [0, 0, 0]])
  result = metrics.scores(confusion, ['membrane', 'cell', 'absent'])
  table = metrics.format_table(result, {'majority': metrics.majority(confusion)})
  lines = [line.split() for line in table.splitlines()]
  assert lines == [
    ['accuracy', 'miou', 'mean_dice', 'mcc'],
    ['network', '0.7000', '0.5357', '0.6970', '0.4082'],  # 10 / sqrt(24 * 25)
    ['majority', '0.6000', '0.3000', '0.3750', '-'],
    [],
    ['class', 'iou', 'dice', 'precision', 'recall', 'share'],
    ['membrane', '0.5714', '0.7273', '0.8000', '0.6667', '0.6000'],
    ['cell', '0.5000', '0.6667', '0.6000', '0.7500', '0.4000'],
    ['absent', '-', '-', '-', '-', '0.0000'],
  ]
