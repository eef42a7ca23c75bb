"""Volumes at another voxel size, against scipy and by hand; boxes are parts of the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from emseg_jax.data import resampled, volumes, voxel_sizes
from emseg_jax.errors import DataError

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(100, 20, (9, 14, 11)).astype(np.float32)


def at(array, size, target, **options):
  volume = volumes.ArrayVolume(array, voxel_size_zyx=size)
  return resampled.resample(volume, target, **{'labels': False} | options)


@pytest.mark.parametrize('target', [(5.0, 5.0, 5.0), (2.5, 5.0, 4.0), (5.0, 3.0, 1.0)])
def test_finer_voxels_are_those_of_linear_interpolation(target):
  volume = at(IMAGE, (5.0, 5.0, 5.0), target)
  axes = [
    (np.arange(round(n * 5 / t)) + 0.5) * t / 5 - 0.5
    for n, t in zip(IMAGE.shape, target, strict=True)
  ]
  grid = np.meshgrid(*axes, indexing='ij')
  expected = ndimage.map_coordinates(IMAGE, grid, order=1, mode='nearest')
  assert volume[:].shape == expected.shape
  np.testing.assert_allclose(volume[:], expected, rtol=1e-4)
  assert volume.voxel_size_zyx == target


def test_the_same_size_is_the_volume_itself():
  volume = volumes.ArrayVolume(IMAGE, voxel_size_zyx=(30.0, 4.0, 4.0))
  assert resampled.resample(volume, (30.0, 4.01, None), labels=False) is volume


def test_coarser_voxels_are_averages():
  # Twice as coarse: the triangle 1/8, 3/8, 3/8, 1/8 around each centre.
  line = np.array([8, 0, 0, 16, 0, 8, 24, 8], np.float32)
  volume = at(np.broadcast_to(line, (2, 3, 8)).copy(), (1.0, 1.0, 1.0), (1.0, 1.0, 2.0))
  first = (8 * 1 + 8 * 3 + 0 * 3 + 0 * 1) / 8  # the first voxel goes on beyond the end
  expected = [first, (0 + 0 + 48 + 0) / 8, (16 + 0 + 24 + 24) / 8, (8 + 72 + 24 + 8) / 8]
  np.testing.assert_allclose(volume[0][0], expected)
  fine = np.tile([0.0, 100.0], 32).astype(np.float32)  # would be all 0 or all 100 by sampling
  coarse = at(np.broadcast_to(fine, (1, 2, 64)).copy(), (1.0, 1.0, 1.0), (1.0, 1.0, 4.0))
  np.testing.assert_allclose(coarse[0][0][1:-1], 50)


def test_labels_keep_their_values():
  ids = RNG.integers(0, 60_000, (4, 6, 5)).astype(np.uint16)
  volume = at(ids, (2.0, 2.0, 2.0), (1.0, 1.0, 1.0), labels=True)
  np.testing.assert_array_equal(volume[:], ids.repeat(2, 0).repeat(2, 1).repeat(2, 2))
  again = at(volume[:], (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), labels=True)
  np.testing.assert_array_equal(again[:], ids)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.floats(0.4, 3.0)] * 3), st.booleans(), st.integers(0, 2**31))
def test_a_box_is_a_part_of_the_whole(factor, labels, seed):
  array = RNG.integers(0, 255, (6, 9, 8)).astype(np.uint8)
  volume = at(array, (1.0, 1.0, 1.0), factor, labels=labels)
  whole = volume[:]
  rng = np.random.default_rng(seed)
  start = [int(rng.integers(n)) for n in whole.shape]
  stop = [int(rng.integers(a + 1, n + 1)) for a, n in zip(start, whole.shape, strict=True)]
  part = whole[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
  np.testing.assert_array_equal(volume.box(tuple(start), tuple(stop)), part)
  assert part.dtype == np.uint8


def test_colour_and_single_images():
  rgb = RNG.integers(0, 255, (3, 8, 6, 3)).astype(np.uint8)
  volume = volumes.ArrayVolume(rgb, axes='NYX', voxel_size_zyx=(None, 4.0, 4.0))
  found = resampled.resample(volume, (50.0, 8.0, 8.0), labels=False)
  assert found[:].shape == (3, 4, 3, 3)
  assert found.names == volume.names


def test_an_unknown_size_is_refused():
  with pytest.raises(DataError, match=r'voxel size along y is not known.*brought to 4 nm'):
    at(IMAGE, (30.0, None, 4.0), (30.0, 4.0, 4.0))


@pytest.mark.parametrize('size', [(1.0, 1.0, 1.0), (4.0, 1.0, 2.0), (2.0, 3.0, 1.3)])
def test_what_was_made_from_a_resampled_volume_comes_back_in_place(size):
  ids = np.kron(RNG.integers(0, 9, (3, 4, 5)), np.ones((4, 6, 4), int)).astype(np.uint8)
  original = volumes.ArrayVolume(ids, voxel_size_zyx=(2.0, 2.0, 2.0))
  volume = resampled.resample(original, size, labels=True)
  found = np.stack(list(resampled.back(iter(volume[:]), volume, original)))
  assert found.shape == ids.shape
  # Of blocks of 4 x 6 x 4, at most the outermost voxels may change sides.
  assert (found == ids).mean() > 0.75
  np.testing.assert_array_equal(found[1::4, 2::6, 1::4], ids[1::4, 2::6, 1::4])


def test_volumes_of_unequal_voxels_are_refused_where_it_matters():
  def volume(name, size):
    return volumes.ArrayVolume(np.zeros((2, 4, 4), np.uint8), name=name, voxel_size_zyx=size)

  fine, thick, unknown = volume('a', (8, 8, 8)), volume('b', (40, 8, 8.1)), volume('c', None)
  assert voxel_sizes.common([unknown, fine, thick], ndim=2) == (8, 8, 8)
  assert voxel_sizes.common([unknown], ndim=3) is None
  with pytest.raises(DataError, match=r'b: its voxels are 40 x 8 x 8\.1 nm .* of a are 8 x 8'):
    voxel_sizes.common([unknown, fine, thick], ndim=3)
  with pytest.raises(DataError, match=r'd: .* set data\.voxel_size'):
    voxel_sizes.common([fine, volume('d', (None, 8, 10))], ndim=2)
