"""The ISBI 2012 score against scikit-image where it has one, and by hand where it has none."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import measure
from skimage.metrics import adapted_rand_error, variation_of_information

from emseg_jax.metrics import isbi2012


def _rows(*columns, height=3):
  """A section whose rows are all equal, from one string per section: '.' interior, '#' border."""
  return np.array([[[c == '.' for c in line]] * height for line in columns]).astype(np.uint8)


def _blobs(seed, shape=(3, 24, 25)):
  """Smooth noise [Z, Y, X] around 0, and where it is positive."""
  noise = np.random.default_rng(seed).normal(size=shape)
  noise = ndimage.gaussian_filter(noise, (0, 1.5, 1.5))
  return noise, (noise > 0).astype(np.uint8)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99))
def test_without_thinning_and_masking_it_equals_scikit_image(seed):
  rng = np.random.default_rng(seed)
  probability = rng.random((3, 9, 8)).astype(np.float32)
  labels = rng.integers(0, 3, (3, 9, 8))
  thresholds = (0.2, 0.5, 0.6)
  rand, info = [], []
  for threshold in thresholds:
    per_section = []
    for p, label in zip(probability, labels, strict=True):
      predicted = ndimage.label(p > threshold)[0]
      truth = np.zeros_like(label)
      for k in (1, 2):  # components of equal label, one label at a time
        components, _ = ndimage.label(label == k)
        truth += np.where(components > 0, components + truth.max(), 0)
      error, *_ = adapted_rand_error(truth, predicted, ignore_labels=())
      entropies = measure.shannon_entropy(predicted) + measure.shannon_entropy(truth)
      vi = variation_of_information(truth, predicted).sum()
      per_section.append((1 - error, 1 - vi / entropies))
    means = np.mean(per_section, axis=0)
    rand.append(means[0])
    info.append(means[1])
  result = isbi2012.scores(
    probability,
    labels,
    thresholds=thresholds,
    thinning=False,
    foreground_only=False,
    distinct_pairs=True,
  )
  assert result['v_rand'] == pytest.approx(max(rand))
  assert result['v_info'] == pytest.approx(max(info))
  assert result['threshold_rand'] == thresholds[int(np.argmax(rand))]
  assert result['threshold_info'] == thresholds[int(np.argmax(info))]
  assert result['sections'] == 3


def test_by_hand_a_wide_border_is_thinned_and_costs_nothing():
  # Truth: two cells of 9 pixels. The predicted border is three wide; thinned to its middle column
  # it lies on the true membrane, and both cells are whole.
  labels = _rows('...#...')
  wide = _rows('..###..').astype(np.float32)
  thinned = isbi2012.scores(wide, labels, thresholds=[0.5])
  assert thinned['v_rand'] == pytest.approx(1.0)
  assert thinned['v_info'] == pytest.approx(1.0)
  # Not thinned: each cell keeps 6 pixels together and has 3 single ones; in units of 1 / 18²
  #   sum p² = sum s² = 2 (36 + 3) = 78        sum t² = 2 * 81 = 162
  as_it_is = isbi2012.scores(wide, labels, thresholds=[0.5], thinning=False)
  assert as_it_is['v_rand'] == pytest.approx(2 * 78 / (78 + 162))
  assert as_it_is['v_rand_split'] == pytest.approx(78 / 162)
  assert as_it_is['v_rand_merge'] == pytest.approx(1.0)


def test_by_hand_a_gap_in_the_border_merges_two_cells():
  # Truth: cells of 9 and 3 pixels, t = 3/4 and 1/4. The membrane between them has a hole in its
  # middle row, so that the prediction is one region (s = 1); the membrane itself does not count.
  labels = _rows('...#.')
  probability = labels.astype(np.float32)
  probability[0, 1, 3] = 1.0
  result = isbi2012.scores(probability, labels, thresholds=[0.5])
  #   sum p² = sum t² = 9/16 + 1/16 = 10/16    sum s² = 1    V = 10/16 / (1/2 + 10/32) = 10/13
  assert result['v_rand'] == pytest.approx(10 / 13)
  assert result['v_rand_split'] == pytest.approx(1.0)
  assert result['v_rand_merge'] == pytest.approx(10 / 16)
  #   H(S) = 0, so that S says nothing about T: I = 0 and V_info = 0; I / H(S) has no value.
  assert result['v_info'] == 0.0
  assert result['v_info_merge'] == 0.0
  assert result['v_info_split'] is None


def test_by_hand_a_false_border_splits_a_cell():
  # Truth: cells of 15 and 3 pixels. A false border of one column cuts the first one into 6 and 6,
  # and its own 3 pixels are regions of one pixel each, being interior in the truth.
  labels = _rows('.....#.')
  probability = _rows('..#..#.').astype(np.float32)
  result = isbi2012.scores(probability, labels, thresholds=[0.5])
  # In units of 1 / 18²:
  #   sum p² = sum s² = 36 + 36 + 3 * 1 + 9 = 84    sum t² = 225 + 9 = 234    V = 84 / (42 + 117)
  assert result['v_rand'] == pytest.approx(84 / 159)
  assert result['v_rand_split'] == pytest.approx(84 / 234)
  assert result['v_rand_merge'] == pytest.approx(1.0)
  #   S refines T, so that I = H(T).
  h_t = 15 / 18 * math.log2(18 / 15) + 3 / 18 * math.log2(18 / 3)
  h_s = 2 * 6 / 18 * math.log2(18 / 6) + 3 * 1 / 18 * math.log2(18) + 3 / 18 * math.log2(18 / 3)
  assert result['v_info'] == pytest.approx(2 * h_t / (h_s + h_t))
  assert result['v_info_split'] == pytest.approx(h_t / h_s)
  assert result['v_info_merge'] == pytest.approx(1.0)


def test_by_hand_the_best_threshold_is_that_of_the_mean_over_sections():
  # Section 0 needs more than 0.4 to close its membrane, section 1 less than 0.6 to keep its second
  # cell whole, so that both are perfect at 0.5. At 0.3 section 0 merges two cells of 9 pixels:
  #   sum p² = sum t² = 1/2, sum s² = 1, V = 2/3
  labels = _rows('...#...', '...#...')
  probability = labels.astype(np.float32)
  probability[0, :, 3] = 0.4
  probability[1, :, 5] = 0.6
  result = isbi2012.scores(probability, labels, thresholds=[0.3, 0.5, 0.7])
  assert (result['v_rand'], result['threshold_rand']) == (pytest.approx(1.0), 0.5)
  assert (result['v_info'], result['threshold_info']) == (pytest.approx(1.0), 0.5)
  low = isbi2012.scores(probability, labels, thresholds=[0.3])
  assert low['v_rand'] == pytest.approx((2 / 3 + 1) / 2)
  curves = [isbi2012.curve(p, label) for p, label in zip(probability, labels, strict=True)]
  assert isbi2012.best(curves) == isbi2012.scores(probability, labels)


def test_thresholds_are_those_of_the_challenge_and_strict():
  assert isbi2012.THRESHOLDS[:10] == pytest.approx([i / 10 for i in range(10)])
  assert 0.9999 < isbi2012.THRESHOLDS[10] < 1  # keeps pixels of probability 1, and no others
  # A border of exactly 0.5 is border at threshold 0.5 and not at 0.4, where the cells are merged.
  labels = _rows('...#...')
  probability = np.where(labels, 1.0, 0.5).astype(np.float32)
  result = isbi2012.scores(probability, labels)
  assert result['v_rand'] == pytest.approx(1.0)
  assert result['threshold_rand'] == 0.5


def test_a_perfect_prediction_of_any_shape_scores_one():
  _, labels = _blobs(0)
  result = isbi2012.scores(labels.astype(np.float32), labels)
  assert result['v_rand'] == pytest.approx(1.0)
  assert result['v_info'] == pytest.approx(1.0)
  assert result['threshold_rand'] == 0.0  # all are equal: the lowest


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 99), st.booleans(), st.booleans())
def test_scores_lie_between_zero_and_one_and_are_ready_for_json(seed, thinning, foreground_only):
  noise, _ = _blobs(seed)
  labels = (noise + 0.3 * _blobs(seed + 1)[0] > 0).astype(np.uint8)
  probability = (1 / (1 + np.exp(-4 * noise))).astype(np.float32)
  result = isbi2012.scores(probability, labels, thinning=thinning, foreground_only=foreground_only)
  for part in isbi2012.PARTS:
    assert result[part] is None or 0 <= result[part] <= 1 + 1e-12
  assert json.loads(json.dumps(result)) == result


def test_thinned_borders_never_join_components():
  noise, _ = _blobs(7, (1, 40, 40))
  interior = noise[0] > 0.05
  regions = isbi2012._regions(interior, thinning=True)
  components, number = ndimage.label(interior)
  np.testing.assert_array_equal(regions[interior], components[interior])  # the interior stays
  assert regions.max() == number
  for axis in (0, 1):  # no two regions touch: the line has no gap
    one, other = np.delete(regions, -1, axis), np.delete(regions, 0, axis)
    assert not ((one != other) & (one > 0) & (other > 0)).any()
  assert 0 < (regions == 0).sum() < 0.5 * (~interior).sum()


def test_a_slanting_border_is_thinned_to_pixels_that_touch_at_corners():
  # Two diagonals of border, 20 and 19 pixels: flooding over faces leaves about one of them, over
  # corners both.
  y, x = np.indices((20, 20))
  regions = isbi2012._regions((y - x < 0) | (y - x > 1), thinning=True)
  assert 19 <= (regions == 0).sum() < 25


def test_a_prediction_without_interior_or_without_border_is_one_region():
  labels = _rows('...#.')  # V = 10/13 for one region, as computed above
  for value in (0.0, 1.0):
    probability = np.full(labels.shape, value, np.float32)
    result = isbi2012.scores(probability, labels, thresholds=[0.5])
    assert result['v_rand'] == pytest.approx(10 / 13)
    assert result['v_info'] == 0.0


def test_ignored_pixels_do_not_count_even_if_the_probability_there_is_nan():
  labels = _rows('.....#.')
  probability = labels.astype(np.float32)
  probability[0, :, 0] = np.nan  # a false border, but ignored
  labels[0, :, 0] = 255
  for foreground_only in (True, False):
    result = isbi2012.scores(probability, labels, thresholds=[0.5], foreground_only=foreground_only)
    assert result['v_rand'] == pytest.approx(1.0)
    assert result['v_info'] == pytest.approx(1.0)


def test_cells_may_touch_and_have_any_number():
  cells = np.array([[255, 255, 255, 7, 7, 7]] * 2)
  probability = np.ones(cells.shape, np.float32)
  # One region over two cells of 6 pixels: sum p² = sum t² = 1/2, sum s² = 1, V = 2/3
  result = isbi2012.scores(probability, cells, thresholds=[0.5], ignored_label=None)
  assert result['v_rand'] == pytest.approx(2 / 3)
  # 255 ignored leaves one cell, found as one region
  assert isbi2012.scores(probability, cells, thresholds=[0.5])['v_rand'] == 1.0


def test_a_section_without_foreground_is_left_out():
  labels = _rows('...#.', '#####')
  probability = np.ones(labels.shape, np.float32)
  result = isbi2012.scores(probability, labels, thresholds=[0.5])
  assert result['v_rand'] == pytest.approx(10 / 13)
  assert result['sections'] == 1
  nothing = isbi2012.scores(probability[1], labels[1])
  assert nothing.pop('sections') == 0
  assert set(nothing.values()) == {None}


def test_a_section_of_one_true_region_has_no_v_info_at_any_threshold():
  # It would have V_info 0 where it is split and 0 / 0 where not, and pull the best threshold along.
  labels = _rows('.......', '...#...')
  probability = _rows('..#....', '...#...').astype(np.float32) * 0.9
  result = isbi2012.scores(probability, labels)
  assert result['v_info'] == pytest.approx(1.0)
  assert result['sections'] == 2
  assert set(isbi2012.curve(probability[0], labels[0])['v_info']) == {None}
  # Its V_rand: 21 pixels into 6, 12 and 3 single ones, (36 + 144 + 3) / 441.
  assert isbi2012.curve(probability[0], labels[0])['v_rand'][0] == pytest.approx(
    2 * 183 / (183 + 441)
  )


def test_shapes_must_agree():
  with pytest.raises(ValueError, match=r'\[Z, Y, X\] or \[Y, X\]'):
    isbi2012.scores(np.zeros((2, 3), np.float32), np.zeros((3, 2), np.uint8))
  with pytest.raises(ValueError, match=r'\[Z, Y, X\] or \[Y, X\]'):
    isbi2012.scores(np.zeros((2,), np.float32), np.zeros((2,), np.uint8))
