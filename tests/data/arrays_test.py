"""Axes of stored arrays, boxes of every kind of volume, the options for reading."""

import itertools
import pickle

import format_support
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emseg_jax.config import Reading
from emseg_jax.data import arrays, volumes
from emseg_jax.data.volume import MOST_SECTIONS
from emseg_jax.errors import DataError

WRITERS = {
  'a.png': lambda path, array: format_support.write_png(path, array[0]),
  'a.tif': format_support.write_tiff,
  'a.mrc': format_support.write_mrc,
  'a.mrc.gz': format_support.write_mrc,
  'a.h5': format_support.write_hdf5,
  'chunked.h5': lambda path, array: format_support.write_hdf5(path, array, compression='gzip'),
  'a.zarr': format_support.write_zarr,
  'a.n5': format_support.write_n5,
  'precomputed': format_support.write_precomputed,
}


def stored(shape, described, **options):
  """A volume over an array whose numbers are all different, and the array."""
  array = np.arange(np.prod(shape), dtype='i4').reshape(shape)
  layout = arrays.find_layout(described, shape, Reading(**options), 'here')
  held = arrays.Held(array)
  return arrays.StoredVolume(
    'here', held, kind='hdf5', layout=layout, dtype=array.dtype, name='x'
  ), array


@pytest.mark.parametrize('axes', [''.join(p) for p in itertools.permutations('ZYXC')])
def test_any_order_of_axes_is_read_as_zyx(axes):
  shape = dict(zip('ZYXC', (4, 5, 6, 2), strict=True))
  volume, array = stored([shape[a] for a in axes], None, axes=axes, channel=1)
  # numpy's own way to order axes by name
  expected = np.einsum(f'{axes.lower()}->zyxc', array)[..., 1]
  assert (volume.axes, volume.channels, len(volume)) == ('ZYX', 1, 4)
  assert volume.section_shape(0) == (5, 6)
  np.testing.assert_array_equal(volume.section(2), expected[2])
  np.testing.assert_array_equal(volume.box((1, 0, 2), (3, 5, 6)), expected[1:3, 0:5, 2:6])


def test_colour_is_kept_if_last_and_three():
  volume, array = stored((2, 4, 5, 3), 'ZYXC')
  assert (volume.axes, volume.channels) == ('ZYXC', 3)
  np.testing.assert_array_equal(volume.section(1), array[1])
  np.testing.assert_array_equal(volume.box((0, 1, 1), (2, 3, 4)), array[:, 1:3, 1:4])
  image, array = stored((4, 5, 3), 'YXC')
  assert (image.axes, image.names) == ('YXC', ('x',))
  np.testing.assert_array_equal(image.section(0), array)


def test_axes_of_length_one_are_dropped():
  volume, array = stored((1, 1, 3, 4, 5), 'TCZYX')
  assert volume.axes == 'ZYX'
  np.testing.assert_array_equal(volume[:], array[0, 0])
  image, array = stored((4, 5), None)
  assert (image.axes, image.names) == ('YX', ('x',))
  np.testing.assert_array_equal(image.section(0), array)


@pytest.mark.parametrize(
  ('shape', 'axes', 'options', 'message'),
  [
    ((2, 3, 4, 5), None, {}, r'is 2 x 3 x 4 x 5 and does not name its 4 axes; set reading.axes'),
    ((3, 4, 5), None, {'axes': 'YX'}, 'is 3 x 4 x 5, 3 axes, but the axes YX are 2'),
    ((3, 4, 5), 'AYX', {}, 'has the axes AYX, but Y and X'),
    ((3, 4, 5), 'ZYY', {}, 'has the axes ZYY, but Y and X'),
    ((0, 4, 5), 'ZYX', {}, 'is empty, 0 x 4 x 5'),
    ((3, 4, 5), 'TYX', {}, 'has 3 time points, but one is needed'),
    ((2, 4, 5), 'CYX', {}, r'has 2 channels \(axes CYX\); choose one with reading.channel, 0 to 1'),
    ((3, 4, 5), 'CYX', {}, 'has 3 channels'),  # not RGB, which is last
    ((2, 4, 5), 'CYX', {'channel': 2}, 'has 2 channels, reading.channel=2 is beyond 0 to 1'),
    ((3, 4, 5), None, {'channel': 1}, 'has 1 channels, reading.channel=1 is beyond 0 to 0'),
  ],
)
def test_what_is_no_volume_is_refused_with_what_to_set(shape, axes, options, message):
  with pytest.raises(DataError, match=f'here: {message}'):
    arrays.find_layout(axes, shape, Reading(**options), 'here')


@pytest.mark.parametrize('axes', ['ZY', 'XX', 'zyx', 'ZYXA', 'ZYXX', ''])
def test_options_for_reading_refuse_impossible_axes(axes):
  with pytest.raises(ValueError, match='must have Y and X'):
    Reading(axes=axes)


def test_more_sections_than_any_volume_has_are_refused():
  with pytest.raises(DataError, match=f'would have {MOST_SECTIONS + 1} sections'):
    arrays.StoredVolume(
      'here',
      arrays.Held(np.zeros(0)),
      kind='hdf5',
      layout=arrays.Layout('ZYX', (MOST_SECTIONS + 1, 4, 4), 0),
      dtype=np.dtype('u1'),
      name='x',
    )


def test_a_box_larger_than_memory_is_refused_before_it_is_read():
  layout = arrays.Layout('ZYX', (2**19, 2**20, 2**20), 0)
  volume = arrays.StoredVolume(
    'here', arrays.Held(None), kind='zarr', layout=layout, dtype=np.dtype('u1'), name='x'
  )
  with pytest.raises(DataError, match=r'here: section 3: is 1048576 x 1048576 x 1 uint8, 1100 GB'):
    volume.section(3)
  with pytest.raises(DataError, match=r'here: box \(0, 0, 0\) to .*: is 4096 x 1048576 x'):
    volume.box((0, 0, 0), (4096, 2**20, 2**20))


@pytest.mark.parametrize('name', list(WRITERS))
def test_every_format_reads_sections_boxes_and_after_pickling(tmp_path, name):
  array = format_support.values(5, 6, 7, dtype='i2' if 'mrc' in name else 'u1')
  opened = volumes.open_volume(WRITERS[name](tmp_path / name, array))
  expected = array[:1] if name == 'a.png' else array
  for volume in (opened, pickle.loads(pickle.dumps(opened))):
    assert (len(volume), volume.dtype, volume.channels) == (len(expected), array.dtype, 1)
    np.testing.assert_array_equal(np.stack(list(volume)), expected)
    box = volume.box((0, 2, 3), (1, 6, 4))
    assert box.flags.c_contiguous
    np.testing.assert_array_equal(box, expected[:1, 2:6, 3:4])
  for start, stop in (((0, 0, 0), (0, 1, 1)), ((0, 0, 0), (6, 1, 1)), ((0, 0, -1), (1, 1, 1)),
                      ((0, 0, 0), (1, 7, 1)), ((9, 0, 0), (10, 1, 1))):  # fmt: skip
    with pytest.raises(IndexError, match='box'):
      volume.box(start, stop)
  with pytest.raises(IndexError, match=f'section {len(expected)} of'):
    volume.section(len(expected))


# That mrcfile says when this test writes NaN.
@pytest.mark.filterwarnings('ignore:.*NaN:RuntimeWarning')
def test_nan_in_a_box_is_counted(tmp_path):
  array = np.zeros((3, 4, 5), 'f4')
  array[1, 2, 3:] = np.nan, np.inf
  for name in ('a.mrc', 'a.h5', 'a.zarr', 'a.n5'):
    volume = volumes.open_volume(WRITERS[name](tmp_path / name, array))
    np.testing.assert_array_equal(volume.section(0), 0)
    np.testing.assert_array_equal(volume.box((0, 0, 0), (3, 2, 5)), 0)
    with pytest.raises(DataError, match=rf'{name}: section 1: 2 of 20 values are NaN or infinite'):
      volume.section(1)
    with pytest.raises(DataError, match=rf'{name}: box \(1, 2, 2\) .*: 1 of 2 values are NaN'):
      volume.box((1, 2, 2), (2, 3, 4))


@given(st.data())
def test_boxes_of_arrays_in_memory_are_slices(data):
  array = format_support.values(4, 5, 6)
  axes = [data.draw(st.tuples(*[st.integers(0, n)] * 2)) for n in array.shape]
  start, stop = zip(*axes, strict=True)
  volume = volumes.ArrayVolume(array)
  if all(a < b for a, b in axes):
    cut = array[tuple(slice(a, b) for a, b in axes)]
    np.testing.assert_array_equal(volume.box(start, stop), cut)
  else:
    with pytest.raises(IndexError):
      volume.box(start, stop)


def test_given_voxel_sizes_go_before_those_of_the_file(tmp_path):
  array = format_support.values(2, 4, 6)
  for name, write in WRITERS.items():
    path = write(tmp_path / name, array.astype('i2') if 'mrc' in name else array)
    volume = volumes.open_volume(path, reading=Reading(voxel_size=(7, 8, 9)))
    assert volume.voxel_size_zyx == (7.0, 8.0, 9.0)


def test_options_that_a_format_does_not_have_are_refused(tmp_path):
  array = format_support.values(2, 4, 6)
  for name in ('a.png', 'a.tif', 'a.mrc', 'a.h5', 'a.zarr', 'precomputed'):
    path = WRITERS[name](tmp_path / name, array.astype('i2') if 'mrc' in name else array)
    with pytest.raises(DataError, match=r'reading\.level=1'):
      volumes.open_volume(path, reading=Reading(level=1))
    with pytest.raises(DataError, match=r'reading\.signed=False'):
      volumes.open_volume(path, reading=Reading(signed=False))


def test_voxels_of_another_shape_than_announced_are_refused():
  class Wrong(volumes.ArrayVolume):
    def _read(self, index):
      return super()._read(index)[1:]

  volume = Wrong(format_support.values(2, 4, 5))
  expected = r'section 1: its voxels are \(3, 5\), but its header announces \(4, 5\)'
  with pytest.raises(DataError, match=expected):
    volume.section(1)
