"""Boundary F1 against distance transforms voxel by voxel, and against shapes counted by hand."""

import json

import numpy as np
import pytest
from scipy import ndimage

from emseg_jax.metrics import boundary


def boundary_by_loop(labels, k, counted):
  """Voxels of class k with a counted face neighbour of another class."""
  found = np.zeros(labels.shape, bool)
  for place in np.ndindex(labels.shape):
    if labels[place] != k or not counted[place]:
      continue
    for axis in range(labels.ndim):
      for step in (-1, 1):
        other = list(place)
        other[axis] += step
        other = tuple(other)
        if 0 <= other[axis] < labels.shape[axis] and counted[other] and labels[other] != k:
          found[place] = True
  return found


def near_by_distance_transform(points, others, tolerance, spacing):
  if not others.any():
    return 0
  distance = ndimage.distance_transform_edt(~others, sampling=spacing)
  return int(np.sum(points & (distance <= tolerance + 1e-6)))  # 3 * 0.1 is 0.3


def blobs(shape, other):
  """Three classes in blobs; those of `other` 0.3 are mostly where those of 0 are."""
  noise = np.random.default_rng(0).normal(size=(2, *shape))
  smooth = ndimage.gaussian_filter(noise[0] + other * noise[1], 1.0)
  return np.digitize(smooth, np.quantile(smooth, [0.8, 0.95])).astype(np.uint8)


@pytest.mark.parametrize(
  ('shape', 'tolerance', 'spacing'),
  [
    ((24, 30), 0.0, None),
    ((24, 30), 1.0, None),
    ((40, 50), 2.0, (1.0, 1.0)),
    ((9, 16, 20), 1.5, None),
    ((9, 16, 20), 0.3, (0.3, 0.1, 0.1)),
    ((9, 16, 20), 3.0, (5.0, 1.0, 1.0)),
    ((9, 16, 20), 2.5, (2.5, 1.0, 1.0)),
  ],
)
def test_counts_equal_distance_transforms(shape, tolerance, spacing):
  label, prediction = blobs(shape, 0.0), blobs(shape, 0.5)
  label[np.random.default_rng(1).random(shape) < 0.05] = 255
  counts = boundary.boundary_counts(
    prediction, label, num_classes=3, tolerance=tolerance, spacing=spacing
  )
  counted = label != 255
  expected = []
  for k in range(3):
    p, y = (boundary_by_loop(x, k, counted) for x in (prediction, label))
    near = [near_by_distance_transform(*pair, tolerance, spacing) for pair in ((p, y), (y, p))]
    expected.append([p.sum(), near[0], y.sum(), near[1]])
  np.testing.assert_array_equal(counts, expected)
  assert (counts[2, 1::2] > 0).all()
  assert (counts[2, 1::2] < counts[2, ::2]).all()  # some are near, some are not


def test_a_shifted_square_by_hand():
  label, prediction = np.zeros((2, 12, 12), np.uint8)
  label[3:7, 3:7] = 1
  prediction[3:7, 5:9] = 1  # two pixels to the right
  # Outlines of 12 pixels each; both have columns 5 and 6 of rows 3 and 6.
  counts = boundary.boundary_counts(prediction, label, num_classes=2, tolerance=0)
  np.testing.assert_array_equal(counts[1], [12, 4, 12, 4])
  found = boundary.boundary_scores(counts, ['rest', 'cell'])['per_class']['cell']
  assert found == pytest.approx({'f1': 1 / 3, 'precision': 1 / 3, 'recall': 1 / 3})
  # Every pixel of one outline has one of the other within two pixels along its row.
  counts = boundary.boundary_counts(prediction, label, num_classes=2, tolerance=2)
  np.testing.assert_array_equal(counts[1], [12, 12, 12, 12])
  # Just below 2, the four pixels of the outer column are lost.
  counts = boundary.boundary_counts(prediction, label, num_classes=2, tolerance=1.99)
  np.testing.assert_array_equal(counts[1], [12, 8, 12, 8])


def test_the_image_border_and_unlabelled_regions_are_no_boundary():
  label = np.ones((6, 6), np.uint8)
  label[:, 3:] = 255
  prediction = np.ones((6, 6), np.uint8)
  counts = boundary.boundary_counts(prediction, label, num_classes=2, tolerance=2)
  assert not counts.any()
  prediction[:, 3:] = 0  # wrong only where nothing is scored
  assert not boundary.boundary_counts(prediction, label, num_classes=2, tolerance=2).any()
  prediction[:, 2] = 0
  counts = boundary.boundary_counts(prediction, label, num_classes=2, tolerance=2)
  np.testing.assert_array_equal(counts, [[6, 0, 0, 0], [6, 0, 0, 0]])


def test_a_boundary_in_one_map_only_scores_zero_and_in_none_is_null():
  found = boundary.boundary_scores(np.array([[6, 0, 0, 0], [0, 0, 4, 0], [0, 0, 0, 0]]), 'abc')
  assert found == {
    'mean_f1': 0.0,
    'per_class': {
      'a': {'f1': 0.0, 'precision': 0.0, 'recall': None},
      'b': {'f1': 0.0, 'precision': None, 'recall': 0.0},
      'c': {'f1': None, 'precision': None, 'recall': None},
    },
  }
  assert boundary.boundary_scores(np.zeros((2, 4), int), 'ab')['mean_f1'] is None
  assert json.loads(json.dumps(found)) == found


def test_precision_and_recall_are_of_summed_counts():
  counts = np.array([[10, 5, 4, 4], [2, 2, 2, 2]]) + np.array([[10, 10, 16, 12], [0, 0, 0, 0]])
  found = boundary.boundary_scores(counts, ['a', 'b'])
  # precision 15 / 20, recall 16 / 20
  expected = {'f1': 2 * 0.75 * 0.8 / 1.55, 'precision': 0.75, 'recall': 0.8}
  assert found['per_class']['a'] == pytest.approx(expected)
  assert found['mean_f1'] == pytest.approx((expected['f1'] + 1) / 2)


def test_shapes_that_do_not_fit_are_named():
  square = np.zeros((4, 4), np.uint8)
  with pytest.raises(ValueError, match=r'\(4, 5\) does not fit label \(4, 4\)'):
    boundary.boundary_counts(np.zeros((4, 5)), square, num_classes=2, tolerance=1)
  with pytest.raises(ValueError, match='for 2 axes'):
    boundary.boundary_counts(square, square, num_classes=2, tolerance=1, spacing=(5, 1, 1))
  with pytest.raises(ValueError, match='for 3 classes'):
    boundary.boundary_scores(np.zeros((2, 4), int), 'abc')
