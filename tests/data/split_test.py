"""Boxes of volumes too large to keep: the same voxels as of cached sections, and no more reads."""

import itertools

import numpy as np
import pytest
from data_support import BoxVolume, volume_split
from hypothesis import given, settings
from hypothesis import strategies as st

from emseg_jax import config
from emseg_jax.data import blocks, labels, normalise, split, volumes

RAW = normalise.Normalisation('dataset', 1, 0.0, 1.0, 'float32')
SHAPE = (6, 9, 8)
IMAGE = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
IDS = (np.random.default_rng(0).integers(0, 3, SHAPE)).astype(np.uint16)
MASK = (np.random.default_rng(1).integers(0, 4, SHAPE) > 0).astype(np.uint8)
GROUP = tuple(range(len(IMAGE)))


def make(kind, *, cache_bytes, sections=range(SHAPE[0]), instances=True):
  task = config.Task(classes=('outside', 'inside', 'edge'))
  read = config.Labels(kind='instances' if instances else 'values', boundary_width=2)
  image, label, mask = (kind(array) for array in (IMAGE, IDS, MASK))
  found = [split.Section(f's{i}', image, i, label, i, 1.0, mask, i) for i in sections]
  rules = labels.Rules(task, config.Data(labels=read))
  return split.Split(found, rules=rules, cache_bytes=cache_bytes)


def large(**options):
  return make(BoxVolume, cache_bytes=0, **options)


def cached(**options):
  return make(volumes.ArrayVolume, cache_bytes=10**6, **options)


box = st.tuples(*(st.integers(0, n - 1) for n in SHAPE)), st.tuples(*[st.integers(1, 10)] * 3)


@given(*box, st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_box_of_a_large_volume_is_that_of_the_cached_sections(origin, size, instances):
  ours, theirs = large(instances=instances), cached(instances=instances)
  for name in ('image_block', 'label_block'):
    block = blocks.read_block(getattr(ours, name), GROUP, origin, size)
    expected = blocks.read_block(getattr(theirs, name), GROUP, origin, size)
    np.testing.assert_array_equal(block, expected)
    assert block.shape == size
    assert block.dtype == expected.dtype


@pytest.mark.parametrize('axis', [1, 2])
def test_boxes_along_other_axes_are_the_same(axis):
  where = {'origin': (1, 2, 1), 'size': (3, 3, 4), 'axis': axis}
  for name in ('image_block', 'label_block'):
    ours, theirs = (getattr(s, name) for s in (large(), cached()))
    block = blocks.read_block(ours, GROUP, **where)
    np.testing.assert_array_equal(block, blocks.read_block(theirs, GROUP, **where))


def test_a_patch_is_one_read_of_its_box():
  ours = large(instances=False)
  ours.image_block(GROUP, (1, 2, 3), (4, 5, 2))
  first = ours.sections[0]
  assert first.image_volume.boxes == [((1, 2, 3), (5, 7, 5))]
  ours.label_block(GROUP, (1, 2, 3), (4, 5, 2))
  assert first.label_volume.boxes == first.mask_volume.boxes == [((1, 2, 3), (5, 7, 5))]


def test_the_label_of_instances_is_read_with_what_its_boundary_depends_on():
  ours = large()
  ours.label_block(GROUP, (1, 2, 3), (2, 3, 2))
  assert ours.sections[0].label_volume.boxes == [((1, 0, 1), (3, 7, 7))]


def test_sections_with_gaps_are_read_run_by_run():
  ours, theirs = (s(sections=(0, 1, 3, 4, 5)) for s in (large, cached))
  block = ours.image_block((0, 1, 2, 3, 4), (1, 0, 0), (3, 9, 8))
  np.testing.assert_array_equal(block, theirs.image_block((0, 1, 2, 3, 4), (1, 0, 0), (3, 9, 8)))
  assert [b[0][0] for b in ours.sections[0].image_volume.boxes] == [1, 3]


def test_neighbours_of_a_large_volume_are_mirrored_at_its_ends():
  places = itertools.product((0, 3, 5), (1, 2))
  for z, neighbours in places:
    where = {'group': (z,), 'origin': (0, 1, 2), 'size': (1, 4, 4), 'neighbours': neighbours}
    block = blocks.read_image(large(), RAW, **where)
    np.testing.assert_array_equal(block, blocks.read_image(cached(), RAW, **where))


def test_a_volume_that_fits_in_the_cache_is_read_once_by_sections():
  image = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
  small = volume_split((image, image % 2))
  for _ in range(3):
    small.image_block((0, 1), (0, 0, 0), (2, 2, 2))
  assert small.sections[0].image_volume.reads == [1, 1]
