"""Objects found by size: by hand, and against scikit-image's regions."""

import json

import numpy as np
import pytest
import skimage.measure

from emseg_jax.data.pairs import IGNORED
from emseg_jax.metrics import object_sizes


def count(prediction, label, **options):
  options = {'num_classes': 2, **options}
  return object_sizes.count_objects(prediction, label, **options)


def test_an_object_is_found_if_more_than_half_of_it_is():
  label = np.zeros((6, 20), np.uint8)
  label[0, :4] = label[2, :4] = label[4, :16] = 1  # two objects of 4 pixels, one of 16
  prediction = np.zeros_like(label)
  prediction[0, :2] = 1  # exactly half: not found
  prediction[2, :3] = 1
  prediction[4, :9] = 1
  prediction[5] = 1  # elsewhere: says nothing of these objects
  counts = count(prediction, label)
  assert not counts[0].any()  # the background has no objects
  assert counts[1, 2].tolist() == [2, 1]
  assert counts[1, 4].tolist() == [1, 1]
  assert counts.sum() == 5
  record = object_sizes.found_by_size(counts, ('rest', 'mito'), ndim=2, voxel=(50, 4, 8))
  assert record == {
    'ndim': 2,
    'voxel_size': [4.0, 8.0],
    'octaves': [2, 3, 4],
    'per_class': {'mito': {'objects': [2, 0, 1], 'found': [1, 0, 1]}},
  }
  assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize('shape', [(40, 30), (9, 12, 11)])
def test_counts_agree_with_scikit_image(shape):
  rng = np.random.default_rng(1)
  label = rng.choice(np.array([0, 1, 2, IGNORED], np.uint8), shape, p=(0.4, 0.3, 0.2, 0.1))
  prediction = np.where(rng.random(shape) < 0.5, label % 3, rng.integers(0, 3, shape))
  counts = count(prediction, label, num_classes=3)
  for k in (1, 2):
    expected = np.zeros((object_sizes.OCTAVES, 2), int)
    regions = skimage.measure.label(label == k, connectivity=1)
    for region in skimage.measure.regionprops(regions, (prediction == k).astype(float)):
      expected[int(np.log2(region.area))] += (1, region.intensity_mean > 0.5)
    np.testing.assert_array_equal(counts[k], expected)


def test_overlapping_classes_have_objects_each():
  label = np.array([[1, 3, 2, IGNORED]], np.uint8)  # bits 0 and 1: two objects of 2 pixels
  counts = count(np.array([[1, 1, 0, 3]], np.uint8), label, multilabel=True)
  assert counts[0, 1].tolist() == [1, 1]
  assert counts[1, 1].tolist() == [1, 0]
  assert counts.sum() == 3


@pytest.mark.parametrize('value', [0, IGNORED])
def test_without_objects_there_is_nothing_to_count(value):
  label = np.full((4, 4), value, np.uint8)
  counts = count(np.ones((4, 4), np.uint8), label)
  record = object_sizes.found_by_size(counts, ('a', 'b'), ndim=2, voxel=None)
  assert record == {'ndim': 2, 'voxel_size': None, 'octaves': [], 'per_class': {}}


def test_an_unknown_axis_leaves_the_voxel_size_unknown():
  counts = count(np.ones((1, 2, 2), np.uint8), np.ones((1, 2, 2), np.uint8))
  unknown = object_sizes.found_by_size(counts, ('a', 'b'), ndim=3, voxel=(None, 4, 4))
  assert unknown['voxel_size'] is None
  flat = object_sizes.found_by_size(counts, ('a', 'b'), ndim=2, voxel=(None, 4, 4))
  assert flat['voxel_size'] == [4, 4]


@pytest.mark.parametrize('depths', [(1,) * 12, (5, 7), (3, 1, 8)])
@pytest.mark.parametrize('multilabel', [False, True])
def test_a_volume_in_slabs_has_the_objects_of_the_whole(depths, multilabel):
  rng = np.random.default_rng(0)
  label, prediction = rng.integers(0, 3, (2, 12, 9, 10)).astype(np.uint8)  # objects wind through z
  label[4, :3] = IGNORED
  options = {'multilabel': multilabel}
  counter = object_sizes.ObjectCounter(3 - multilabel, **options)
  ends = np.cumsum(depths)
  for start, stop in zip(ends - depths, ends, strict=True):
    counter.add(prediction[start:stop], label[start:stop])
  whole = count(prediction, label, num_classes=3 - multilabel, **options)
  np.testing.assert_array_equal(counter.counts(), whole)
  assert whole[1, 6:].any()  # an object of at least 64 voxels: it reaches over several slabs
