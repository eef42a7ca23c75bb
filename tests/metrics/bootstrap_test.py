"""Bootstrap intervals against enumerating every resample, and against scipy's bootstrap."""

import itertools
import json

import numpy as np
import pytest
import scipy.stats

from emseg_jax import metrics
from emseg_jax.metrics import bootstrap

CLASSES = ('a', 'b', 'c')


def random_confusions(seed, n):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 50, (n, 3, 3)) + np.eye(3, dtype=int) * rng.integers(0, 300, (n, 1, 1))


def score(confusion, name):
  result = metrics.scores(confusion, CLASSES)
  return result['per_class'][name[-1]]['iou'] if name.startswith('iou') else result[name]


def found_interval(result, name):
  return result['per_class'][name[-1]]['iou'] if name.startswith('iou') else result[name]


@pytest.mark.parametrize('name', ['accuracy', 'miou', 'mean_dice', 'iou/b'])
def test_intervals_approach_the_quantiles_of_all_resamples(name):
  confusions = random_confusions(0, 4)
  every = [
    score(confusions[list(drawn)].sum(axis=0), name)
    for drawn in itertools.product(range(4), repeat=4)
  ]
  result = bootstrap.intervals(confusions, CLASSES, confidence=0.8, seed=0, resamples=50_000)
  # The distribution is discrete: an inner quantile of many draws lies between those of nearby
  # levels of the 256 equally likely resamples.
  for end, level in zip(found_interval(result, name), (0.1, 0.9), strict=True):
    low, high = np.quantile(every, [level - 0.01, level + 0.01])
    assert low - 1e-12 <= end <= high + 1e-12  # sums of another order round otherwise


@pytest.mark.parametrize('name', ['accuracy', 'miou', 'iou/c'])
def test_intervals_agree_with_scipy(name):
  confusions = random_confusions(1, 30)
  expected = scipy.stats.bootstrap(
    (np.arange(30),),
    lambda drawn: score(confusions[drawn].sum(axis=0), name),
    vectorized=False,
    n_resamples=1000,
    method='percentile',
    rng=np.random.default_rng(0),
  ).confidence_interval
  found = found_interval(bootstrap.intervals(confusions, CLASSES, confidence=0.95, seed=0), name)
  width = expected.high - expected.low
  assert found == pytest.approx(list(expected), abs=0.12 * width)  # both are draws


def test_equal_images_have_an_interval_of_no_width():
  confusions = np.tile(np.array([[4, 2, 0], [1, 3, 0], [0, 0, 0]]), (5, 1, 1))
  found = bootstrap.intervals(confusions, CLASSES, confidence=0.95, seed=0)
  point = metrics.scores(confusions.sum(axis=0), CLASSES)
  for name in ('accuracy', 'miou', 'mean_dice'):
    assert found[name] == pytest.approx([point[name]] * 2)
  assert found['per_class']['b']['iou'] == pytest.approx([3 / 6] * 2)
  assert found['per_class']['c']['iou'] is None
  assert found['images'] == 5
  assert json.loads(json.dumps(found)) == found


def test_a_class_in_one_of_two_images_is_scored_where_it_is_drawn():
  # Image 0 has class c (IoU 0.5), image 1 has not: the draws (0,0), (0,1) give IoU 0.5.
  confusions = np.zeros((2, 3, 3), int)
  confusions[0, 2, 2] = confusions[0, 2, 1] = 10
  confusions[1, 0, 0] = 10
  found = bootstrap.intervals(confusions, CLASSES, confidence=0.95, seed=0)
  assert found['per_class']['c']['iou'] == [0.5, 0.5]
  # mean IoU: (0, 0) -> (0 + .5) / 2, (0, 1) -> (1 + 0 + .5) / 3, (1, 1) -> 1
  assert found['miou'] == [0.25, 1.0]


def test_fewer_than_two_images_have_no_interval():
  confusions = random_confusions(2, 3)
  assert bootstrap.intervals(confusions[:1], CLASSES, confidence=0.95, seed=0) is None
  assert bootstrap.intervals(confusions[:0], CLASSES, confidence=0.95, seed=0) is None
  confusions[1:] = 0  # images without scored voxels do not count
  assert bootstrap.intervals(confusions, CLASSES, confidence=0.95, seed=0) is None


def test_the_seed_decides_and_a_higher_level_is_wider():
  confusions = random_confusions(3, 10)
  first, again, other = (
    bootstrap.intervals(confusions, CLASSES, confidence=0.95, seed=seed) for seed in (0, 0, 1)
  )
  assert first == again != other
  narrow = bootstrap.intervals(confusions, CLASSES, confidence=0.5, seed=0)
  assert first['miou'][0] < narrow['miou'][0] < narrow['miou'][1] < first['miou'][1]


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match='for 3 classes'):
    bootstrap.intervals(np.zeros((4, 2, 2), int), CLASSES, confidence=0.95, seed=0)
  with pytest.raises(ValueError, match=r'confidence is 1\.5'):
    bootstrap.intervals(np.zeros((4, 3, 3), int), CLASSES, confidence=1.5, seed=0)


def test_precision_recall_and_dice_have_intervals_too():
  # Two images: drawn twice, or one each. Class b: 3 of 4 predicted right, 3 of 4 labelled; then
  # 1 of 2 and 1 of 4. The extremes of 99.9 % are the images alone.
  first, second = [[5, 1, 0], [1, 3, 0], [0, 0, 0]], [[5, 1, 0], [3, 1, 0], [0, 0, 0]]
  found = bootstrap.intervals(np.array([first, second]), CLASSES, confidence=0.999, seed=0)
  assert found['per_class']['b'] == {
    'iou': [1 / 5, 3 / 5],
    'dice': [2 / 6, 6 / 8],
    'precision': [1 / 2, 3 / 4],
    'recall': [1 / 4, 3 / 4],
  }
  assert found['per_class']['c']['recall'] is None
