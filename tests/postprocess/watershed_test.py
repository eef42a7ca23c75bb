"""The watershed in blocks against its definition, voxel by voxel, and against scikit-image."""

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from postprocess_support import (
  blocks,
  by_first_voxel,
  instances_of,
  structure,
  volumes,
)
from scipy import ndimage
from skimage import segmentation

SOME = settings(max_examples=25, deadline=None)


def reference(height, markers, joined):
  """The definition: least costs by Dijkstra, then the label of the best neighbour of each voxel.

  height: 0 outside the mask. markers: labels, 0 elsewhere.
  """

  def neighbours(v):
    for step in np.argwhere(joined) - 1:
      u = tuple(int(i) for i in np.add(v, step))
      if u != v and all(0 <= i < n for i, n in zip(u, height.shape, strict=True)):
        yield u

  def extended(cost, v):
    level, steps = cost
    return (int(height[v]), 1) if height[v] > level else (level, steps + 1)

  cost = {tuple(map(int, v)): (0, 0) for v in np.argwhere(markers)}
  heap = [(c, v) for v, c in cost.items()]
  heapq.heapify(heap)
  while heap:
    c, u = heapq.heappop(heap)
    if c > cost[u]:
      continue
    for v in neighbours(u):
      if height[v] and not markers[v] and extended(c, v) < cost.get(v, (np.inf, 0)):
        cost[v] = extended(c, v)
        heapq.heappush(heap, (cost[v], v))
  labels = markers.copy()
  for v in sorted(cost, key=cost.get):
    if not markers[v]:
      best = [
        (cost[u], labels[u]) for u in neighbours(v) if u in cost and extended(cost[u], v) == cost[v]
      ]
      labels[v] = min(best)[1]
  return labels


def label_markers(seeds, joined, smallest=1):
  labels, _ = ndimage.label(seeds, joined)
  kept = (np.bincount(labels.ravel()) >= smallest)[labels] & (labels > 0)
  return by_first_voxel(np.where(kept, labels, 0))


@SOME
@given(volumes, blocks, st.integers(1, 3), st.sampled_from([2, 3]), st.integers(1, 2))
def test_flooding_of_probabilities_is_what_it_says(array, block, connectivity, dimensions, size):
  found = instances_of(
    array,
    block,
    dimensions=dimensions,
    threshold=0.2,
    instances='watershed',
    marker_threshold=0.8,
    marker_voxels=size,
    connectivity=connectivity,
  )
  joined = structure(connectivity, dimensions)
  markers = label_markers(array > 204, joined, size)
  # What is a marker but too small comes first, then the others by probability.
  height = np.where(array > 204, 1, 300 - array.astype(int)) * (array > 51)
  np.testing.assert_array_equal(found, reference(height, markers, joined))


@SOME
@given(volumes, blocks, st.sampled_from([2, 3]), st.sampled_from([1.0, 2.0, 2.3]))
def test_flooding_of_distances_is_what_it_says(array, block, dimensions, distance):
  size = (2.0, 1.0, 1.0)
  found = instances_of(
    array,
    block,
    dimensions=dimensions,
    voxel_size=size,
    instances='watershed',
    marker_distance=distance,
  )
  mask = array > 0
  far = np.full(mask.shape, np.inf)
  for v in np.argwhere(mask):  # by hand: the nearest voxel of the background
    others = np.argwhere(~mask)
    others = others[others[:, 0] == v[0]] if dimensions == 2 else others
    if len(others):
      far[tuple(v)] = np.sqrt((((others - v) * size) ** 2).sum(1).min())
  joined = structure(1, dimensions)
  markers = label_markers(mask & (far > distance + 1e-6), joined)
  # The definition has 256 steps up to the distance asked for.
  level = np.floor(255 * np.minimum(far / distance, 1) + 1e-6).astype(int)
  height = (300 - level) * mask
  np.testing.assert_array_equal(found, reference(height, markers, joined))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), blocks, st.sampled_from([(1, 9, 9), (4, 5, 6)]))
def test_without_ties_it_is_the_watershed_of_scikit_image(seed, block, shape):
  rng = np.random.default_rng(seed)
  values = rng.permutation(np.arange(60, 60 + np.prod(shape))).reshape(shape).astype(np.uint8)
  values[rng.random(shape) < 0.2] = 0
  # Single voxels, apart from each other: scikit-image floods equal ones in another order.
  values[0, ::4, ::4] = 255
  found = instances_of(values, block, threshold=0.1, instances='watershed', marker_threshold=0.9)
  markers = label_markers(values > 229, structure(1, 3))
  expected = segmentation.watershed(-values.astype(int), markers, mask=values > 25)
  np.testing.assert_array_equal(found, expected)


def test_two_discs_that_touch_are_two():
  y, x = np.mgrid[:40, :64]
  discs = [(y - 20) ** 2 + (x - centre) ** 2 <= 14**2 for centre in (19, 43)]
  array = (discs[0] | discs[1]).astype(np.uint8)[None]
  assert ndimage.label(array)[1] == 1
  found = instances_of(array, (1, 16, 16), instances='watershed', marker_distance=10)
  assert found.max() == 2
  # Cut between the centres: all of one disc but what it shares with the other.
  np.testing.assert_array_equal(found[0, :, :31] > 0, discs[0][:, :31])
  assert set(np.unique(found[0, :, :30])) == {0, 1}
  assert set(np.unique(found[0, :, 33:])) == {0, 2}


def test_an_object_without_a_marker_vanishes():
  array = np.zeros((1, 5, 12), np.uint8)
  array[0, 1:4, 1:4], array[0, 2, 6:11] = 1, 1
  found = instances_of(array, (1, 5, 4), instances='watershed', marker_distance=1.5)
  np.testing.assert_array_equal(found[0, :, :5], array[0, :, :5])
  assert not found[0, :, 5:].any()


@pytest.mark.parametrize('block', [(2, 3, 4), (3, 5, 3)])
def test_water_follows_a_winding_valley_through_all_blocks(block):
  values = np.zeros((6, 9, 10), np.uint8)
  values[::2, ::2] = 150
  values[::2, 1::4, -1] = values[::2, 3::4, 0] = 150
  values[1::4, -1, -1] = values[1::4, -1, 0] = values[3::4, 0, 0] = 150
  assert ndimage.label(values)[1] == 1
  values[0, 0, 0], values[4, -1, -1] = 250, 250
  found = instances_of(values, block, threshold=0.4, instances='watershed', marker_threshold=0.9)
  markers = label_markers(values > 229, structure(1, 3))
  expected = reference(np.where(values, 300 - values.astype(int), 0), markers, structure(1, 3))
  np.testing.assert_array_equal(found, expected)
  assert set(np.unique(found[values > 0])) == {1, 2}
