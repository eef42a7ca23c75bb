"""Instances against instances; scikit-image says what the scores are."""

import numpy as np
import pytest
from skimage import metrics as skimage_metrics

from emseg_jax.data.labels import NO_ID
from emseg_jax.metrics import instances, segmentation


def test_the_parts_of_an_id_are_objects_of_their_own():
  ids = np.array([[7, 0, 7, 7], [7, NO_ID, 9, 7]])
  found = segmentation.parts(ids)
  assert (found == 0).tolist() == [[False, True, False, False], [False, True, False, False]]
  assert len(np.unique(found)) == 4
  assert found[0, 0] == found[1, 0] != found[0, 2] == found[1, 3]


def test_scores_are_those_of_scikit_image():
  rng = np.random.default_rng(0)
  truth, made = rng.integers(0, 5, (2, 4, 8, 8))
  row = segmentation.partition_scores(made, truth, np.zeros(truth.shape, bool))
  error, _, _ = skimage_metrics.adapted_rand_error(truth, made, ignore_labels=(0,))
  merge, split = skimage_metrics.variation_of_information(made, truth)
  assert row['error'] == pytest.approx(error)
  assert row['vi'] == pytest.approx(split + merge)
  assert sorted([row['vi_split'], row['vi_merge']]) == pytest.approx(sorted([split, merge]))


def test_what_is_ignored_does_not_count():
  truth = np.array([[1, 1, 2, 2]])
  made = np.array([[1, 1, 2, 3]])
  assert segmentation.partition_scores(made, truth, made == 3)['error'] == 0


def test_means_are_over_the_images_that_have_a_score():
  rows = [{'error': 0.5, 'vi': 1.0}, {'error': None, 'vi': 2.0}]
  assert segmentation.mean_rows(rows) == {'error': 0.5, 'vi': 1.5}
  assert segmentation.mean_rows(rows[1:]) == {'error': None, 'vi': 2.0}
  matches = instances.count_matches(np.array([[1, 0]]), np.array([[1, 0]]))
  found = segmentation.segmentation_scores(rows, matches)
  assert found['instances']['0.75']['average_precision'] == 1.0


def test_bright_cells_are_among_the_components_of_the_grey_image():
  image = np.full((1, 9, 9), 200, np.uint8)
  image[:, 4] = image[:, :, 4] = 10
  found = dict(segmentation.grey_parts(image))
  assert found['above the 10% darkest'].max() == 4
  assert found['the 10% darkest'].max() == 1
