"""Boundary maps and affinities against loops over voxels and scipy's filters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from emseg_jax import config as config_lib
from emseg_jax import sharding
from emseg_jax.losses import label_maps

RNG = np.random.default_rng(0)
LABELS = np.kron(RNG.integers(0, 3, (2, 4, 5)), np.ones((1, 5, 4), int)).astype(np.int32)
WEIGHTS = (RNG.random(LABELS.shape) < 0.9).astype(np.float32)

boundary = jax.jit(label_maps.boundary_map, static_argnames='width')
affinities = jax.jit(label_maps.affinities, static_argnames='offsets')


def numpy_edges(labels, valid):
  """MMSegmentation's rule for one image: which voxel of a pair of neighbours is the edge."""
  edge = np.zeros(labels.shape, bool)
  height, width = labels.shape
  for y, x in np.ndindex(labels.shape):
    # above; right; below and right; below and left
    for v, u in ((y - 1, x), (y, x + 1), (y + 1, x + 1), (y + 1, x - 1)):
      if 0 <= v < height and 0 <= u < width and valid[y, x] and valid[v, u]:
        edge[y, x] |= labels[y, x] != labels[v, u]
  return edge


def numpy_boundary(labels, weights, width):
  # Like OpenCV's dilation with a square, scipy's window of an even size has its middle at size / 2.
  return np.stack(
    [
      scipy.ndimage.maximum_filter(
        numpy_edges(image, w > 0).astype(float), size=width, mode='constant'
      )
      for image, w in zip(labels, weights, strict=True)
    ]
  )


def numpy_affinities(labels, weights, offsets):
  target = np.zeros((*labels.shape, len(offsets)))
  counted = np.zeros_like(target)
  for place in np.ndindex(labels.shape):
    for a, offset in enumerate(offsets):
      other = (place[0], *(p + o for p, o in zip(place[1:], offset, strict=True)))
      if all(0 <= p < n for p, n in zip(other, labels.shape, strict=True)):
        target[(*place, a)] = labels[place] == labels[other] and labels[place] > 0
        if weights[other] > 0:
          counted[(*place, a)] = weights[place]
  return target, counted


@pytest.mark.parametrize('width', [1, 2, 3, 4])
def test_the_boundary_is_the_widened_edge(width):
  found = boundary(LABELS, WEIGHTS, width=width)
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, numpy_boundary(LABELS, WEIGHTS, width))


def test_a_straight_boundary_of_width_four_by_hand():
  labels = np.zeros((1, 3, 10), np.int32)
  labels[..., 5:] = 1
  # Columns 4 and 5 are edges, except 5 in the last row, which has none below. The square reaches
  # from one before an edge to two after it.
  expected = [[0, 0, 0, 1, 1, 1, 1, 1, 0, 0]] * 3
  np.testing.assert_array_equal(boundary(labels, np.ones(labels.shape), width=4)[0], expected)


def test_there_is_no_boundary_to_ignored_voxels_and_none_in_one_class():
  ones = np.ones((1, 6, 6))
  labels = np.ones((1, 6, 6), np.int32)
  assert not np.any(boundary(labels, ones))
  weights = ones.copy()
  weights[0, 2:4] = 0
  labels[0, 2:4] = 255
  assert not np.any(boundary(labels, weights))
  assert np.any(boundary(labels, ones))
  assert not np.any(boundary(labels, 0 * ones))


def test_the_boundary_of_a_volume_is_that_of_its_sections():
  labels, weights = LABELS.reshape(1, 2, 20, 20), WEIGHTS.reshape(1, 2, 20, 20)
  found = boundary(labels, weights)
  np.testing.assert_array_equal(found[0], numpy_boundary(LABELS, WEIGHTS, 4))


@pytest.mark.parametrize('width', [0, -1, 2.5, '4'])
def test_an_impossible_width_is_refused(width):
  with pytest.raises(ValueError, match='width is'):
    label_maps.boundary_map(LABELS, WEIGHTS, width=width)


@settings(max_examples=8, deadline=None)
@given(
  st.lists(st.tuples(st.integers(-9, 9), st.integers(-3, 3)).filter(any), min_size=1, max_size=3)
)
def test_affinities_compare_each_voxel_with_its_neighbour(offsets):
  labels, weights = LABELS[:, 2:9, 2:9], WEIGHTS[:, 2:9, 2:9] * 0.5
  target, counted = label_maps.affinities(labels, weights, offsets=offsets)
  expected_target, expected_counted = numpy_affinities(labels, weights, offsets)
  np.testing.assert_array_equal(target, expected_target)
  np.testing.assert_array_equal(counted, expected_counted)
  assert target.dtype == counted.dtype == jnp.float32


def test_affinities_of_a_volume():
  labels, weights = LABELS.reshape(1, 2, 20, 20), WEIGHTS.reshape(1, 2, 20, 20)
  offsets = ((-1, 0, 0), (0, 0, 3), (1, -2, 1))
  target, counted = affinities(labels, weights, offsets=offsets)
  expected = numpy_affinities(labels, weights, offsets)
  np.testing.assert_array_equal(target, expected[0])
  np.testing.assert_array_equal(counted, expected[1])
  # Above the first section there is nothing.
  assert not np.any(counted[:, 0, ..., 0])
  assert np.any(counted[:, 1, ..., 0])


@pytest.mark.parametrize(
  ('offsets', 'message'),
  [
    ([], 'one or more'),
    ([(0, 1), (0, 0)], 'other than 0'),
    ([(0, 0, 1)], 'must have 2 numbers'),
    ([(1,)], 'must have 2 numbers'),
  ],
)
def test_impossible_offsets_are_refused(offsets, message):
  with pytest.raises(ValueError, match=message):
    label_maps.affinities(LABELS, WEIGHTS, offsets=offsets)


def test_targets_of_a_batch_on_many_devices_are_those_of_one():
  mesh = sharding.make_mesh(config_lib.Mesh(data=2, space=4))
  make = functools.partial(label_maps.affinities, offsets=((-7, 1), (6, 0)))  # further than a part

  def targets(batch):
    batch = sharding.constrain_patches(batch, mesh)
    arguments = batch['label'], batch['weight']
    return label_maps.boundary_map(*arguments), *make(*arguments)

  batch = sharding.put_batch({'label': LABELS, 'weight': WEIGHTS}, mesh)
  found = jax.jit(targets)(batch)
  expected = (label_maps.boundary_map(LABELS, WEIGHTS), *make(LABELS, WEIGHTS))
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_array_equal(a, b)
