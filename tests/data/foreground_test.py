"""Where the foreground of large volumes is, and that patches are drawn there."""

import itertools

import numpy as np
import pytest
from data_support import BoxVolume, rules
from hypothesis import given, settings
from hypothesis import strategies as st

from emseg_jax.config import Sampling
from emseg_jax.data import foreground, sampling, split
from emseg_jax.errors import DataError

SHAPE = (9, 40, 30)


def large(label):
  image = BoxVolume(np.zeros(label.shape, np.float32))
  label = BoxVolume(label)
  sections = [split.Section(f's{i}', image, i, label, i) for i in range(len(label))]
  return split.Split(sections, rules=rules(3, ignore_value=9), cache_bytes=0)


def group(data):
  return tuple(range(len(data)))


@settings(max_examples=30, deadline=None)
@given(
  st.tuples(*(st.integers(1, n) for n in (4, 9, 7))),
  st.lists(st.tuples(*(st.integers(0, n - 1) for n in SHAPE)), max_size=6),
  st.integers(40, 4000),
)
def test_the_cells_are_those_that_hold_a_foreground_voxel(cell, voxels, slab):
  label = np.zeros(SHAPE, np.uint8)
  for voxel in voxels:
    label[voxel] = 2
  label[0, 0, 0] = 9  # ignored, no foreground
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(foreground, 'SLAB_VOXELS', slab)  # several boxes
    data = large(label)
    found = foreground.find_cells(data, group(data), cell, cache=None)
  voxels = [v for v in voxels if v != (0, 0, 0)]
  expected = sorted({tuple(i // c for i, c in zip(v, cell, strict=True)) for v in voxels})
  assert found.tolist() == [list(c) for c in expected]


def test_what_was_found_is_kept_for_the_same_labels_only(tmp_path):
  label = np.zeros(SHAPE, np.uint8)
  label[4, 5, 6] = 1
  first, again = large(label), large(label)
  cells = foreground.find_cells(first, group(first), (2, 4, 4), cache=tmp_path)
  (file,) = tmp_path.iterdir()
  reads = len(again.sections[0].label_volume.boxes)
  same = foreground.find_cells(again, group(again), (2, 4, 4), cache=tmp_path)
  np.testing.assert_array_equal(same, cells)
  # Only what the fingerprint needs was read: one section at a time.
  boxes = again.sections[0].label_volume.boxes[reads:]
  assert all(stop[0] - start[0] == 1 for start, stop in boxes)
  other = label.copy()
  other[1, 2, 3] = 1
  other = large(other)
  assert len(foreground.find_cells(other, group(other), (2, 4, 4), cache=tmp_path)) == 2
  file.write_bytes(b'broken')
  with pytest.raises(DataError, match='is damaged'):
    foreground.find_cells(first, group(first), (2, 4, 4), cache=tmp_path)


@pytest.mark.parametrize(('patch', 'planes'), [((8, 8), 0.0), ((4, 8, 8), 0.0), ((4, 8, 8), 1.0)])
def test_patches_hold_foreground_however_rare_it_is(patch, planes):
  label = np.zeros(SHAPE, np.uint8)
  label[5, 33, 21] = 1  # one voxel of ten thousand
  data = large(label)
  options = Sampling(kind='foreground', tries=200, min_foreground=1e-9, planes_share=planes)
  sampler = sampling.Sampler(data, patch=patch, region=patch, options=options)
  entries = [e for e in range(len(sampler)) if len(patch) == 3 or e == 5]
  places = set()
  for entry, seed in itertools.product(entries[:3], range(12)):
    region = sampler.draw(entry, np.random.default_rng(seed))
    places.add((region.axis, region.origin))
    exchanged = np.swapaxes(label[list(region.group)], 0, region.axis)
    box = tuple(slice(o, o + s) for o, s in zip(region.origin, region.size, strict=True))
    assert exchanged[box].sum() == 1
  assert len(places) > 5


def test_a_section_without_foreground_is_drawn_from_anywhere():
  data = large(np.zeros(SHAPE, np.uint8))
  sampler = sampling.Sampler(
    data, patch=(8, 8), region=(8, 8), options=Sampling(kind='foreground', tries=3)
  )
  origins = {sampler.draw(0, np.random.default_rng(seed)).origin for seed in range(20)}
  assert len(origins) > 10
