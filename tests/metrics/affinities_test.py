"""Affinities counted pair by pair; expected numbers are of tables small enough to count."""

import itertools

import numpy as np
import pytest

from emseg_jax.data.labels import NO_ID
from emseg_jax.losses import label_maps
from emseg_jax.metrics import affinities

IDS = np.array([[[5, 5, 0, NO_ID], [5, 7, 7, 0]]])


def test_pairs_are_joined_by_one_id_that_is_not_background():
  assert affinities.joined(IDS, (0, 1)).tolist() == [
    [[True, False, False, False], [False, True, False, False]]
  ]
  assert affinities.joined(IDS, (-1, 0)).tolist() == [[[False] * 4, [True, False, False, False]]]


def test_pairs_are_those_of_training():
  ids = np.random.default_rng(0).integers(0, 3, (3, 5, 6))
  for offset in ((1, 0, 0), (0, -2, 0), (2, 1, -3)):
    same, weight = label_maps.affinities(ids[None], np.ones((1, 3, 5, 6)), offsets=[offset])
    np.testing.assert_array_equal(affinities.joined(ids, offset), same[0, ..., 0] > 0)
    found = affinities.count_pairs(same[0, ..., 0] > 0, ids, offset)
    assert found.sum() == weight.sum()
    assert found[:, 0, 1].sum() == found[:, 1, 0].sum() == 0


def test_counts_by_hand():
  predicted = np.array([[[1, 1, 0, 0], [0, 1, 1, 0]]], bool)
  # Along x: 5-5 joined, found; 5-0 apart, missed as joined; 0-NO_ID does not count; 5-7 apart,
  # right; 7-7 joined, found; 7-0 apart, wrong.
  assert affinities.count_pairs(predicted, IDS, (0, 1)).tolist() == [[[1, 2], [0, 2]]]


def test_a_pair_counts_in_the_section_of_its_first_voxel():
  ids = np.ones((3, 1, 1), int)
  down = affinities.count_pairs(np.ones(ids.shape, bool), ids, (1, 0, 0))
  assert down[:, 1, 1].tolist() == [1, 1, 0]
  up = affinities.count_pairs(np.ones(ids.shape, bool), ids, (-1, 0, 0))
  assert up[:, 1, 1].tolist() == [0, 1, 1]


def test_the_interior_is_joined_on_all_sides_of_the_section():
  ids = np.random.default_rng(1).integers(1, 3, (2, 6, 7))
  maps = {o: affinities.joined(ids, o) for o in ((1, 0, 0), (0, -1, 0), (0, 0, 1), (0, 4, 0))}
  found = affinities.interior(maps)
  for z, y, x in itertools.product(range(2), range(6), range(7)):
    around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    inside = [ids[z, a, b] == ids[z, y, x] for a, b in around if 0 <= a < 6 and 0 <= b < 7]
    assert found[z, y, x] == all(inside)


def test_scores_of_an_offset():
  counts = np.array([[[6, 2], [1, 3]]])
  (row,) = affinities.affinity_scores(counts, ['z1'])['per_class'].values()
  assert row['accuracy'] == 9 / 12
  assert (row['iou_apart'], row['iou_joined']) == pytest.approx((6 / 9, 3 / 6))
  assert row['miou'] == pytest.approx((6 / 9 + 3 / 6) / 2)
