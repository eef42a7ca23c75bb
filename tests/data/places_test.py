"""Fixed places of patches: sliding grids and tiles."""

import itertools

import numpy as np
import pytest
from data_support import volume_split
from hypothesis import given, settings
from hypothesis import strategies as st

from emseg_jax.config import Sampling
from emseg_jax.data import blocks, places


def starts(length, patch, **options):
  return places.starts([length], [patch], Sampling(**options))[0]


@pytest.mark.parametrize(
  ('length', 'patch', 'stride', 'expected'),
  [
    (2048, 512, 256, [0, 256, 512, 768, 1024, 1280, 1536]),  # SegET: 7 x 7 patches of a slice
    (1000, 512, 256, [0, 256, 488]),  # the last one flush with the border
    (512, 512, 256, [0]),
    (100, 512, 256, [0]),
    (10, 4, 1, [0, 1, 2, 3, 4, 5, 6]),
  ],
)
def test_a_grid_goes_on_by_its_stride(length, patch, stride, expected):
  found = places.starts([1, length], [1, patch], Sampling(kind='grid', stride=(stride, stride)))
  assert found == [[0], expected]


def test_a_grid_of_no_stride_overlaps_by_half():
  assert starts(20, 8, kind='grid') == [0, 4, 8, 12]
  assert starts(4, 1, kind='grid') == [0, 1, 2, 3]


@pytest.mark.parametrize(
  ('length', 'patch', 'expected'),
  [
    (110, 40, [0, 35, 70]),  # three of 40 overlap by 10 in all, 5 each
    (768, 136, [0, 126, 253, 379, 506, 632]),  # 632 / 5 = 126.4
    (80, 40, [0, 40]),
    (81, 40, [0, 20, 41]),  # 20.5 rounds to even
    (40, 40, [0]),
    (7, 40, [0]),
  ],
)
def test_tiles_are_evenly_spread(length, patch, expected):
  assert starts(length, patch, kind='tiles') == expected


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(['grid', 'tiles']))
def test_patches_leave_no_gap_and_none_sticks_out(length, patch, kind):
  found = starts(length, patch, kind=kind)
  covered = np.zeros(max(length, patch), int)
  for start in found:
    covered[start : start + patch] += 1
  assert covered[:length].all()
  assert found == sorted(set(found))
  assert found[0] == 0
  assert found[-1] == max(0, length - patch)
  if kind == 'tiles':
    assert len(found) == int(np.ceil(length / patch))  # fewer cannot cover it


def listed(split, ndim, patch, **options):
  return places.list_places(split, blocks.groups(split, ndim), patch, Sampling(**options))


def test_places_of_sections_and_of_volumes():
  array = np.zeros((5, 6, 9), np.uint8)
  split = volume_split((array, array), (array[:3], array[:3]))
  sections = listed(split, 2, (1, 6, 6), kind='tiles')
  assert sections == [((i,), (0, 0, x)) for i in range(8) for x in (0, 3)]
  volumes = listed(split, 3, (3, 6, 9), kind='tiles')
  assert volumes == [((0, 1, 2, 3, 4), (z, 0, 0)) for z in (0, 2)] + [((5, 6, 7), (0, 0, 0))]
  assert split.sections[0].label_volume.reads == [0] * 5  # nothing asked for labels


@pytest.mark.parametrize(('ndim', 'patch'), [(2, (1, 4, 4)), (3, (2, 4, 4))])
def test_places_with_foreground_occur_several_times(ndim, patch):
  label = (np.random.default_rng(0).random((5, 9, 11)) < 0.02).astype(np.uint8)
  label[label.shape[0] - 1, 0, 0] = 9  # ignored: no foreground
  split = volume_split((label, label), ignore_value=9, cache_bytes=0)
  options = {'kind': 'grid', 'stride': (1, 2, 3)[-ndim:]}
  once = listed(split, ndim, patch, **options)
  copied = listed(split, ndim, patch, **options, positive_copies=3)
  expected = []
  for group, (z, y, x) in once:
    first = group[0] + z
    box = label[first : first + patch[0], y : y + 4, x : x + 4]
    expected += [(group, (z, y, x))] * (3 if (box == 1).any() else 1)
  assert copied == expected
  assert len(once) < len(copied) < 3 * len(once)
  assert split.sections[0].label_volume.reads == [1] * 5  # one pass, without a cache


def test_copies_count_as_in_segets_golgi():
  # A quarter of the patches with foreground, taken twice, is 2 / 5 of all: the paper's 40 %.
  label = np.zeros((1, 8, 8), np.uint8)
  label[0, 0, 0] = 1
  split = volume_split((label, label))
  found = listed(split, 2, (1, 4, 4), kind='grid', stride=(4, 4), positive_copies=2)
  counts = [len(list(run)) for _, run in itertools.groupby(found)]
  assert counts == [2, 1, 1, 1]
