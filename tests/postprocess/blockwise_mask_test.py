"""Masks and components in blocks against scipy and scikit-image on the whole volume."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from postprocess_support import (
  blocks,
  by_first_voxel,
  instances_of,
  mask_of,
  structure,
  volumes,
)
from scipy import ndimage
from skimage import filters, measure, morphology

SOME = settings(max_examples=30, deadline=None)
connectivities = st.integers(1, 3)
dimensions = st.sampled_from([2, 3])


def fill_holes(mask, dimensions):
  """scipy's; sections one by one where they are unrelated, or only one."""
  if dimensions == 2 or len(mask) == 1:
    return np.stack([ndimage.binary_fill_holes(section) for section in mask])
  return ndimage.binary_fill_holes(mask)


@SOME
@given(volumes, blocks, connectivities, dimensions)
def test_components_are_those_of_the_whole_volume(array, block, connectivity, dimensions):
  found = instances_of(
    array, block, dimensions=dimensions, threshold=0.5, connectivity=connectivity
  )
  expected, _ = ndimage.label(array > 127.5, structure(connectivity, dimensions))
  np.testing.assert_array_equal(found, by_first_voxel(expected))


@SOME
@given(volumes, blocks, connectivities)
def test_hysteresis_is_that_of_scikit_image(array, block, connectivity):
  found = mask_of(array, block, threshold=0.4, high=0.9, connectivity=connectivity)
  # The function of scikit-image knows faces only; its definition with other neighbours is this.
  labels, _ = ndimage.label(array > 102, structure(connectivity, 3))
  expected = (labels > 0) & np.isin(labels, labels[array > 229.5])
  np.testing.assert_array_equal(found, expected)
  if connectivity == 1:
    np.testing.assert_array_equal(found, filters.apply_hysteresis_threshold(array, 102, 229.5))


@SOME
@given(volumes, blocks, dimensions)
def test_holes_are_those_of_scipy(array, block, dimensions):
  found = mask_of(array, block, dimensions=dimensions, threshold=0.2, holes='all')
  np.testing.assert_array_equal(found, fill_holes(array > 51, dimensions))


@SOME
@given(volumes, blocks, st.integers(1, 4), dimensions)
def test_holes_up_to_a_size_are_filled(array, block, most, dimensions):
  found = mask_of(array, block, dimensions=dimensions, threshold=0.2, holes=most)
  mask = array > 51
  holes, _ = ndimage.label(fill_holes(mask, dimensions) & ~mask, structure(1, dimensions))
  small = (np.bincount(holes.ravel()) <= most)[holes] & (holes > 0)
  np.testing.assert_array_equal(found, mask | small)


@SOME
@given(volumes, blocks, st.integers(1, 9), connectivities)
def test_small_objects_vanish_as_in_scikit_image(array, block, smallest, connectivity):
  found = mask_of(array, block, label=120, min_voxels=smallest, connectivity=connectivity)
  # max_size is the largest that goes.
  expected = morphology.remove_small_objects(
    array == 120, max_size=smallest - 1, connectivity=connectivity
  )
  np.testing.assert_array_equal(found, expected)


@SOME
@given(volumes, blocks, connectivities, dimensions)
def test_all_steps_come_in_their_order(array, block, connectivity, dimensions):
  found = instances_of(
    array,
    block,
    dimensions=dimensions,
    threshold=0.4,
    high=0.6,
    holes='all',
    min_voxels=5,
    connectivity=connectivity,
  )
  joined = structure(connectivity, dimensions)
  low, _ = ndimage.label(array > 102, joined)
  mask = fill_holes((low > 0) & np.isin(low, low[array > 153]), dimensions)
  labels, _ = ndimage.label(mask, joined)
  kept = (np.bincount(labels.ravel()) >= 5)[labels] & mask
  labels, _ = ndimage.label(kept, joined)
  np.testing.assert_array_equal(found, by_first_voxel(labels))


def snake(shape):
  """One object: along x, a step in y, back along x, and so on, then up in z by a column."""
  array = np.zeros(shape, np.uint8)
  array[::4, ::2] = 1
  array[::4, 1::4, -1] = array[::4, 3::4, 0] = 1
  last = shape[1] - 1 - (shape[1] - 1) % 2
  for z in range(0, shape[0] - 4, 4):
    array[z : z + 4, 0 if z % 8 else last, 0] = 1
  return array


@pytest.mark.parametrize('block', [(2, 3, 4), (5, 5, 5), (1, 13, 3), (9, 13, 17)])
def test_an_object_that_winds_through_all_blocks_is_one(block):
  array = snake((9, 13, 17))
  assert ndimage.label(array)[1] == 1  # otherwise it is no snake
  np.testing.assert_array_equal(instances_of(array, block), array)
  # All of it counts together, to the last voxel.
  size = int(array.sum())
  assert mask_of(array, block, min_voxels=size).any()
  assert not mask_of(array, block, min_voxels=size + 1).any()
  # One voxel of high probability at its far end is enough.
  values = array * np.uint8(200)
  values[tuple(np.argwhere(array)[-1])] = 255
  np.testing.assert_array_equal(mask_of(values, block, threshold=0.5, high=0.9), array == 1)


def test_a_hole_that_winds_out_of_the_volume_is_none():
  array = 1 - np.pad(snake((9, 13, 17)), 1)
  np.testing.assert_array_equal(mask_of(array, (3, 4, 5), holes='all'), np.ones(array.shape))
  array[0, 1, 1] = 0  # opens it at its beginning
  np.testing.assert_array_equal(mask_of(array, (3, 4, 5), holes='all'), array)


@pytest.mark.parametrize(('connectivity', 'count'), [(1, 2), (2, 2), (3, 1)])
def test_blocks_that_share_but_a_corner(connectivity, count):
  array = np.zeros((4, 4, 4), np.uint8)
  array[1, 2, 1] = array[2, 1, 2] = 1  # down in y while z and x go up
  found = instances_of(array, (2, 2, 2), connectivity=connectivity)
  assert found.max() == count


@pytest.mark.parametrize('value', [0, 1])
def test_empty_and_full_volumes(value):
  array = np.full((3, 5, 4), value, np.uint8)
  np.testing.assert_array_equal(instances_of(array, (2, 2, 3), min_voxels=2, holes='all'), array)


def test_volume_in_nanometres_is_rounded_up_to_voxels():
  array = np.zeros((3, 4, 9), np.uint8)
  array[0, 0, :2] = array[2, 2, :3] = 1  # 2 and 3 voxels of 30 x 5 x 4 = 600 nm³
  size = (30.0, 5.0, 4.0)
  for volume, count in [(1200, 2), (1201, 1), (1800, 1), (1801, 0)]:
    assert instances_of(array, (2, 2, 4), voxel_size=size, min_volume=volume).max() == count
  # In sections the thickness does not count: 40 and 60 nm².
  options = {'voxel_size': size, 'dimensions': 2}
  assert instances_of(array, (2, 2, 4), min_volume=41, **options).max() == 1


def test_ids_of_scikit_image_are_the_same():
  rng = np.random.default_rng(0)
  array = (rng.random((11, 12, 13)) < 0.4).astype(np.uint8)
  found = instances_of(array, (4, 5, 6), connectivity=2)
  np.testing.assert_array_equal(found, measure.label(array, connectivity=2))
