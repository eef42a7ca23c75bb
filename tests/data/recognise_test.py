"""Files are known by content first, then by name; paths may name a dataset or be addresses."""

import shutil

import format_support
import numpy as np
import pytest
from format_support import values

from emseg_jax.config import Reading
from emseg_jax.data import recognise, volumes
from emseg_jax.errors import DataError

FILES = {
  'PNG': ('a.png', lambda path, array: format_support.write_png(path, array[0])),
  'JPEG': ('a.jpg', lambda path, array: format_support.write_jpeg(path, array[0])),
  'TIFF': ('a.tif', format_support.write_tiff),
  'MRC': ('a.mrc', lambda path, array: format_support.write_mrc(path, array.astype('i2'))),
  'HDF5': ('a.h5', format_support.write_hdf5),
}


@pytest.mark.parametrize('kind', list(FILES))
@pytest.mark.parametrize('name', ['wrong.png', 'wrong.h5', 'noname', 'odd.dat'])
def test_content_goes_before_the_name(tmp_path, kind, name):
  right, write = FILES[kind]
  path = write(tmp_path / right, values(3, 8, 9))
  expected = volumes.open_volume(path)
  shutil.copy(path, tmp_path / name)
  volume = volumes.open_volume(tmp_path / name)
  assert volume.kind == expected.kind
  np.testing.assert_array_equal(volume.section(0), expected.section(0))


def test_content_is_known_through_packing_and_where_the_standards_put_it(tmp_path):
  array = values(3, 8, 9, dtype='i2')
  packed = format_support.write_mrc(tmp_path / 'a.mrc.gz', array)
  assert recognise.content(str(packed)) == 'MRC'
  shutil.copy(packed, tmp_path / 'b.gz')
  np.testing.assert_array_equal(volumes.open_volume(tmp_path / 'b.gz')[:], array)
  # MATLAB puts a block of its own in front.
  path = format_support.write_hdf5(tmp_path / 'a.h5', array)
  (tmp_path / 'a.mat').write_bytes(b'MATLAB 7.3'.ljust(512) + path.read_bytes())
  np.testing.assert_array_equal(volumes.open_volume(tmp_path / 'a.mat')[:], array)
  for name, form, options in (
    ('big', 'TIFF', {'bigtiff': True}), ('motorola', 'TIFF', {'byteorder': '>'}),
    ('both', 'TIFF', {'bigtiff': True, 'byteorder': '>'}),
  ):  # fmt: skip
    format_support.write_tiff(tmp_path / name, array, **options)
    assert recognise.content(str(tmp_path / name)) == form


def test_an_error_names_content_and_name_where_they_differ(tmp_path):
  path = format_support.write_mrc(tmp_path / 'a.mrc', values(3, 8, 9, dtype='i2'))
  (tmp_path / 'a.png').write_bytes(path.read_bytes()[:-1])
  expected = r'a\.png: .*cut short.* \(it is named PNG, but its content is MRC\)$'
  with pytest.raises(DataError, match=expected):
    volumes.open_volume(tmp_path / 'a.png')


@pytest.mark.parametrize('name', ['a.mrc', 'a.h5', 'a.nii', 'a.nii.gz', 'a.rec.bz2', 'a.map'])
def test_content_of_no_format_is_refused_by_the_reader_of_the_name(tmp_path, name):
  for content in (b'', b'version https://git-lfs.github.com/spec/v1\n' * 20, b'\x1f\x8b', b'BZh9'):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f'{name}: '):
      volumes.open_volume(tmp_path / name)


def test_datasets_of_paths_that_have_none_are_refused(tmp_path):
  format_support.write_tiff(tmp_path / 'a.tif', values(3, 8, 9))
  with pytest.raises(DataError, match=r'a\.tif: is no HDF5 file, Zarr or N5 folder, so that /raw'):
    volumes.open_volume(f'{tmp_path}/a.tif:/raw')
  with pytest.raises(DataError, match='is no Zarr, N5 or precomputed folder, so that /raw'):
    volumes.open_volume(f'{tmp_path}:/raw')


@pytest.mark.parametrize(
  ('path', 'expected'),
  [
    ('a.h5:/raw', ('a.h5', '/raw')),
    ('dir/a.n5:/volumes/raw', ('dir/a.n5', '/volumes/raw')),
    ('http://host:80/a.zarr', ('http://host:80/a.zarr', None)),
    ('http://host:80/a.zarr:/0', ('http://host:80/a.zarr', '/0')),
    ('gs://bucket/a', ('gs://bucket/a', None)),
    ('a.tif', ('a.tif', None)),
  ],
)
def test_datasets_stand_behind_a_colon(path, expected):
  assert recognise.split_dataset(path) == expected


def test_a_path_that_exists_is_never_taken_apart(tmp_path):
  folder = tmp_path / 'odd:'
  folder.mkdir()
  path = format_support.write_png(folder / 'a.png', values(4, 5))
  np.testing.assert_array_equal(volumes.open_volume(path).section(0), values(4, 5))


def test_addresses_of_files_are_paths(tmp_path):
  path = format_support.write_hdf5(tmp_path / 'with space.h5', values(3, 4, 5))
  for name in (f'file://{path}', f'file://{path}:/raw', f'file://{path}'.replace(' ', '%20')):
    np.testing.assert_array_equal(volumes.open_volume(name)[:], values(3, 4, 5))


def test_a_folder_of_images_takes_no_other_files(tmp_path):
  format_support.write_png(tmp_path / 'a.png', values(4, 5))
  format_support.write_mrc(tmp_path / 'b.mrc', values(2, 4, 5, dtype='i2'))
  with pytest.raises(DataError, match=r'b\.mrc: is MRC, but only images are read from a folder'):
    volumes.open_volume(tmp_path)


def test_one_channel_of_images_and_axes_that_they_cannot_have(tmp_path):
  array = values(4, 5, 3)
  path = format_support.write_png(tmp_path / 'a.png', array)
  for place in (path, tmp_path):
    volume = volumes.open_volume(place, reading=Reading(channel=1))
    assert (volume.channels, volume.axes[-2:]) == (1, 'YX')
    np.testing.assert_array_equal(volume.section(0), array[..., 1])
  with pytest.raises(DataError, match=r'has 3 channels, reading\.channel=3 is beyond 0 to 2'):
    volumes.open_volume(path, reading=Reading(channel=3))
  with pytest.raises(DataError, match=r'its axes are YX, not reading\.axes=XY'):
    volumes.open_volume(path, reading=Reading(axes='XY'))
