"""TIFF in all its forms: what is read right, and what is refused with a clear sentence."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from emseg_jax.data import volumes
from emseg_jax.errors import DataError


def random_image(*shape, dtype=np.uint8, seed=0):
  values = np.random.default_rng(seed).integers(0, 65536, shape)
  return values > 32768 if np.dtype(dtype) == bool else values.astype(dtype)


def cut(path, share):
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * share)])


def check_stack(volume, expected, axes='ZYX'):
  assert (volume.kind, volume.axes, len(volume)) == ('stack', axes, len(expected))
  assert volume.dtype == expected.dtype.newbyteorder('=')
  for i, section in enumerate(expected):
    assert volume.section_shape(i) == section.shape[:2]
    read = volume.section(i)
    assert read.dtype == volume.dtype
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, section)


@settings(max_examples=30, deadline=None)
@given(
  # From width 2 on: tifffile writes a last axis of length 1 as samples of a pixel.
  shape=st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(2, 20)),
  dtype=st.sampled_from(['?', 'u1', 'i1', 'u2', 'i2', 'u4', 'f4']),
  byteorder=st.sampled_from('<>'),
  compression=st.sampled_from([None, 'deflate', 'lzw']),
  bigtiff=st.booleans(),
  data=st.data(),
)
def test_any_shape_and_type_goes_through_tiff_unchanged(
  shape, dtype, byteorder, compression, bigtiff, data
):
  elements = {'allow_nan': False, 'allow_infinity': False} if dtype == 'f4' else None
  array = data.draw(hnp.arrays(dtype, shape, elements=elements))
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, 'stack.tif')
    tifffile.imwrite(
      path,
      array,
      byteorder=byteorder,
      # Bilevel pages cannot be LZW-compressed by tifffile.
      compression=None if dtype == '?' else compression,
      bigtiff=bigtiff,
      photometric='minisblack',
      metadata={'axes': 'ZYX'},
    )
    volume = volumes.open_volume(path)
    if len(array) > 1:
      check_stack(volume, array)
    else:
      assert (volume.kind, volume.axes) == ('image', 'YX')
      np.testing.assert_array_equal(volume.section(0), array[0])


@pytest.mark.parametrize('compression', [None, 'deflate'])
def test_imagej_stack_gives_voxel_size_in_nm(tmp_path, compression):
  array = random_image(4, 10, 12, dtype=np.uint16)
  tifffile.imwrite(
    tmp_path / 'a.tif',
    array,
    imagej=True,
    compression=compression,
    resolution=(250.0, 200.0),  # pixels per µm in x and y: 4 nm and 5 nm
    metadata={'axes': 'ZYX', 'spacing': 0.05, 'unit': '\\u00B5m'},  # as ImageJ escapes it
  )
  volume = volumes.open_volume(tmp_path / 'a.tif')
  check_stack(volume, array)
  assert volume.voxel_size_zyx == pytest.approx((50.0, 5.0, 4.0))
  assert volume.names == ('a[000]', 'a[001]', 'a[002]', 'a[003]')


def test_unknown_parts_of_the_voxel_size_stay_unknown(tmp_path):
  array = random_image(3, 8, 8)
  tifffile.imwrite(
    tmp_path / 'no_spacing.tif',
    array,
    imagej=True,
    resolution=(0.25, 0.25),
    metadata={'axes': 'ZYX', 'unit': 'nm'},
  )
  assert volumes.open_volume(tmp_path / 'no_spacing.tif').voxel_size_zyx == (None, 4.0, 4.0)
  tifffile.imwrite(
    tmp_path / 'pixels.tif', array, imagej=True, metadata={'axes': 'ZYX', 'unit': 'pixel'}
  )
  assert volumes.open_volume(tmp_path / 'pixels.tif').voxel_size_zyx is None
  # Dots per inch are for printers.
  Image.fromarray(array[0]).save(tmp_path / 'dpi.tif', dpi=(300, 300))
  assert volumes.open_volume(tmp_path / 'dpi.tif').voxel_size_zyx is None


def test_ome_tiff_gives_voxel_size_in_nm(tmp_path):
  array = random_image(3, 10, 12)
  sizes = {'PhysicalSizeX': 40.0, 'PhysicalSizeXUnit': 'Å', 'PhysicalSizeY': 0.005}
  path = tmp_path / 'a.ome.tif'
  tifffile.imwrite(path, array, metadata={'axes': 'ZYX', **sizes}, photometric='minisblack')
  volume = volumes.open_volume(path)
  check_stack(volume, array)
  assert volume.voxel_size_zyx == pytest.approx((None, 5.0, 4.0))  # OME's default unit is µm
  assert volume.names[0] == 'a[000]'


def test_imagej_file_with_all_sections_behind_one_page_is_a_stack(tmp_path):
  # How ImageJ writes stacks beyond 4 GB: one page, then the raw planes.
  array = random_image(3, 6, 5, dtype='>u2')
  path = tmp_path / 'huge.tif'
  description = 'ImageJ=1.54f\nimages=3\nslices=3\n'
  tifffile.imwrite(path, array[0], byteorder='>', description=description, metadata=None)
  complete = path.read_bytes() + array[1:].tobytes()
  path.write_bytes(complete)
  assert len(tifffile.TiffFile(path).pages) == 1
  check_stack(volumes.open_volume(path), array)
  path.write_bytes(complete[:-1])
  with pytest.raises(DataError, match=r'huge\.tif: announces 3 sections, but 1 can be found'):
    volumes.open_volume(path)


def test_volume_on_one_page_is_a_stack_unless_compressed(tmp_path):
  array = random_image(16, 16, 32, dtype=np.uint16)
  options = {'volumetric': True, 'photometric': 'minisblack'}
  tifffile.imwrite(tmp_path / 'a.tif', array, **options)
  check_stack(volumes.open_volume(tmp_path / 'a.tif'), array)
  tifffile.imwrite(tmp_path / 'b.tif', array, compression='deflate', **options)
  with pytest.raises(DataError, match='compressed volume on one page'):
    volumes.open_volume(tmp_path / 'b.tif')


@pytest.mark.parametrize('planar', ['contig', 'separate'])
def test_rgb_stack_is_read_with_channels_last(tmp_path, planar):
  array = random_image(3, 7, 9, 3)
  stored = array if planar == 'contig' else np.moveaxis(array, -1, 1)
  tifffile.imwrite(tmp_path / 'a.tif', stored, photometric='rgb', planarconfig=planar)
  volume = volumes.open_volume(tmp_path / 'a.tif')
  assert volume.channels == 3
  check_stack(volume, array, axes='ZYXC')


@pytest.mark.parametrize(
  ('axes', 'shape'), [('TYX', (3, 8, 9)), ('CYX', (2, 8, 9)), ('TZCYX', (2, 3, 2, 8, 9))]
)
def test_time_and_channel_axes_are_refused_by_name(tmp_path, axes, shape):
  array = random_image(*shape)
  tifffile.imwrite(tmp_path / 'a.tif', array, imagej=True, metadata={'axes': axes})
  found = ', '.join(f'{a}={n}' for a, n in zip(axes, shape, strict=True))
  with pytest.raises(DataError, match=f'a.tif: has the axes {found}'):
    volumes.open_volume(tmp_path / 'a.tif')


def test_five_grey_channels_per_pixel_are_refused(tmp_path):
  tifffile.imwrite(
    tmp_path / 'a.tif', random_image(8, 9, 5), photometric='minisblack', planarconfig='contig'
  )
  with pytest.raises(DataError, match='has 5 channels'):
    volumes.open_volume(tmp_path / 'a.tif')


def test_pages_of_different_size_are_refused_naming_the_first_odd_one(tmp_path):
  with tifffile.TiffWriter(tmp_path / 'a.tif') as writer:
    for shape in [(8, 9), (8, 9), (8, 10), (8, 9), (8, 11)]:
      writer.write(random_image(*shape), contiguous=False, metadata=None)
  with pytest.raises(DataError, match='page 2 is 8 x 10 uint8 minisblack, but page 0 is 8 x 9'):
    volumes.open_volume(tmp_path / 'a.tif')


def test_pages_may_be_compressed_differently(tmp_path):
  array = random_image(4, 8, 9)
  with tifffile.TiffWriter(tmp_path / 'a.tif') as writer:
    for i, page in enumerate(array):
      compression = 'deflate' if i % 2 else None
      writer.write(page, contiguous=False, metadata=None, compression=compression)
  check_stack(volumes.open_volume(tmp_path / 'a.tif'), array)


def test_tiff_in_which_white_is_zero_is_inverted_for_images_and_kept_for_labels(tmp_path):
  stored = np.array([[0, 1, 255]], np.uint8)
  tifffile.imwrite(tmp_path / 'a.tif', stored, photometric='miniswhite')
  image = volumes.open_volume(tmp_path / 'a.tif').section(0)
  np.testing.assert_array_equal(image, [[255, 254, 0]])
  labels = volumes.open_volume(tmp_path / 'a.tif', palette='index').section(0)
  np.testing.assert_array_equal(labels, stored)


def test_palette_tiff_is_colour_for_images_and_index_for_labels(tmp_path):
  index = np.array([[0, 1], [2, 1]], np.uint8)
  colours = np.zeros((3, 256), np.uint16)
  colours[:, 1] = 0xFF00, 0x8000, 0
  tifffile.imwrite(tmp_path / 'a.tif', index, photometric='palette', colormap=colours)
  volume = volumes.open_volume(tmp_path / 'a.tif')
  assert (volume.channels, volume.axes, volume.dtype) == (3, 'YXC', np.uint8)
  np.testing.assert_array_equal(volume.section(0)[0, 1], [0xFF, 0x80, 0])
  labels = volumes.open_volume(tmp_path / 'a.tif', palette='index')
  assert labels.channels == 1
  np.testing.assert_array_equal(labels.section(0), index)


@pytest.mark.parametrize('compression', [None, 'deflate'])
@pytest.mark.parametrize('form', ['plain', 'imagej', 'ome'])
@pytest.mark.parametrize('share', [0.1, 0.5, 0.9])
def test_a_truncated_stack_never_yields_pixels_of_its_last_page(tmp_path, form, compression, share):
  array = random_image(12, 40, 40)
  path = tmp_path / 'a.tif'
  options = {} if form == 'plain' else {form: True, 'metadata': {'axes': 'ZYX'}}
  tifffile.imwrite(path, array, photometric='minisblack', compression=compression, **options)
  cut(path, share)
  with pytest.raises(DataError, match=r'a\.tif'):
    volumes.open_volume(path).section(11)


def test_a_damaged_section_is_named_and_the_others_still_read(tmp_path):
  array = random_image(3, 64, 64)
  path = tmp_path / 'a.tif'
  tifffile.imwrite(path, array, compression='deflate', photometric='minisblack')
  with tifffile.TiffFile(path) as tif:
    start, length = tif.pages[1].dataoffsets[0], tif.pages[1].databytecounts[0]
  data = bytearray(path.read_bytes())
  data[start : start + length] = bytes(length)
  path.write_bytes(data)
  volume = volumes.open_volume(path)  # opening decodes nothing
  np.testing.assert_array_equal(volume.section(2), array[2])
  with pytest.raises(DataError, match=r'a\.tif: section 1: cannot be read, damaged'):
    volume.section(1)


def test_nan_and_infinity_are_counted(tmp_path):
  array = np.zeros((2, 4, 5), np.float32)
  array[1, 0, :2] = np.nan
  array[1, 3, 3] = -np.inf
  tifffile.imwrite(tmp_path / 'a.tif', array, photometric='minisblack')
  volume = volumes.open_volume(tmp_path / 'a.tif')
  np.testing.assert_array_equal(volume.section(0), 0)
  with pytest.raises(DataError, match=r'a\.tif: section 1: 3 of 20 values are NaN or infinite'):
    volume.section(1)


def test_complex_pixels_are_refused(tmp_path):
  tifffile.imwrite(tmp_path / 'a.tif', np.zeros((4, 4), np.complex64))
  with pytest.raises(DataError, match='complex64'):
    volumes.open_volume(tmp_path / 'a.tif')
