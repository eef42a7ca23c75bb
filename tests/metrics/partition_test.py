"""Partition scores against scikit-image, loops over pairs of pixels, and small cases by hand."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import measure
from skimage.metrics import adapted_rand_error
from skimage.metrics import variation_of_information as skimage_vi

from emseg_jax.metrics import partition

SHAPES = st.sampled_from([(2, 3), (1, 9), (5, 6), (3, 4, 5)])


def _labellings(shape, seed, regions):
  return np.random.default_rng(seed).integers(0, regions, (2, *shape))


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(0, 99), st.integers(1, 5), st.booleans())
def test_adapted_rand_and_vi_equal_scikit_image(shape, seed, regions, foreground_only):
  predicted, truth = _labellings(shape, seed, regions)
  if foreground_only and not truth.any():
    return
  table = partition.contingency(predicted, truth, foreground_only=foreground_only)
  ignore_labels = (0,) if foreground_only else ()
  with np.errstate(invalid='ignore', divide='ignore'):  # no two pixels together
    # scikit-image returns precision and recall the wrong way round (its issue 6485).
    error, recall, precision = adapted_rand_error(truth, predicted, ignore_labels=ignore_labels)
  expected = {'error': error, 'precision': precision, 'recall': recall}
  for key, value in partition.adapted_rand(table).items():
    assert math.isnan(expected[key]) if value is None else value == pytest.approx(expected[key])
  split, merge = skimage_vi(truth, predicted, ignore_labels=ignore_labels)
  vi = partition.variation_of_information(table)
  assert vi['split'] == pytest.approx(split, abs=1e-12)
  assert vi['merge'] == pytest.approx(merge, abs=1e-12)
  assert vi['variation_of_information'] == pytest.approx(split + merge, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(SHAPES, st.integers(0, 99), st.integers(1, 5), st.booleans())
def test_v_rand_counts_pairs_of_pixels_that_are_together(shape, seed, regions, distinct_pairs):
  predicted, truth = _labellings(shape, seed, regions)
  s, t = predicted.ravel(), truth.ravel()
  in_both = in_s = in_t = 0
  for a in range(s.size):
    for b in range(s.size):
      if a != b or not distinct_pairs:
        in_s += s[a] == s[b]
        in_t += t[a] == t[b]
        in_both += s[a] == s[b] and t[a] == t[b]
  result = partition.v_rand(partition.contingency(predicted, truth), distinct_pairs=distinct_pairs)
  expected = {
    'v_rand': (2 * in_both, in_s + in_t),
    'split': (in_both, in_t),
    'merge': (in_both, in_s),
  }
  for key, (numerator, denominator) in expected.items():
    assert result[key] == (pytest.approx(numerator / denominator) if denominator else None)


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.integers(0, 99), st.integers(2, 5))
def test_v_info_is_one_minus_scikit_images_vi_over_the_entropies(shape, seed, regions):
  predicted, truth = _labellings(shape, seed, regions)
  h_s, h_t = measure.shannon_entropy(predicted), measure.shannon_entropy(truth)
  if not h_s + h_t:
    return
  split, merge = skimage_vi(truth, predicted)
  result = partition.v_info(partition.contingency(predicted, truth))
  assert result['v_info'] == pytest.approx(1 - (split + merge) / (h_s + h_t), abs=1e-12)
  # I(S;T) = H(S) - H(S|T) = H(T) - H(T|S)
  assert result['split'] == (pytest.approx((h_s - split) / h_s, abs=1e-12) if h_s else None)
  assert result['merge'] == (pytest.approx((h_t - merge) / h_t, abs=1e-12) if h_t else None)


def test_a_split_lowers_split_and_a_merge_lowers_merge():
  one, two = np.array([1, 1, 1, 1]), np.array([1, 1, 2, 2])
  # Split into halves: 8 of 16 ordered pairs stay together, 4 of 12 without those of a pixel with
  # itself; the truth has no information to find.
  split = partition.contingency(two, one)
  assert partition.v_rand(split) == pytest.approx({'v_rand': 16 / 24, 'split': 0.5, 'merge': 1.0})
  assert partition.adapted_rand(split) == pytest.approx(
    {'error': 1 - 8 / 16, 'precision': 1.0, 'recall': 4 / 12}
  )
  assert partition.v_info(split) == {'v_info': 0.0, 'split': 0.0, 'merge': None}
  assert partition.variation_of_information(split) == {
    'variation_of_information': 1.0,
    'split': 1.0,
    'merge': 0.0,
  }
  merged = partition.contingency(one, two)
  assert partition.v_rand(merged) == pytest.approx({'v_rand': 16 / 24, 'split': 1.0, 'merge': 0.5})
  assert partition.v_info(merged) == {'v_info': 0.0, 'split': None, 'merge': 0.0}
  assert partition.variation_of_information(merged)['merge'] == 1.0


def test_the_names_of_regions_do_not_matter():
  predicted, truth = _labellings((6, 7), 3, 4)
  table = partition.contingency(predicted, truth)
  names = np.array([2**62, -5, 255, 0])
  renamed = partition.contingency(names[predicted], names[truth])
  assert partition.v_rand(renamed) == partition.v_rand(table)
  assert partition.v_info(renamed) == pytest.approx(partition.v_info(table))


def test_ignored_pixels_are_as_good_as_cut_off():
  predicted, truth = _labellings((4, 6), 5, 3)
  ignored = np.zeros((4, 6), bool)
  ignored[:, 4:] = True
  table = partition.contingency(predicted, truth, ignored=ignored)
  cut = partition.contingency(predicted[:, :4], truth[:, :4])
  for one, other in zip(table, cut, strict=True):
    np.testing.assert_array_equal(one, other)


def test_background_as_singletons_gives_each_such_pixel_a_region():
  predicted = np.array([[0, 0, 1, 1, 0]])
  truth = np.array([[7, 7, 7, 0, 0]])
  table = partition.contingency(predicted, truth, background_as_singletons=True)
  by_hand = partition.contingency(np.array([[2, 3, 1, 1, 4]]), truth)
  assert sorted(table.joint) == sorted(by_hand.joint) == [1, 1, 1, 1, 1]
  assert sorted(table.predicted) == sorted(by_hand.predicted) == [1, 1, 1, 2]
  assert sorted(table.truth) == [2, 3]
  inside = partition.contingency(
    predicted, truth, background_as_singletons=True, foreground_only=True
  )
  assert sorted(inside.predicted) == [1, 1, 1]
  assert list(inside.truth) == [3]


def test_nothing_to_count_gives_none():
  empty = partition.contingency(np.ones((2, 2), int), np.zeros((2, 2), int), foreground_only=True)
  scores = (
    partition.v_rand(empty),
    partition.adapted_rand(empty),
    partition.v_info(empty),
    partition.variation_of_information(empty),
  )
  assert all(value is None for score in scores for value in score.values())


def test_one_region_on_both_sides_is_a_perfect_partition_without_information():
  table = partition.contingency(np.full((3, 3), 4), np.ones((3, 3), int))
  assert partition.v_rand(table) == {'v_rand': 1.0, 'split': 1.0, 'merge': 1.0}
  assert partition.v_info(table) == {'v_info': None, 'split': None, 'merge': None}
  assert partition.variation_of_information(table)['variation_of_information'] == 0.0


def test_large_volumes_do_not_overflow():
  # 4e9 pixels, predicted as two halves; their pairs, 1.6e19, exceed int64.
  halves = np.array([2 * 10**9] * 2)
  table = partition.Contingency(joint=halves, predicted=halves, truth=np.array([4 * 10**9]))
  assert partition.v_rand(table)['split'] == 0.5


def test_scores_are_ready_for_json():
  table = partition.contingency(*_labellings((4, 4), 0, 3))
  scores = {**partition.v_rand(table), **partition.v_info(table), **partition.adapted_rand(table)}
  scores |= partition.variation_of_information(table)
  assert json.loads(json.dumps(scores)) == scores


def test_shapes_must_agree():
  with pytest.raises(ValueError, match='one shape'):
    partition.contingency(np.zeros((2, 3), int), np.zeros((3, 2), int))
  with pytest.raises(ValueError, match='one shape'):
    partition.contingency(
      np.zeros((2, 3), int), np.zeros((2, 3), int), ignored=np.zeros((3,), bool)
    )
