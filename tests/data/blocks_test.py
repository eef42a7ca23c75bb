"""Boxes of volumes: what belongs to a volume, what is read for a box, and what it holds."""

import numpy as np
import pytest
from data_support import open_split, plain, volume_split, write_folder, write_stack
from hypothesis import given, settings
from hypothesis import strategies as st

from emseg_jax.config import Phantom, Source
from emseg_jax.data import blocks, normalise
from emseg_jax.data import split as split_lib
from emseg_jax.errors import DataError

RAW = normalise.Normalisation('dataset', 1, 0.0, 1.0, 'float32')  # leaves pixels as they are
NUMBERS = np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)


def numbered():
  """One volume whose image holds the numbers of its voxels."""
  return volume_split((NUMBERS, (NUMBERS % 2).astype(np.uint8)))


def test_single_sections_are_what_a_2d_network_sees():
  split = open_split(Source(phantom=Phantom(count=3, size=(32, 32))))
  assert blocks.groups(split, 2) == ((0,), (1,), (2,))


def test_stacks_and_folders_are_volumes_in_their_order(tmp_path):
  stack = write_stack(tmp_path / 'stack.tif', np.zeros((3, 6, 8), np.uint8))
  folder = write_folder(tmp_path / 'folder', {f'z{i}': plain(i % 2) for i in (9, 10, 11, 2)})
  split = open_split(Source(images=folder), Source(images=stack), Source(images=stack))
  # The same file named twice is two volumes.
  assert blocks.groups(split, 3) == ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9))
  assert [split.sections[i].name for i in range(4)] == ['z2', 'z9', 'z10', 'z11']
  assert blocks.shape(split, (0, 1, 2, 3)) == (4, 6, 8)
  assert blocks.shape(split, (0, 1, 2, 3), axis=1) == (6, 4, 8)
  assert blocks.shape(split, (0, 1, 2, 3), axis=2) == (8, 6, 4)
  assert blocks.shape(split, (5,)) == (1, 6, 8)


def test_a_phantom_of_volumes_has_as_many_groups():
  split = open_split(Source(phantom=Phantom(count=2, size=(32, 40), depth=3)))
  assert blocks.groups(split, 3) == ((0, 1, 2), (3, 4, 5))


def test_what_is_no_volume_is_refused_in_one_sentence(tmp_path):
  sizes = {'a': plain(0), 'b': plain(0), 'c': plain(0, (6, 9))}
  ragged = Source(images=write_folder(tmp_path / 'ragged', sizes))
  stack = write_stack(tmp_path / 'stack.tif', np.zeros((3, 6, 8), np.uint8))
  for source, message in [
    (ragged, r'ragged: c is 6 x 9 \(y x\), a is 6 x 8; the sections of a volume must be equal'),
    (Source(images=stack, fraction=0.1), r'stack\.tif: only section stack\[000\] is used; .* 2$'),
    (Source(images=f'{ragged.images}/a.png'), r'a\.png: only section a is used'),
    (Source(phantom=Phantom(count=3, size=(32, 32), seed=4)), 'phantom-4: .*depth of the phantom'),
  ]:
    split = open_split(source)
    assert len(blocks.groups(split, 2)) == len(split)
    with pytest.raises(DataError, match=message):
      blocks.groups(split, 3)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([0, 1, 2]))
def test_a_box_is_that_of_the_volume_along_any_axis(data, axis):
  volume = np.swapaxes(NUMBERS, 0, axis)
  origin = [data.draw(st.integers(0, n - 1)) for n in volume.shape]
  size = [data.draw(st.integers(1, 9)) for _ in range(3)]
  block = blocks.read_block(numbered().image_block, (0, 1, 2, 3, 4), origin, size, axis=axis)
  inside = volume[tuple(slice(o, o + s) for o, s in zip(origin, size, strict=True))]
  missing = [(0, s - n) for s, n in zip(size, inside.shape, strict=True)]
  np.testing.assert_array_equal(block, np.pad(inside, missing, 'symmetric'))


def test_only_the_sections_of_a_box_are_decoded():
  split = numbered()
  volume = split.sections[0].image_volume
  blocks.read_block(split.image_block, (0, 1, 2, 3, 4), (1, 0, 0), (2, 3, 3))
  assert volume.reads == [0, 1, 1, 0, 0]
  blocks.read_block(split.image_block, (0, 1, 2, 3, 4), (0, 2, 0), (5, 1, 3), axis=1)
  assert volume.reads == [0, 1, 1, 0, 0]  # rows of this view are sections
  blocks.read_block(split.image_block, (0, 1, 2, 3, 4), (0, 0, 0), (1, 5, 7), axis=1)
  assert volume.reads == [1, 1, 1, 1, 1]


def test_a_group_may_leave_sections_out():
  block = blocks.read_block(numbered().image_block, (0, 2, 4), (1, 0, 0), (2, 6, 7))
  np.testing.assert_array_equal(block, NUMBERS[[2, 4]])


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_images_are_normalised_and_keep_their_channels(axis):
  colour = np.stack([NUMBERS, NUMBERS + 1000, NUMBERS + 2000], axis=-1)
  split = volume_split((colour, NUMBERS.astype(np.uint8)))
  half = normalise.Normalisation('dataset', 3, 0.0, 2.0, 'float32')
  size = np.swapaxes(NUMBERS, 0, axis).shape
  image = blocks.read_image(split, half, (0, 1, 2, 3, 4), (0, 0, 0), size, axis=axis)
  assert image.dtype == np.float32
  np.testing.assert_array_equal(image, np.swapaxes(colour, 0, axis) / 2)
  grey = blocks.read_image(split, RAW, (0, 1, 2, 3, 4), (0, 0, 0), size, axis=axis)
  np.testing.assert_array_equal(grey[..., 0], np.swapaxes(NUMBERS + 1000, 0, axis))


def test_a_folder_has_statistics_of_its_own_once_it_is_a_volume(tmp_path):
  values = (10, 20, 60)
  folder = write_folder(tmp_path / 'z', {f'{i}': plain(v) for i, v in enumerate(values)})
  split = open_split(Source(images=folder, slices='0:2'))
  per_volume = normalise.Normalisation('per_volume', 1, 0.0, 1.0, 'uint8')
  volume = blocks.read_image(split, per_volume, (0, 1), (0, 0, 0), (2, 6, 8))
  # Mean 30, variance (20² + 10² + 30²) / 3, also of the section left out, as in a stack.
  expected = (np.array(values[:2]) - 30) / np.sqrt(1400 / 3)
  np.testing.assert_allclose(volume[:, 0, 0, 0], expected, rtol=1e-6)
  for i in range(2):
    section = split.network_image(i, per_volume, joined=True)
    np.testing.assert_array_equal(section, volume[i])
    # A network for sections sees every image by itself: constant ones are 0.
    single = blocks.read_image(split, per_volume, (i,), (0, 0, 0), (1, 6, 8))
    np.testing.assert_array_equal(single, np.zeros((1, 6, 8, 1)))


# ---- neighbouring sections as channels ----------------------------------------------------------


@pytest.mark.parametrize(
  ('z', 'expected'), [(0, [1, 0, 0, 1, 2]), (2, [0, 1, 2, 3, 4]), (4, [2, 3, 4, 4, 3])]
)
def test_neighbours_are_channels_and_the_volume_is_mirrored_at_its_ends(z, expected):
  split = numbered()
  box = blocks.read_image(split, RAW, (z,), (0, 2, 3), (1, 3, 4), neighbours=2)
  assert box.shape == (1, 3, 4, 5)
  for channel, section in enumerate(expected):
    np.testing.assert_array_equal(box[0, ..., channel], NUMBERS[section, 2:5, 3:7])
  whole = split.network_image(z, RAW, neighbours=2)
  np.testing.assert_array_equal(whole[2:5, 3:7], box[0])


def test_neighbours_along_another_axis_are_its_planes():
  split = numbered()
  box = blocks.read_image(split, RAW, (0, 1, 2, 3, 4), (5, 1, 2), (1, 3, 4), axis=1, neighbours=1)
  turned = NUMBERS.swapaxes(0, 1)  # y is z; it has six planes
  for channel, plane in enumerate((4, 5, 5)):
    np.testing.assert_array_equal(box[0, ..., channel], turned[plane, 1:4, 2:6])


def test_neighbours_are_those_of_the_volume_not_of_the_split(tmp_path):
  stack = np.arange(9, dtype=np.uint8)[:, None, None] * np.ones((1, 6, 8), np.uint8)
  source = Source(images=write_stack(tmp_path / 's.tif', stack), slices='1::3')
  split = open_split(source)
  assert split.network_image(1, RAW, neighbours=1)[0, 0].tolist() == [3, 4, 5]


def test_a_neighbour_of_another_size_is_refused(tmp_path):
  named = {'a': plain(0), 'b': plain(0, (6, 9))}
  split = open_split(Source(images=write_folder(tmp_path / 'f', named), slices=':1'))
  with pytest.raises(DataError, match='f: b is not as large as a beside it'):
    split.network_image(0, RAW, neighbours=1)


def test_neighbours_are_normalised_with_their_volume(tmp_path):
  named = {f'z{i}': plain(10 * i) for i in range(3)}
  split = open_split(Source(images=write_folder(tmp_path / 'f', named)))
  each = normalise.Normalisation('per_volume', 1, 0.0, 1.0, 'uint8')
  row = split.network_image(1, each, neighbours=1)[0, 0]
  # Mean and standard deviation of 0, 10, 20.
  np.testing.assert_allclose(row, np.array([-10, 0, 10]) / np.sqrt(200 / 3), rtol=1e-6)


@given(st.integers(-40, 40), st.integers(1, 6))
def test_mirroring_is_numpys_symmetric_padding(z, depth):
  padded = np.pad(np.arange(depth), 40, mode='symmetric')
  assert split_lib.mirrored(z, depth) == padded[z + 40] if z < depth + 40 else True
