"""Errors by distance to the border against a loop over voxels, and against counted rims."""

import json

import numpy as np
import pytest

from emseg_jax.metrics import border


def counts_by_loop(prediction, label):
  counts = np.zeros((6, 2), int)
  for place in np.ndindex(label.shape):
    if label[place] == 255:
      continue
    distance = min(min(i, size - 1 - i) for i, size in zip(place, label.shape, strict=True))
    for row, (first, last) in enumerate(
      [(0, 3), (4, 7), (8, 15), (16, 31), (32, 63), (64, np.inf)]
    ):
      if first <= distance <= last:
        counts[row] += prediction[place] != label[place], 1
  return counts


@pytest.mark.parametrize(
  'shape', [(40, 51), (150, 131), (8, 8), (7, 9), (1, 5), (9, 20, 18), (36, 35, 34)]
)
def test_counts_equal_a_loop(shape):
  rng = np.random.default_rng(0)
  prediction, label = rng.integers(0, 3, (2, *shape)).astype(np.uint8)
  label[rng.random(shape) < 0.1] = 255
  found = border.border_counts(prediction, label)
  np.testing.assert_array_equal(found, counts_by_loop(prediction, label))


def test_a_wrong_rim_by_hand():
  label = np.zeros((12, 12), np.uint8)
  prediction = np.ones((12, 12), np.uint8)
  prediction[1:-1, 1:-1] = 0  # the outermost 44 pixels are wrong
  found = border.border_scores(border.border_counts(prediction, label))
  assert found['voxels'] == [144 - 16, 16, 0, 0, 0, 0]
  assert found['error'] == pytest.approx(
    {'0-3': 44 / 128, '4-7': 0.0, '8-15': None, '16-31': None, '32-63': None, '64-': None}
  )
  assert json.loads(json.dumps(found)) == found


def test_counts_of_images_add_up():
  label = np.zeros((12, 12), np.uint8)
  right, wrong = (border.border_counts(np.full_like(label, k), label) for k in (0, 1))
  assert border.border_scores(right + wrong)['error']['4-7'] == 0.5


def test_nothing_scored_is_null():
  counts = border.border_counts(np.zeros((5, 5)), np.full((5, 5), 255, np.uint8))
  assert set(border.border_scores(counts)['error'].values()) == {None}


def test_shapes_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match=r'\(4, 5\) does not fit label \(4, 4\)'):
    border.border_counts(np.zeros((4, 5)), np.zeros((4, 4)))
