"""The collector against scikit-image, hand-counted images, and the functions that it sums."""

import json
import typing

import numpy as np
import pytest
import skimage.measure
import skimage.metrics

from emseg_jax import metrics
from emseg_jax.config import running
from emseg_jax.metrics import boundary, collect, soft

CLASSES = ('rest', 'cell')
ALL = collect.METRICS


def hard(prediction, num_classes):
  """Probabilities of 0.9 for the predicted class."""
  shares = np.where(np.eye(num_classes, dtype=bool), 0.9, 0.1 / (num_classes - 1))
  return shares.astype(np.float32)[prediction]


def random_item(seed, shape, num_classes=3):
  rng = np.random.default_rng(seed)
  label = rng.integers(0, num_classes, shape).astype(np.uint8)
  prediction = np.where(rng.random(shape) < 0.8, label, rng.integers(0, num_classes, shape))
  label[rng.random(shape) < 0.1] = 255
  return prediction.astype(np.uint8), label, hard(prediction, num_classes)


def collected(names, classes, items, **options):
  collector = metrics.Collector(names, classes, **options)
  for item in items:
    collector.add(*item)
  return collector.result()


def test_the_metrics_are_those_of_the_configuration():
  assert typing.get_args(running.Metric) == ALL


@pytest.mark.parametrize(('shape', 'num_classes'), [((13, 17), 2), ((13, 17), 3), ((4, 9, 8), 3)])
def test_every_metric_runs_and_is_json(shape, num_classes):
  classes = 'abc'[:num_classes]
  items = [random_item(seed, shape, num_classes) for seed in range(2)]
  result = collected(ALL, classes, items)
  assert tuple(result) == ALL
  assert json.loads(json.dumps(result)) == result
  scores = metrics.flat(result)
  assert all(np.isfinite(value) for value in scores.values())
  known = metrics.known_scores(classes, ALL)
  assert len(set(known)) == len(known)
  empty = {f'border/error/{name}' for name in ('4-7', '8-15', '16-31', '32-63', '64-')}
  always = {name for name in known if '/' in name and name.split('/')[0] in ALL} - empty
  assert always <= set(scores) <= set(known)


def test_counts_are_summed_over_images_of_any_size():
  items = [random_item(0, (11, 12)), random_item(1, (7, 20))]
  result = collected(('boundary', 'soft'), 'abc', items)
  sums = sum(soft.soft_sums(p, label) for _, label, p in items)
  assert result['soft'] == soft.soft_scores(sums, 'abc')
  counts = sum(
    boundary.boundary_counts(prediction, label, num_classes=3, tolerance=2)
    for prediction, label, _ in items
  )
  assert result['boundary'] == boundary.boundary_scores(counts, 'abc')


def test_rand_equals_scikit_image_averaged_over_images():
  items = [random_item(seed, (14, 15), 3) for seed in range(3)]
  items = [(p, np.where(y == 255, 0, y).astype(np.uint8)) for p, y in (i[:2] for i in items)]
  result = collected(('rand',), 'abc', items)['rand']
  means = []
  for k, name in ((1, 'b'), (2, 'c')):
    rows = []
    for prediction, label in items:
      truth, found = (skimage.measure.label(m == k, connectivity=1) for m in (label, prediction))
      error = skimage.metrics.adapted_rand_error(truth, found)[0]
      # H(found | truth) is the split part
      merge, split = skimage.metrics.variation_of_information(found, truth)
      rows.append([error, split + merge, split, merge])
    means.append(np.mean(rows, axis=0))
    row = result['per_class'][name]
    assert list(row.values()) == pytest.approx(means[-1])
  assert [result['error'], result['vi']] == pytest.approx(np.mean(means, axis=0)[:2])


def test_rand_averages_the_images_that_have_objects():
  label = np.array([[1, 1, 0, 1, 1]], np.uint8)
  merged = np.ones_like(label)
  # Of the four object voxels: ordered pairs of distinct voxels together in both maps 4, in the
  # prediction 12, in the truth 4: error 1 - 2 * 4 / (12 + 4).
  items = [(merged, label), (np.zeros_like(label), np.zeros_like(label))]
  result = collected(('rand',), CLASSES, items)['rand']
  assert result['error'] == result['per_class']['cell']['error'] == pytest.approx(0.5)
  # Image 1: the prediction is one region, so VI = H(truth) of sizes 2, 1, 2; image 2: 0.
  entropy = -(2 * 0.4 * np.log2(0.4) + 0.2 * np.log2(0.2))
  assert result['vi'] == pytest.approx(entropy / 2)
  assert result['per_class']['cell']['vi_split'] == pytest.approx(0)


def test_instances_of_two_images_by_hand():
  label = np.array([[1, 1, 0, 1, 1, 0, 0]], np.uint8)
  prediction = np.array([[1, 1, 0, 1, 0, 0, 1]], np.uint8)  # IoU 1, IoU 1/2, a false alarm
  nothing = np.zeros_like(label)  # two missed
  result = collected(('instances',), CLASSES, [(prediction, label), (nothing, label)])
  cell = result['instances']['per_class']['cell']
  assert cell['0.5']['average_precision'] == pytest.approx(2 / 5)  # TP 2, FP 1, FN 2
  assert cell['0.75']['average_precision'] == pytest.approx(1 / 6)  # TP 1, FP 2, FN 3
  scores = metrics.flat(result)
  assert scores['instances/0.75/recall/cell'] == pytest.approx(1 / 4)
  assert 'instances/0.75/tp/cell' not in scores


def test_voxels_that_are_not_scored_cut_objects_of_both_maps():
  label = np.array([[1, 1, 255, 1, 1]], np.uint8)
  result = collected(('instances', 'rand'), CLASSES, [(np.ones_like(label), label)])
  assert result['instances']['per_class']['cell']['0.75']['average_precision'] == 1.0
  assert result['rand']['error'] == result['rand']['vi'] == 0.0
  # Four voxels count: one region of them predicted, two of two are true, one bit of difference.
  label = np.array([[1, 1, 0, 0, 255, 255]], np.uint8)
  result = collected(('rand',), CLASSES, [(np.ones_like(label), label)])
  assert result['rand']['vi'] == pytest.approx(1.0)


def test_isbi2012_takes_class_0_as_membrane_and_averages_sections():
  membrane = np.zeros((9, 9), np.uint8)
  membrane[:, 4] = 1
  label = 1 - membrane  # two cells of 36 pixels
  right, merged = hard(label, 2), hard(np.ones_like(label), 2)
  result = collected(('isbi2012',), CLASSES, [(label, label, right)])['isbi2012']
  assert (result['v_rand'], result['v_info'], result['sections']) == (1.0, 1.0, 1)
  # Merged: sum p_ij^2 = 2 / 4, sum s^2 = 1, sum t^2 = 2 / 4, so V_rand = .5 / .75. Above 0.9
  # nothing is interior, and the whole section is one region again.
  volume = [np.stack(pair) for pair in ((label, label), (label, label), (right, merged))]
  result = collected(('isbi2012',), CLASSES, [volume])['isbi2012']
  assert result['v_rand'] == pytest.approx((1 + 2 / 3) / 2)
  assert result['sections'] == 2
  apart = collected(('isbi2012',), CLASSES, [(label, label, right), (label, label, merged)])
  assert apart['isbi2012'] == result


def test_the_tolerance_of_boundaries_counts_finest_voxels():
  label, prediction = np.zeros((2, 9, 12, 12), np.uint8)
  label[2:6, 3:9, 3:9] = 1
  prediction[3:7, 3:9, 3:9] = 1  # one section further

  def recall(item, **options):
    result = collected(('boundary',), CLASSES, [item], **options)
    return result['boundary']['per_class']['cell']['recall']

  assert recall((prediction, label)) == 1.0
  assert recall((prediction, label), voxel=(40, 8, 8)) < 1  # a section is 5 pixels
  assert recall((prediction, label), voxel=(40, 8, 8), tolerance=5) == 1.0
  # In 2D, sizes along y and x count, whatever z has.
  section = prediction[4].copy(), np.roll(label[4], 2, axis=1)
  assert recall(section, voxel=(2, 8, 8)) == recall(section) == 1.0
  assert recall(section, voxel=(2, 8, 8), tolerance=1.9) < 1


def test_what_needs_probabilities_is_left_out_without_them():
  prediction, label, _ = random_item(0, (10, 10))
  result = collected(ALL, 'abc', [(prediction, label)])
  assert tuple(result) == ('boundary', 'border', 'rand', 'instances')
  assert metrics.Collector(ALL, 'abc').result() == {}


def test_flat_names_scores_and_leaves_out_nulls_and_settings():
  confusion = np.array([[4, 2, 0], [1, 3, 0], [0, 0, 0]])
  scores = metrics.flat(metrics.scores(confusion, ['a', 'b', 'absent']))
  assert scores['miou'] == pytest.approx((4 / 7 + 3 / 6) / 2)
  assert scores['iou/b'] == 0.5
  assert scores['micro/iou'] == pytest.approx(7 / 13)
  assert not {'iou/absent', 'share/a'} & set(scores)
  result = {
    'soft': {'cross_entropy': 0.5, 'per_class': {'a': {'dice': None}, 'b': {'dice': 0.25}}},
    'thresholds': {'per_class': {'b': {'best_threshold': 0.5, 'curve': {'iou': [0.0, 1.0]}}}},
    'isbi2012': {'v_rand': 1.0, 'sections': 3},
  }
  assert metrics.flat(result) == {
    'soft/cross_entropy': 0.5,
    'soft/dice/b': 0.25,
    'isbi2012/v_rand': 1.0,
  }


def test_known_scores_are_those_of_the_matrix_and_of_the_chosen_metrics():
  known = metrics.known_scores(CLASSES, ())
  assert {'miou', 'accuracy', 'mean_dice', 'mcc', 'iou/rest', 'dice/cell'} <= set(known)
  assert not any(name.startswith(ALL) for name in known)
  more = set(metrics.known_scores(CLASSES, ('soft', 'rand', 'isbi2012'))) - set(known)
  assert {'soft/dice/cell', 'soft/cross_entropy', 'rand/vi', 'rand/error/cell'} <= more
  assert 'isbi2012/v_rand' in more
  assert not {'isbi2012/threshold_rand', 'isbi2012/sections', 'rand/error/rest'} & more


def test_errors_are_better_when_low():
  known = metrics.known_scores(CLASSES, ALL)
  low = {name for name in known if metrics.lower_is_better(name)}
  names = ('soft/cross_entropy', 'rand/error', 'rand/vi', 'rand/vi_merge/cell', 'border/error/0-3')
  assert set(names) <= low
  # every score of a perfect prediction is at its good end, 0 or 1
  label = np.zeros((140, 140), np.uint8)
  label[20:60, 30:90] = label[70:100, 20:40] = 1
  perfect = metrics.flat(collected(ALL, CLASSES, [(label, label, np.eye(2)[label])]))
  assert set(perfect) == {name for name in known if name.split('/')[0] in ALL}
  for name, value in perfect.items():
    assert value == pytest.approx(0 if name in low else 1), name


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match="unknown metric 'dice', must be one of soft, thresholds"):
    metrics.Collector(('dice',), CLASSES)
  label = np.zeros((4, 4), np.uint8)
  with pytest.raises(ValueError, match=r'\(4, 5\) does not fit label \(4, 4\)'):
    metrics.Collector((), CLASSES).add(np.zeros((4, 5), np.uint8), label)
  with pytest.raises(ValueError, match=r'must have the shape \(4, 4, 2\)'):
    metrics.Collector((), CLASSES).add(label, label, np.zeros((4, 4, 3)))
