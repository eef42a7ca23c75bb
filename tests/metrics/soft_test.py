"""Soft scores against loops in float64 over the definitions, and against hand-computed voxels."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from emseg_jax.metrics import soft

CLASSES = ('nucleus', 'mitochondrion', 'other')


def random_item(seed, shape, num_classes=3, ignored=0.2):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, num_classes, shape).astype(np.uint8)
  labels[rng.random(shape) < ignored] = 255
  p = rng.dirichlet(np.full(num_classes, 0.3), shape).astype(np.float32)
  p[labels == 255] = np.nan
  return p, labels


def scores_by_loop(p, labels):
  """From the definitions, voxel by voxel in float64."""
  num_classes = p.shape[-1]
  entropy, tp, fp, fn = [], 0, 0, 0
  dice = [[0.0, 0.0] for _ in range(num_classes)]
  tanimoto = [[1.0, 1.0], [1.0, 1.0]]  # s = 1
  for place in np.ndindex(labels.shape):
    if labels[place] == 255:
      continue
    entropy.append(-math.log(max(float(p[place][labels[place]]), 1e-7)))
    for k in range(num_classes):
      a, b = float(p[place][k]), float(labels[place] == k)
      dice[k][0] += 2 * a * b
      dice[k][1] += a + b
      for sums, (u, v) in zip(tanimoto, ((a, b), (1 - a, 1 - b)), strict=True):
        sums[0] += u * v
        sums[1] += u * u + v * v - u * v
      tp += a > 0.5 and b == 1
      fp += a > 0.5 and b == 0
      fn += a <= 0.5 and b == 1
  return {
    'cross_entropy': np.mean(entropy),
    'dice': sum(d[0] for d in dice) / sum(d[1] for d in dice),
    'tanimoto': sum(n / d for n, d in tanimoto) / 2,
    'micro': {
      'iou': tp / (tp + fp + fn),
      'precision': tp / (tp + fp),
      'recall': tp / (tp + fn),
      'f1': 2 * tp / (2 * tp + fp + fn),
    },
    'per_class': {CLASSES[k]: {'dice': dice[k][0] / dice[k][1]} for k in range(num_classes)},
  }


def assert_close(found, expected):
  assert found.keys() == expected.keys()
  for key, value in expected.items():
    if isinstance(value, dict):
      assert_close(found[key], value)
    else:
      assert found[key] == pytest.approx(value, rel=1e-5), key


@pytest.mark.parametrize(
  ('shape', 'num_classes'), [((9, 14), 3), ((9, 14), 2), ((3, 5, 8), 3), ((1, 1), 2)]
)
def test_scores_equal_a_loop_over_the_definitions(shape, num_classes):
  p, labels = random_item(0, shape, num_classes, ignored=0.2 if math.prod(shape) > 1 else 0)
  if labels.size == 1:
    p[0, 0] = 0.75, 0.25
  found = soft.soft_scores(soft.soft_sums(p, labels), CLASSES[:num_classes])
  assert_close(found, scores_by_loop(p, labels))


def test_scores_of_two_voxels_by_hand():
  p = np.array([[0.75, 0.25], [0.5, 0.5]], np.float32)
  labels = np.array([0, 1])
  found = soft.soft_scores(soft.soft_sums(p, labels), ['a', 'b'])
  assert found['cross_entropy'] == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
  # class a: p = .75, .5, y = 1, 0; class b: p = .25, .5, y = 0, 1
  assert found['per_class']['a']['dice'] == pytest.approx(1.5 / 2.25)
  assert found['per_class']['b']['dice'] == pytest.approx(1.0 / 1.75)
  assert found['dice'] == pytest.approx(2.5 / 4)
  # sum p^2 = .5625 + .0625 + .25 + .25, sum y = 2, sum p y = 1.25; the complement of one class
  # is the other one, so both halves are equal
  assert found['tanimoto'] == pytest.approx((1.25 + 1) / (1.125 + 2 - 1.25 + 1))
  # 0.5 is not above 0.5: the second voxel has no class
  assert found['micro'] == pytest.approx({'iou': 0.5, 'precision': 1.0, 'recall': 0.5, 'f1': 2 / 3})


def test_sums_add_up_over_images_of_any_size(monkeypatch):
  monkeypatch.setattr(soft, 'GROUPS', 2)
  monkeypatch.setattr(soft, 'GROUP_SIZE', 7)  # so that images end within and between chunks
  items = [random_item(1, (6, 7)), random_item(2, (3, 5)), random_item(3, (2, 2, 7))]
  sums = sum(soft.soft_sums(p, labels) for p, labels in items)
  p = np.concatenate([p.reshape(-1, 3) for p, _ in items])
  labels = np.concatenate([labels.ravel() for _, labels in items])
  assert_close(soft.soft_scores(sums, CLASSES), scores_by_loop(p, labels))


def test_sums_stay_accurate_over_many_voxels():
  # float32 sums of 0.1 drift by 1e-3 at this size when added one by one
  p = np.broadcast_to(np.array([0.1, 0.9], np.float32), (1200, 1000, 2))
  sums = soft.soft_sums(p, np.ones((1200, 1000), np.uint8))
  np.testing.assert_allclose(sums[1], [0.12e6, 1.08e6], rtol=1e-6)
  np.testing.assert_array_equal(sums[0], [0, 1.2e6])


def test_a_sure_prediction_is_perfect_or_finitely_wrong():
  right = np.eye(3, dtype=np.float32)[np.array([[0, 1], [2, 2]])]
  labels = np.array([[0, 1], [2, 2]], np.uint8)
  found = soft.soft_scores(soft.soft_sums(right, labels), CLASSES)
  perfect = {'iou': 1.0, 'precision': 1.0, 'recall': 1.0, 'f1': 1.0}
  assert found['micro'] == perfect
  assert (found['cross_entropy'], found['dice'], found['tanimoto']) == (0.0, 1.0, 1.0)
  wrong = soft.soft_scores(soft.soft_sums(right, (labels + 1) % 3), CLASSES)
  assert wrong['cross_entropy'] == pytest.approx(-math.log(1e-7))
  assert wrong['dice'] == 0.0
  # of 12 voxel-classes 4 are labelled and 4 predicted, never the same: 4 agree on "not this class"
  assert wrong['tanimoto'] == pytest.approx((1 / (8 + 1) + (4 + 1) / (8 + 8 - 4 + 1)) / 2)


def test_labels_of_one_class_leave_the_absent_class_with_its_false_alarms():
  p = np.full((4, 4, 2), [0.25, 0.75], np.float32)
  labels = np.ones((4, 4), np.uint8)
  found = soft.soft_scores(soft.soft_sums(p, labels), ['a', 'b'])
  assert found['per_class'] == {'a': {'dice': 0.0}, 'b': {'dice': pytest.approx(1.5 / 1.75)}}
  p[..., 0] = 0.0
  assert soft.soft_scores(soft.soft_sums(p, labels), ['a', 'b'])['per_class']['a']['dice'] is None


def test_scores_of_nothing_are_null():
  p, labels = np.full((3, 4, 2), np.nan), np.full((3, 4), 255, np.uint8)
  found = soft.soft_scores(soft.soft_sums(p, labels), ['a', 'b'])
  assert found['cross_entropy'] is found['dice'] is found['tanimoto'] is None
  assert set(found['micro'].values()) == {None}
  assert json.loads(json.dumps(found)) == found


def test_shapes_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match=r'\(4, 5, 2\) do not fit labels \(4, 4\)'):
    soft.soft_sums(np.zeros((4, 5, 2)), np.zeros((4, 4), np.uint8))
  with pytest.raises(ValueError, match='for 2 classes'):
    soft.soft_scores(np.zeros((7, 3)), ['a', 'b'])


def test_arrays_may_be_on_the_device():
  p, labels = random_item(5, (6, 7))
  on_host = soft.soft_sums(p, labels)
  np.testing.assert_array_equal(soft.soft_sums(jnp.asarray(p), jnp.asarray(labels)), on_host)
