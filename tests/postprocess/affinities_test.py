"""Instances from affinities: a slow graph says what is right, and blocks must not matter.

Affinities are uint8, where 255 stands for 1. By `offset` (z, y, x) an array says of each voxel
whether it and the one at the offset belong to one object.
"""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from postprocess_support import blocks, shapes

from emseg_jax import errors
from emseg_jax.config.postprocess import Postprocess
from emseg_jax.postprocess import affinities
from emseg_jax.postprocess.grid import Grid, window
from emseg_jax.postprocess.links import Links
from emseg_jax.postprocess.work import Work

FORWARD = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
# Some from both sides, some from one, and a long one that does not count.
MIXED = ((-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, -1), (0, 0, 1), (0, 0, 3))


def volume_of(offsets, *, values=(0, 100, 160, 240)):
  """Affinities of a small volume, one for each offset."""
  return shapes.flatmap(
    lambda s: st.fixed_dictionaries(
      {o: hnp.arrays(np.uint8, s, elements=st.sampled_from(values)) for o in offsets}
    )
  )


def in_blocks(maps, block, **options):
  first = next(iter(maps.values()))
  reads = {o: lambda a, b, m=m: m[window(a, b)] for o, m in maps.items()}
  with tempfile.TemporaryDirectory() as folder:
    read, count = affinities.instances(
      Postprocess(**options),
      Work(Grid(first.shape, block), Path(folder)),
      Links(reads, first.shape, first.dtype),
      voxel_size=None,
      dimensions=len(next(iter(maps))),
    )
    return read((0, 0, 0), first.shape), count


def by_hand(maps, threshold):
  """Objects by joining voxel with voxel, one link after the other; 0 without a link."""
  shape = next(iter(maps.values())).shape
  strengths = {}
  for offset, values in maps.items():
    if np.abs(offset).sum() == 1:
      offset = (0,) * (3 - len(offset)) + offset
      for voxel in np.ndindex(shape):
        other = tuple(np.add(voxel, offset).tolist())
        if all(0 <= i < n for i, n in zip(other, shape, strict=True)):
          strengths.setdefault(tuple(sorted((voxel, other))), []).append(int(values[voxel]))
  label = np.zeros(shape, int)
  count = 0
  for (a, b), found in sorted(strengths.items()):
    if np.mean(found) > threshold * 255:
      old = {label[a], label[b]} - {0}
      count += 1
      label[a] = label[b] = count
      for value in old:
        label[label == value] = count
  _, first, number = np.unique(label, return_index=True, return_inverse=True)
  order = np.argsort(np.argsort(first[label.flat[first] > 0]))  # by the first voxel
  table = np.concatenate([[0], order + 1]) if (label == 0).any() else order + 1
  return table[number].reshape(shape)


@given(volume_of(FORWARD), blocks, st.sampled_from([None, 0.7]))
@settings(max_examples=40, deadline=None)
def test_components_of_blocks_are_those_of_the_graph(maps, block, threshold):
  ids, count = in_blocks(maps, block, threshold=threshold)
  np.testing.assert_array_equal(ids, by_hand(maps, threshold or 0.5))
  assert count == ids.max()


@given(volume_of(MIXED), blocks)
@settings(max_examples=40, deadline=None)
def test_a_link_is_the_mean_of_what_both_voxels_say(maps, block):
  ids, _ = in_blocks(maps, block)
  np.testing.assert_array_equal(ids, by_hand(maps, 0.5))


@given(volume_of(((1, 0), (0, -1))), blocks)
@settings(max_examples=20, deadline=None)
def test_offsets_of_two_axes_join_nothing_across_sections(maps, block):
  ids, _ = in_blocks(maps, block)
  np.testing.assert_array_equal(ids, by_hand(maps, 0.5))
  for above, below in itertools.pairwise(ids):
    assert not set(above[above > 0]) & set(below[below > 0])


@given(volume_of(FORWARD), blocks, st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_the_watershed_of_blocks_is_that_of_the_whole(maps, block, least, marker):
  options = {
    'threshold': 0.5,
    'instances': 'watershed',
    'marker_threshold': 0.8,
    'marker_voxels': marker,
    'min_voxels': least,
  }
  ids, count = in_blocks(maps, block, **options)
  whole = affinities.segment(maps, Postprocess(**options))
  np.testing.assert_array_equal(ids, whole)
  assert set(np.unique(ids)) - {0} == set(range(1, count + 1))
  objects, _ = in_blocks(maps, block, threshold=0.5, min_voxels=least)
  assert not ids[objects == 0].any()
  markers = by_hand(maps, 0.8)
  for value in set(np.unique(markers)) - {0}:
    found = set(ids[markers == value])
    large = np.count_nonzero(markers == value) >= marker
    if large:  # a marker stays in one piece
      assert len(found) == 1


def test_a_weak_bridge_between_markers_is_cut():
  # Seven voxels: a strong left half, a strong right half, joined by two links of 0.6 and 0.7.
  links = np.array([250, 250, 153, 179, 250, 250, 0], np.uint8).reshape(1, 1, 7)
  none = np.zeros_like(links)
  maps = {(0, 0, 1): links, (0, 1, 0): none, (1, 0, 0): none}
  joined = affinities.segment(maps, Postprocess())
  assert joined.tolist() == [[[1] * 7]]
  apart = affinities.segment(
    maps, Postprocess(threshold=0.5, instances='watershed', marker_threshold=0.9)
  )
  # The voxel between has no strong link: both halves reach it at the same height and the same
  # step, and then the smaller number wins.
  assert apart.tolist() == [[[1, 1, 1, 1, 2, 2, 2]]]


def test_small_objects_vanish_and_voxels_without_links_are_background():
  row = np.array([255, 0, 255, 255, 0, 0], np.uint8).reshape(1, 1, 6)
  none = np.zeros_like(row)
  maps = {(0, 0, 1): row, (0, 1, 0): none, (1, 0, 0): none}
  assert affinities.segment(maps, Postprocess()).ravel().tolist() == [1, 1, 2, 2, 2, 0]
  kept = affinities.segment(maps, Postprocess(min_voxels=3))
  assert kept.ravel().tolist() == [0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'holes': 5}, 'postprocess.holes: is not for affinities'),
    ({'min_volume': 5.0}, 'the voxel size is unknown; set min_voxels'),
    ({'instances': 'none'}, 'choose components or watershed'),
    ({'instances': 'watershed', 'marker_distance': 3.0}, 'marker_distance: is not for affinities'),
  ],
)
def test_steps_of_masks_are_refused(options, message):
  maps = dict.fromkeys(FORWARD, np.zeros((1, 1, 2), np.uint8))
  with pytest.raises(errors.ConfigError, match=message):
    affinities.segment(maps, Postprocess(**options))
