"""Matches of objects against an exhaustive search, and against pictures counted by hand."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import measure

from emseg_jax.metrics import instances


def _best_matching(predicted, truth, threshold):
  """Tries every one-to-one assignment: the most matches, then the largest sum of IoU."""
  s_ids = [k for k in np.unique(predicted) if k]
  t_ids = [k for k in np.unique(truth) if k]
  iou = {}
  for s, t in itertools.product(s_ids, t_ids):
    one, other = predicted == s, truth == t
    iou[s, t] = np.sum(one & other) / np.sum(one | other)
  if len(s_ids) > len(t_ids):
    pairings = [list(zip(p, t_ids)) for p in itertools.permutations(s_ids, len(t_ids))]  # noqa: B905
  else:
    pairings = [list(zip(s_ids, p)) for p in itertools.permutations(t_ids, len(s_ids))]  # noqa: B905
  kept = [[iou[pair] for pair in pairs if iou[pair] >= threshold] for pairs in pairings]
  matches, total = max((len(values), sum(values)) for values in kept)
  return matches, len(s_ids) - matches, len(t_ids) - matches, total


@settings(max_examples=60, deadline=None)
@given(
  st.sampled_from([(3, 4), (2, 9), (2, 2, 3)]),
  st.integers(0, 999),
  st.integers(2, 5),
  st.sampled_from([0.1, 0.25, 0.5, 0.75]),
)
def test_matches_equal_an_exhaustive_search(shape, seed, objects, threshold):
  # Runs of equal labels overlap more than pixels drawn one by one, and leave many ties.
  rng = np.random.default_rng(seed)
  predicted, truth = np.sort(rng.integers(0, objects, (2, *shape)), axis=-1)
  expected = _best_matching(predicted, truth, threshold)
  counts = instances.count_matches(predicted, truth, thresholds=[threshold])
  np.testing.assert_allclose(counts, [expected])


def test_scores_equal_those_counted_by_hand():
  truth = np.array([[1, 1, 1, 1, 0, 2, 2, 0, 3]])
  found = np.array([[5, 5, 5, 0, 0, 9, 9, 9, 0]])
  # 5 and 1 share 3 of 4 pixels, IoU 0.75; 9 and 2 share 2 of 3; object 3 is missed.
  counts = instances.count_matches(found, truth)
  np.testing.assert_allclose(counts, [[2, 0, 1, 3 / 4 + 2 / 3], [1, 1, 2, 3 / 4]])
  result = instances.instance_scores(counts)
  assert result['0.5'] == pytest.approx(
    {
      'average_precision': 2 / 3,
      'precision': 1.0,
      'recall': 2 / 3,
      'f1': 4 / 5,
      'mean_iou': 17 / 24,
      'panoptic_quality': 17 / 12 / 2.5,  # sum IoU / (TP + FP / 2 + FN / 2)
      'tp': 2,
      'fp': 0,
      'fn': 1,
    }
  )
  assert result['0.75'] == pytest.approx(
    {
      'average_precision': 1 / 4,
      'precision': 1 / 2,
      'recall': 1 / 3,
      'f1': 2 / 5,
      'mean_iou': 3 / 4,
      'panoptic_quality': 3 / 4 / 2.5,
      'tp': 1,
      'fp': 1,
      'fn': 2,
    }
  )
  assert json.loads(json.dumps(result)) == result


def test_halves_of_an_object_cannot_both_match_it():
  truth = np.array([[1, 1]])
  halves = np.array([[1, 2]])  # IoU 0.5 with each half
  np.testing.assert_allclose(
    instances.count_matches(halves, truth, thresholds=[0.5]), [[1, 1, 0, 0.5]]
  )


def test_below_one_half_the_number_of_matches_comes_first():
  truth = np.array([[1] * 8 + [2] * 3 + [1] * 3])
  found = np.array([[1] * 8 + [1] * 3 + [2] * 3])
  # IoU: (1, 1) 8/14, (1, 2) 3/11, (2, 1) 3/11. The best pair alone has more IoU than the two others
  # together, 0.571 against 0.545, but leaves an object on both sides.
  counts = instances.count_matches(found, truth, thresholds=[0.25])
  np.testing.assert_allclose(counts, [[2, 0, 0, 6 / 11]])


def test_counts_of_images_add_up_and_are_divided_once():
  truth, found = np.array([[1, 0, 2]]), np.array([[1, 0, 0]])
  nothing = np.zeros((1, 3), int)
  counts = sum(
    (instances.count_matches(found, truth), instances.count_matches(found, nothing)),
    start=np.zeros((2, 4)),
  )
  # first image: one found, one missed; second: one invented
  assert instances.instance_scores(counts)['0.5']['average_precision'] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
  ('found', 'true', 'precision', 'recall', 'ap'),
  [(0, 0, None, None, None), (1, 0, 0.0, None, 0.0), (0, 1, None, 0.0, 0.0)],
)
def test_images_without_objects(found, true, precision, recall, ap):
  images = np.full((3, 3), found), np.full((3, 3), true)
  result = instances.instance_scores(instances.count_matches(*images))['0.75']
  assert (result['precision'], result['recall'], result['average_precision']) == (
    precision,
    recall,
    ap,
  )
  assert result['mean_iou'] is None


def test_ignored_pixels_cut_objects_and_hide_those_inside():
  truth = np.array([[1, 1, 0, 0, 2, 0]])
  found = np.array([[1, 1, 1, 1, 2, 3]])
  ignored = np.array([[0, 0, 1, 1, 0, 1]], bool)
  np.testing.assert_allclose(
    instances.count_matches(found, truth, thresholds=[0.75], ignored=ignored), [[2, 0, 0, 2]]
  )
  np.testing.assert_allclose(
    instances.count_matches(found, truth, thresholds=[0.75]), [[1, 2, 1, 1]]
  )


@pytest.mark.parametrize('connectivity', [1, 2, 3])
def test_components_equal_those_of_scikit_image(connectivity):
  class_map = np.random.default_rng(0).integers(0, 9, (4, 6, 7)).astype(np.uint8)
  objects = instances.connected_components(class_map, 2, connectivity=connectivity)
  expected = measure.label(class_map == 2, connectivity=connectivity)
  assert objects.dtype == np.int32
  assert objects.max() == expected.max() > 1
  assert (
    len(np.unique(np.stack([objects, expected]).reshape(2, -1), axis=1).T) == expected.max() + 1
  )


def test_small_components_vanish_and_the_others_stay_numbered_without_gaps():
  class_map = np.array([[1, 0, 1, 1, 0, 1, 1, 1]], np.uint8)
  np.testing.assert_array_equal(
    instances.connected_components(class_map, 1, min_size=2), [[0, 0, 1, 1, 0, 2, 2, 2]]
  )
  assert not instances.connected_components(class_map, 1, min_size=4).any()
  assert not instances.connected_components(class_map, 2).any()
  np.testing.assert_array_equal(instances.connected_components(np.ones((2, 2)), 1), np.ones((2, 2)))


def test_ignored_labels_are_no_class_of_their_own():
  label = np.array([[1, 255, 1]], np.uint8)
  np.testing.assert_array_equal(instances.connected_components(label, 1), [[1, 0, 2]])


def test_wrong_arguments_are_refused():
  with pytest.raises(ValueError, match='one shape'):
    instances.count_matches(np.zeros((2, 3), int), np.zeros((3, 2), int))
  with pytest.raises(ValueError, match='thresholds'):
    instances.count_matches(np.zeros((2, 3), int), np.zeros((2, 3), int), thresholds=[0.0])
