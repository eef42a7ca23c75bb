"""Nearness to the centreline, and the folder in which it is kept."""

import os

import numpy as np
import pytest
from data_support import volume_split
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import morphology

from emseg_jax.config import Proximity
from emseg_jax.data import targets
from emseg_jax.errors import DataError, OutputError


def equation(distance, alpha=3.0, radius=15.0):
  """Eq. 2 of EM-Net, divided by exp(alpha) - 1, in float64."""
  d = (np.exp(alpha * (1 - distance / radius)) - 1) / (np.exp(alpha) - 1)
  return np.where(distance < radius, d, 0)


def point(shape, *at):
  mask = np.zeros(shape, bool)
  for place in at:
    mask[place] = True
  return mask


def blobs(shape, seed=0, share=0.15):
  noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
  return noise > np.quantile(noise, 1 - share)


# ---- centrelines --------------------------------------------------------------------------------


def test_a_thin_line_is_its_own_centreline_and_empty_stays_empty():
  line = np.zeros((9, 9, 20), bool)
  line[4, 4, 2:18] = True
  np.testing.assert_array_equal(targets.centreline(line), line)
  np.testing.assert_array_equal(targets.centreline(line[4]), line[4])
  assert not targets.centreline(np.zeros((4, 5, 6), bool)).any()
  assert targets.centreline(np.ones((4, 5, 6), bool)).sum() >= 1


def test_a_tube_is_thinned_to_its_axis():
  y, x = np.ogrid[:15, :15]
  tube = np.broadcast_to((y - 7) ** 2 + (x - 7) ** 2 <= 16, (30, 15, 15)).copy()
  line = targets.centreline(tube)
  z, y, x = np.nonzero(line)
  assert set(zip(y, x, strict=True)) == {(7, 7)}
  assert len(z) > 20  # thinning takes a few voxels off the ends


def test_objects_that_thinning_loses_keep_their_innermost_voxel():
  # scikit-image's thinning of volumes loses balls and boxes of even width (its issue 3757).
  mask = np.zeros((20, 20, 40), bool)
  mask[2:8, 2:8, 3:9] = True
  mask[9:18, 9:18, 20:29] = True
  assert not morphology.skeletonize(mask)[:, :, :15].any()
  line = targets.centreline(mask)
  assert line[:, :, :15].sum() == 1
  assert line[4:6, 4:6, 5:7].any()  # one of the eight voxels in the middle
  assert line[13, 13, 24]
  np.testing.assert_array_equal(line[:, :, 15:], morphology.skeletonize(mask)[:, :, 15:])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_every_object_has_a_centreline_inside_it(seed, flat):
  mask = blobs((24, 26) if flat else (12, 16, 18), seed)
  line = targets.centreline(mask)
  assert not (line & ~mask).any()
  objects, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
  assert set(np.unique(objects[line])) == set(range(1, count + 1))


@pytest.mark.parametrize('ndim', [2, 3])
def test_small_holes_are_filled_before_thinning_large_and_open_ones_are_not(ndim):
  solid = np.zeros((17,) * ndim, bool)
  solid[(slice(4, 13),) * ndim] = True
  hollow = solid.copy()
  hollow[(slice(7, 9),) * ndim] = False  # 4 or 8 voxels
  size = 2**ndim
  np.testing.assert_array_equal(
    targets.centreline(hollow, max_hole=size), targets.centreline(solid)
  )
  around = targets.centreline(hollow, max_hole=size - 1)
  np.testing.assert_array_equal(around, targets.centreline(hollow))
  assert around.sum() > 2 * targets.centreline(solid).sum()  # the skeleton surrounds the hole
  # Background at the border is no hole, however small; nor is an empty image.
  for part in (solid[(slice(3, 14),) * ndim], np.zeros((5,) * ndim, bool)):
    found = targets.centreline(part, max_hole=10**6)
    np.testing.assert_array_equal(found, targets.centreline(part))


# ---- proximity ----------------------------------------------------------------------------------


def test_proximity_falls_from_1_to_0_at_the_radius():
  found = targets.proximity(point((1, 41), (0, 20)))
  assert found.dtype == np.float32
  # (e² - 1) / (e³ - 1) at a third of the radius, (e - 1) / (e³ - 1) at two thirds
  np.testing.assert_allclose(
    found[0, [20, 25, 30, 35, 40]], [1, 0.334760, 0.090031, 0, 0], atol=1e-6
  )
  assert found[0, 34] > 0
  np.testing.assert_array_equal(found[0], found[0, ::-1])


@pytest.mark.parametrize('shape', [(40, 50), (20, 30, 26)])
@pytest.mark.parametrize('voxel_size', [None, (30.0, 6.0, 5.0), (2.0, 3.0, 5.0)])
def test_proximity_is_the_equation_of_the_distance_to_the_centreline(shape, voxel_size):
  mask = blobs(shape)
  size = voxel_size and voxel_size[-len(shape) :]
  found = targets.proximity(mask, alpha=2.0, radius=3.5, voxel_size=size)
  spacing = np.array(size or (1,) * len(shape)) / (size or (1,))[-1]
  distance = ndimage.distance_transform_edt(~targets.centreline(mask), sampling=spacing)
  np.testing.assert_allclose(found, equation(distance, 2.0, 3.5), atol=1e-6)
  assert 0.05 < (found > 0).mean() < 0.95


def test_sections_far_apart_count_as_far_apart():
  mask = point((9, 21, 21), (4, 10, 10))
  found = targets.proximity(mask, voxel_size=(45.0, 4.5, 4.5))
  np.testing.assert_allclose(found[4, 10, 15], equation(5.0), rtol=1e-6)
  np.testing.assert_allclose(found[3, 10, 10], equation(10.0), rtol=1e-6)  # 45 nm = 10 voxels
  assert (found[[0, 1, 2, 6, 7, 8]] == 0).all()


def test_a_radius_beyond_the_volume_is_no_problem():
  found = targets.proximity(point((3, 4, 5), (0, 3, 4)), radius=100.0)
  z, y, x = np.ogrid[:3, :4, :5]
  distance = np.sqrt(z**2.0 + (y - 3) ** 2 + (x - 4) ** 2)
  np.testing.assert_allclose(found, equation(distance, radius=100.0), atol=1e-6)


def test_the_background_may_be_masked():
  mask = blobs((30, 30), share=0.05)
  everywhere = targets.proximity(mask)
  inside = targets.proximity(mask, only_inside=True)
  assert inside.dtype == np.float32
  np.testing.assert_array_equal(inside, everywhere * mask)
  assert (everywhere > 0).sum() > (inside > 0).sum() > 0


# ---- of a split ---------------------------------------------------------------------------------


LABEL = blobs((6, 24, 30)).astype(np.uint8)


def split_of(*labels, **options):
  return volume_split(*[(label, label) for label in labels], num_classes=3, **options)


def sections(split, cache=None, ndim=3, **options):
  found = targets.proximity_sections(split, Proximity(**options), ndim=ndim, cache=cache)
  assert all(section.dtype == np.float32 for section in found)
  return np.stack(found)


def test_volumes_have_centrelines_of_volumes_and_sections_of_sections():
  volume = sections(split_of(LABEL, LABEL[::-1]), max_hole=0)
  expected = [targets.proximity(label > 0) for label in (LABEL, LABEL[::-1])]
  np.testing.assert_array_equal(volume, np.concatenate(expected))
  single = np.stack([targets.proximity(label > 0) for label in LABEL])
  assert not np.array_equal(single, expected[0])
  for options in ({'ndim': 2}, {'dimensions': 2}):
    np.testing.assert_array_equal(sections(split_of(LABEL), max_hole=0, **options), single)
  np.testing.assert_array_equal(
    sections(split_of(LABEL), ndim=2, dimensions=3, max_hole=0), expected[0]
  )


def test_every_class_but_the_first_is_foreground_ignored_voxels_are_not():
  label = LABEL * 2
  label[:, :12] = np.minimum(label[:, :12], 1)
  label[2, 20:] = 9
  found = sections(split_of(label, ignore_value=9))
  np.testing.assert_array_equal(found, targets.proximity((label > 0) & (label < 9), max_hole=500))


def test_options_are_passed_on():
  settings_ = {'alpha': 2.0, 'radius': 6.0, 'max_hole': 3}
  split = split_of(LABEL, voxel_size_zyx=(8.0, 4.0, 4.0))
  of_file = targets.proximity(LABEL > 0, voxel_size=(2, 1, 1), **settings_)
  np.testing.assert_array_equal(sections(split, **settings_), of_file)
  given_ = targets.proximity(LABEL > 0, voxel_size=(3, 1, 1), only_inside=True, **settings_)
  found = sections(split, voxel_size=(30.0, 10.0, 10.0), mask=True, **settings_)
  np.testing.assert_array_equal(found, given_)
  partly = split_of(LABEL, voxel_size_zyx=(None, 4.0, 4.0))
  np.testing.assert_array_equal(
    sections(partly, **settings_), targets.proximity(LABEL > 0, **settings_)
  )


def test_what_is_computed_cannot_be_changed():
  for found in targets.proximity_sections(split_of(LABEL), Proximity(), ndim=3):
    with pytest.raises(ValueError, match='read-only'):
      found[0, 0] = 1


def test_maps_are_read_from_the_cache(tmp_path, monkeypatch):
  cache = tmp_path / 'deep' / 'cache'
  first = sections(split_of(LABEL, LABEL[:, ::-1]), cache)
  assert len(os.listdir(cache)) == 2
  np.testing.assert_array_equal(first, sections(split_of(LABEL, LABEL[:, ::-1])))
  monkeypatch.setattr(targets, 'proximity', None)  # would be called if anything were computed
  again = targets.proximity_sections(split_of(LABEL), Proximity(), ndim=3, cache=cache)
  np.testing.assert_array_equal(again, first[:6])
  assert isinstance(again[0], np.memmap)


def test_other_labels_or_options_are_other_files(tmp_path):
  changed = LABEL.copy()
  changed[3, 0, 0] ^= 1
  variants = [
    (split_of(LABEL), {}),
    (split_of(changed), {}),
    (split_of(LABEL[:5]), {}),  # as with a fraction of the sections
    (split_of(LABEL.reshape(6, 30, 24)), {}),
    (split_of(LABEL, voxel_size_zyx=(8.0, 4.0, 4.0)), {}),
    (split_of(LABEL), {'alpha': 2.0}),
    (split_of(LABEL), {'radius': 5.0}),
    (split_of(LABEL), {'mask': True}),
    (split_of(LABEL), {'max_hole': 0}),
    (split_of(LABEL), {'dimensions': 2}),
  ]
  for number, (split, options) in enumerate(variants):
    assert len(list(tmp_path.iterdir())) == number
    sections(split, tmp_path, **options)
  sections(split_of(LABEL * 2), tmp_path)  # the same foreground
  assert len(list(tmp_path.iterdir())) == len(variants)
  assert all(file.suffix == '.npy' for file in tmp_path.iterdir())


def test_a_damaged_file_is_named(tmp_path):
  sections(split_of(LABEL), tmp_path)
  (file,) = tmp_path.iterdir()
  whole = file.read_bytes()
  for damaged in (whole[: len(whole) // 2], whole[:20], b''):
    file.write_bytes(damaged)
    with pytest.raises(DataError, match=rf'{file.name}: is damaged .*remove it'):
      sections(split_of(LABEL), tmp_path)


def test_nothing_is_left_behind_by_a_failure(tmp_path, monkeypatch):
  def fail(file, array):
    file.write(array.tobytes()[:100])
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(np, 'save', fail)
  with pytest.raises(OutputError, match=r'\.npy: cannot be written: No space left'):
    sections(split_of(LABEL), tmp_path)
  assert not list(tmp_path.iterdir())
  (tmp_path / 'file').write_text('')
  with pytest.raises(OutputError, match='cannot be written'):
    sections(split_of(LABEL), tmp_path / 'file')


def test_sections_of_any_sizes_have_2d_maps():
  small, large = LABEL[:2, :9, :11], LABEL[2:4]
  found = targets.proximity_sections(split_of(small, large), Proximity(), ndim=2)
  assert [section.shape for section in found] == [(9, 11)] * 2 + [(24, 30)] * 2
