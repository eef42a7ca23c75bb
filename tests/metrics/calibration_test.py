"""Calibration against Guo et al. (2017) in a float64 loop, and by hand."""

import json

import numpy as np
import pytest

from emseg_jax.data.pairs import IGNORED
from emseg_jax.metrics import calibration


def ece_by_definition(confidence, right, bins=15):
  """Eq. 3 of the paper, bin by bin."""
  total = 0.0
  for m in range(bins):
    inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
    if inside.any():
      total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
  return total


@pytest.mark.parametrize('shape', [(9, 7), (3, 5, 4)])
@pytest.mark.parametrize('num_classes', [2, 4])
def test_the_error_is_that_of_the_paper(shape, num_classes):
  rng = np.random.default_rng(0)
  p = rng.dirichlet(np.ones(num_classes), shape).astype(np.float32)
  label = rng.integers(0, num_classes, shape).astype(np.uint8)
  result = calibration.calibration(calibration.confidence_counts(p, label))
  flat = p.reshape(-1, num_classes).astype(np.float64)
  expected = ece_by_definition(flat.max(-1), flat.argmax(-1) == label.ravel())
  assert result['ece'] == pytest.approx(expected, abs=1e-6)
  assert sum(result['count']) == label.size
  assert json.loads(json.dumps(result)) == result


def test_sure_and_unsure_decisions_by_hand():
  # Three decisions at 0.9 (bin 13: 12/15 < 0.9 <= 14/15), two right; one at 0.6 (bin 8), wrong.
  p = np.array([[0.1, 0.9], [0.9, 0.1], [0.1, 0.9], [0.6, 0.4]])
  result = calibration.calibration(calibration.confidence_counts(p, np.array([1, 0, 0, 1])))
  assert result['count'] == [0] * 8 + [1] + [0] * 4 + [3, 0]
  assert result['accuracy'][13] == pytest.approx(2 / 3)
  assert result['confidence'][8] == pytest.approx(0.6)
  assert result['accuracy'][0] is None
  assert result['ece'] == pytest.approx(3 / 4 * (0.9 - 2 / 3) + 1 / 4 * 0.6)


def test_certainty_is_in_the_last_bin_and_ignored_voxels_in_none():
  p = np.array([[[0.0, 1.0], [np.nan, np.nan]]])
  counts = calibration.confidence_counts(p, np.array([[1, IGNORED]], np.uint8))
  assert counts[14].tolist() == [1, 1, 1]
  assert counts.sum() == 3
  nothing = calibration.confidence_counts(p, np.full((1, 2), IGNORED, np.uint8))
  assert calibration.calibration(nothing)['ece'] is None


def test_overlapping_classes_are_decided_one_by_one():
  # Mask 3 holds both classes; against class 1 it was decided with 1 - 0.3.
  p, label = np.array([[0.95, 0.3]]), np.array([3], np.uint8)
  result = calibration.calibration(calibration.confidence_counts(p, label, multilabel=True))
  assert sum(result['count']) == 2
  assert (result['accuracy'][14], result['accuracy'][10]) == (1.0, 0.0)
  assert result['ece'] == pytest.approx((0.05 + 0.7) / 2)


def test_shapes_that_do_not_fit_are_an_error():
  with pytest.raises(ValueError, match='do not fit labels'):
    calibration.confidence_counts(np.zeros((2, 3, 2)), np.zeros((3, 2), np.uint8))
