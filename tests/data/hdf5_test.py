"""HDF5, written with h5py: which dataset, its axes and voxel size, what is damaged or missing."""

import json
import time

import h5py
import numpy as np
import pytest
from format_support import values, write_hdf5

from emseg_jax.config import Reading
from emseg_jax.data import arrays, hdf5, volumes
from emseg_jax.errors import DataError


@pytest.mark.parametrize('options', [{}, {'chunks': (2, 3, 4), 'compression': 'gzip'}])
@pytest.mark.parametrize(
  'dtype', ['?', 'u1', 'i1', '>u2', 'i2', 'u4', 'i8', 'u8', 'f2', '>f4', 'f8']
)
def test_every_type_is_read_as_it_was_written(tmp_path, dtype, options):
  array = values(3, 4, 5, dtype=dtype)
  volume = volumes.open_volume(write_hdf5(tmp_path / 'a.h5', array, **options))
  assert (volume.kind, volume.axes) == ('hdf5', 'ZYX')
  assert volume.dtype == np.dtype(dtype).newbyteorder('=')
  assert volume.names == ('a[000]', 'a[001]', 'a[002]')
  np.testing.assert_array_equal(volume[:], array)
  np.testing.assert_array_equal(volume.box((1, 2, 0), (3, 4, 2)), array[1:, 2:, :2])


def test_the_only_volume_of_a_file_is_found_others_must_be_named(tmp_path):
  array = values(3, 4, 5)
  path = write_hdf5(tmp_path / 'a.h5', array, name='volumes/raw')
  write_hdf5(path, values(7, 2), name='offsets')
  write_hdf5(path, np.zeros((2, 2, 2), 'S3'), name='words')
  np.testing.assert_array_equal(volumes.open_volume(path)[:], array)
  write_hdf5(path, values(6, 4, 5, dtype='u2'), name='labels')
  there = r'it has /labels \(6, 4, 5\) uint16, /offsets \(7, 2\) uint8, /volumes/raw \(3, 4, 5\)'
  with pytest.raises(DataError, match=rf'a\.h5: one dataset must be chosen, {there}'):
    volumes.open_volume(path)
  named = volumes.open_volume(f'{path}:/volumes/raw')
  assert (named.path, named.files) == (f'{path}:/volumes/raw', (str(path),))
  np.testing.assert_array_equal(named[:], array)
  assert volumes.open_volume(f'{path}:/offsets').axes == 'YX'
  for missing in ('/volumes', '/volumes/ra'):
    with pytest.raises(DataError, match=f'has no dataset {missing}; {there}'):
      volumes.open_volume(f'{path}:{missing}')
  with pytest.raises(DataError, match=r'nothing\.h5: no such file'):
    volumes.open_volume(f'{tmp_path}/nothing.h5:/raw')
  with pytest.raises(DataError, match='/words: has voxels of type'):
    volumes.open_volume(f'{path}:/words')


def test_a_file_without_volumes_says_so(tmp_path):
  with h5py.File(tmp_path / 'a.h5', 'w') as file:
    file['scalar'] = 3
    file['nothing'] = h5py.Empty('f4')
  with pytest.raises(DataError, match='one dataset must be chosen, it has none of numbers'):
    volumes.open_volume(tmp_path / 'a.h5')
  with pytest.raises(DataError, match='nothing: is empty'):
    volumes.open_volume(f'{tmp_path}/a.h5:/nothing')


def test_complex_numbers_are_refused(tmp_path):
  path = write_hdf5(tmp_path / 'a.h5', np.zeros((2, 3, 4), 'c8'))
  with pytest.raises(DataError, match='/raw: has voxels of type complex64'):
    volumes.open_volume(f'{path}:/raw')


def test_axes_come_from_labels_or_tags_or_the_user(tmp_path):
  array = values(2, 3, 4, 5)
  path = write_hdf5(tmp_path / 'a.h5', array)
  with pytest.raises(DataError, match='does not name its 4 axes'):
    volumes.open_volume(path)
  chosen = volumes.open_volume(path, reading=Reading(axes='CZYX', channel=1))
  np.testing.assert_array_equal(chosen[:], array[1])
  with h5py.File(path, 'r+') as file:
    for dimension, letter in zip(file['raw'].dims, 'zyxc', strict=True):
      dimension.label = letter
  np.testing.assert_array_equal(
    volumes.open_volume(path, reading=Reading(channel=4))[:], array[..., 4]
  )
  tags = {'axes': [{'key': key, 'typeFlags': 2} for key in 'xyzc']}  # goes first
  with h5py.File(path, 'r+') as file:
    file['raw'].attrs['axistags'] = json.dumps(tags)
  np.testing.assert_array_equal(
    volumes.open_volume(path, reading=Reading(channel=4))[:], array[..., 4].T
  )


@pytest.mark.parametrize(
  ('attributes', 'expected'),
  [
    ({'resolution': (40.0, 4.0, 4.0)}, (40.0, 4.0, 4.0)),  # CREMI
    ({'element_size_um': np.array([0.05, 0.005, 0.004])}, (50.0, 5.0, 4.0)),  # Fiji
    ({'resolution': (4.0, 4.0)}, (None, 4.0, 4.0)),
    ({'resolution': (0.0, 4.0, np.nan)}, (None, 4.0, None)),
    ({'resolution': 'high'}, None),
    ({}, None),
  ],
)
def test_voxel_size_in_nm(tmp_path, attributes, expected):
  path = write_hdf5(tmp_path / 'a.h5', values(3, 4, 5), attributes=attributes)
  assert volumes.open_volume(path).voxel_size_zyx == expected


def test_datasets_in_one_piece_are_mapped_others_left_to_the_library(tmp_path):
  array = values(3, 4, 5)
  plain = volumes.open_volume(write_hdf5(tmp_path / 'a.h5', array))
  assert isinstance(plain._stored, arrays.Mapped)
  packed = volumes.open_volume(write_hdf5(tmp_path / 'b.h5', array, compression='lzf'))
  assert isinstance(packed._stored, hdf5.Dataset)
  # Its file may be written to between two reads.
  np.testing.assert_array_equal(packed.section(0), array[0])
  write_hdf5(tmp_path / 'b.h5', array, name='prediction')
  np.testing.assert_array_equal(packed.section(1), array[1])


def test_what_was_never_written_is_the_fill_value_as_the_format_has_it(tmp_path):
  with h5py.File(tmp_path / 'a.h5', 'w') as file:
    file.create_dataset('raw', (2, 4, 5), 'u1', fillvalue=7)
  np.testing.assert_array_equal(volumes.open_volume(tmp_path / 'a.h5')[:], 7)


@pytest.mark.parametrize('share', [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize('options', [{}, {'compression': 'gzip', 'chunks': (2, 16, 16)}])
def test_a_truncated_file_is_refused(tmp_path, options, share):
  path = write_hdf5(tmp_path / 'a.h5', values(8, 16, 16), **options)
  data = path.read_bytes()
  path.write_bytes(data[: int(share * len(data))])
  with pytest.raises(DataError, match=r'a\.h5: cannot be read, damaged or cut short'):
    volumes.open_volume(path)


def test_a_file_cut_short_after_opening_is_an_error_and_no_crash(tmp_path):
  for options in ({}, {'compression': 'gzip'}):
    path = write_hdf5(tmp_path / f'{len(options)}.h5', values(8, 64, 64), **options)
    volume = volumes.open_volume(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r'section 7: cannot be read, damaged or cut short'):
      volume.section(7)


def test_damaged_chunks_are_named_by_section(tmp_path):
  path = write_hdf5(
    tmp_path / 'a.h5', values(4, 16, 16), chunks=(1, 16, 16), compression='gzip', fletcher32=True
  )
  with h5py.File(path) as file:
    place = file['raw'].id.get_chunk_info(2).byte_offset
  data = bytearray(path.read_bytes())
  data[place + 5] ^= 0xFF
  path.write_bytes(data)
  volume = volumes.open_volume(path)
  np.testing.assert_array_equal(volume.section(3), values(4, 16, 16)[3])
  with pytest.raises(DataError, match=r'a\.h5: section 2: cannot be read, damaged'):
    volume.section(2)


def test_an_unknown_compression_is_named(tmp_path, monkeypatch):
  path = write_hdf5(tmp_path / 'a.h5', values(4, 8, 8), compression='lzf')
  monkeypatch.setattr(h5py.h5z, 'filter_avail', lambda code: False)
  with pytest.raises(
    DataError, match=r'compressed by filter 32000 \(lzf\), which h5py lacks; .*\[hdf5plugin\]'
  ):
    volumes.open_volume(path)


def test_absurd_chunks_are_refused_before_memory_is_taken(tmp_path):
  with h5py.File(tmp_path / 'a.h5', 'w') as file:
    # Chunks of HDF5 end at 4 GB; nothing is written yet.
    file.create_dataset('raw', (4000, 2000, 2000), 'u1', chunks=(1000, 2000, 2000))
  start = time.perf_counter()
  with pytest.raises(DataError, match='chunks of 1000 x 2000 x 2000 uint8, 4 GB each'):
    volumes.open_volume(tmp_path / 'a.h5')
  assert time.perf_counter() - start < 1


def test_parts_of_a_virtual_dataset_must_be_there(tmp_path):
  array = values(3, 4, 5)
  layout = h5py.VirtualLayout((3, 4, 5), 'u1')
  for i in range(3):
    write_hdf5(tmp_path / f'{i}.h5', array[i])
    layout[i] = h5py.VirtualSource(f'{i}.h5', 'raw', (4, 5))
  with h5py.File(tmp_path / 'all.h5', 'w') as file:
    file.create_virtual_dataset('raw', layout)
  np.testing.assert_array_equal(volumes.open_volume(tmp_path / 'all.h5')[:], array)
  (tmp_path / '1.h5').unlink()
  with pytest.raises(DataError, match=r'raw: its part 1\.h5 is missing'):
    volumes.open_volume(tmp_path / 'all.h5')
