"""Zarr, OME-Zarr, N5 and precomputed: which array, its axes and voxel size, and faults.

Zarr is written with zarr-python, the others with tensorstore, which also reads them: there, axes
and voxels are checked against numpy.
"""

import json
import logging
import shutil

import format_support
import numpy as np
import pytest
import zarr
from format_support import VOXEL_SIZE, values

from emseg_jax.config import Reading
from emseg_jax.data import volumes
from emseg_jax.errors import DataError

STRICT = Reading(missing='error')


@pytest.mark.parametrize('version', [2, 3])
@pytest.mark.parametrize(
  'dtype', ['?', 'u1', 'i1', '>u2', 'i2', 'u4', 'i8', 'u8', 'f2', 'f4', '>f8']
)
def test_zarr_of_every_type_is_read_as_it_was_written(tmp_path, dtype, version):
  if version == 3:  # which leaves the order of bytes to a codec
    dtype = dtype.removeprefix('>')
  array = values(3, 4, 5, dtype=dtype)
  volume = volumes.open_volume(
    format_support.write_zarr(tmp_path / 'a.zarr', array, version=version)
  )
  assert (volume.kind, volume.axes) == ('zarr', 'ZYX')
  assert volume.dtype == np.dtype(dtype).newbyteorder('=')
  assert volume.names == ('a[000]', 'a[001]', 'a[002]')
  assert (volume.voxel_size_zyx, volume.cheap_boxes) == (None, True)
  np.testing.assert_array_equal(volume[:], array)
  np.testing.assert_array_equal(volume.box((1, 2, 0), (3, 4, 2)), array[1:, 2:, :2])


@pytest.mark.parametrize('codec', ['zlib', 'zstd', 'blosc', 'none'])
def test_zarr_2_compressions(tmp_path, codec):
  import numcodecs

  array = values(4, 8, 8)
  made = {'zlib': numcodecs.Zlib(), 'zstd': numcodecs.Zstd(), 'blosc': numcodecs.Blosc()}
  path = format_support.write_zarr(tmp_path / 'a.zarr', array, compressors=made.get(codec))
  np.testing.assert_array_equal(volumes.open_volume(path)[:], array)


def test_sharded_zarr_3(tmp_path):
  array = values(8, 8, 8)
  path = format_support.write_zarr(
    tmp_path / 'a.zarr', array, version=3, chunks=(2, 2, 2), shards=(4, 4, 4)
  )
  np.testing.assert_array_equal(
    volumes.open_volume(path).box((1, 2, 3), (6, 7, 8)), array[1:6, 2:7, 3:]
  )


@pytest.mark.parametrize('version', ['0.4', '0.5'])
def test_ome_zarr_gives_axes_levels_and_voxel_size(tmp_path, version):
  array = values(4, 6, 8)
  path = format_support.write_ome_zarr(tmp_path / 'a.ome.zarr', array, version=version)
  volume = volumes.open_volume(path)
  assert (volume.kind, volume.axes, volume.names[0]) == ('zarr', 'ZYX', 'a[000]')
  assert volume.voxel_size_zyx == VOXEL_SIZE
  np.testing.assert_array_equal(volume[:], array)
  coarse = volumes.open_volume(path, reading=Reading(level=1))
  np.testing.assert_array_equal(coarse[:], array[::2, ::2, ::2])
  assert coarse.voxel_size_zyx == tuple(2 * n for n in VOXEL_SIZE)
  with pytest.raises(DataError, match=r'reading.level=2 is not there; allowed: 0 to 1'):
    volumes.open_volume(path, reading=Reading(level=2))
  # A level that is named itself is described by the group above it.
  for named in (f'{path}/1', f'{path}:/1'):
    volume = volumes.open_volume(named)
    assert volume.voxel_size_zyx == coarse.voxel_size_zyx
    np.testing.assert_array_equal(volume[:], array[::2, ::2, ::2])
  with pytest.raises(
    DataError, match=r'reading.level=1 is not there; allowed: 0, it has no others'
  ):
    volumes.open_volume(f'{path}:/1', reading=Reading(level=1))
  shutil.rmtree(path / '1')
  with pytest.raises(DataError, match=r'its array .*a\.ome\.zarr/1 is missing'):
    volumes.open_volume(path, reading=Reading(level=1))


def test_ome_zarr_with_channels_in_another_order(tmp_path):
  array = values(2, 4, 6, 8)
  path = format_support.write_ome_zarr(tmp_path / 'a.zarr', array, axes='cxyz', levels=1)
  with pytest.raises(DataError, match=r'has 2 channels \(axes CXYZ\)'):
    volumes.open_volume(path)
  volume = volumes.open_volume(path, reading=Reading(channel=1))
  np.testing.assert_array_equal(volume[:], array[1].T)
  assert volume.voxel_size_zyx == VOXEL_SIZE
  given = volumes.open_volume(path, reading=Reading(channel=1, axes='CZYX'))
  np.testing.assert_array_equal(given[:], array[1])


def test_ome_zarr_without_units_has_no_voxel_size(tmp_path):
  path = format_support.write_ome_zarr(tmp_path / 'a.zarr', values(4, 6, 8), unit=None)
  assert volumes.open_volume(path).voxel_size_zyx is None


def test_scales_of_all_levels_and_of_one_are_multiplied(tmp_path):
  path = format_support.write_ome_zarr(tmp_path / 'a.zarr', values(4, 6, 8), levels=1)
  attributes = json.loads((path / '.zattrs').read_text())
  attributes['multiscales'][0]['coordinateTransformations'] = [
    {'type': 'scale', 'scale': [1, 10, 10]}, {'type': 'translation', 'translation': [1, 1, 1]}
  ]  # fmt: skip
  (path / '.zattrs').write_text(json.dumps(attributes))
  assert volumes.open_volume(path).voxel_size_zyx == (30.0, 50.0, 40.0)


def test_names_of_dimensions_are_axes_if_they_are_letters(tmp_path):
  array = values(4, 6, 8)
  path = format_support.write_zarr(
    tmp_path / 'a.zarr', array, version=3, dimension_names=('x', 'y', 'z')
  )
  np.testing.assert_array_equal(volumes.open_volume(path)[:], array.T)
  path = format_support.write_zarr(
    tmp_path / 'b.zarr', array, version=3, dimension_names=('plane', 'row', None)
  )
  np.testing.assert_array_equal(volumes.open_volume(path)[:], array)
  path = format_support.write_zarr(tmp_path / 'c.zarr', array)  # as xarray writes them
  (path / '.zattrs').write_text('{"_ARRAY_DIMENSIONS": ["x", "y", "z"]}')
  np.testing.assert_array_equal(volumes.open_volume(path)[:], array.T)


def test_groups_without_levels_have_one_array_or_it_is_named(tmp_path):
  path = tmp_path / 'a.zarr'
  zarr.open_group(path, mode='w', zarr_format=2)
  with pytest.raises(DataError, match=r'a\.zarr: has no Zarr, N5 or precomputed array here$'):
    volumes.open_volume(path)
  array = values(4, 6, 8)
  format_support.write_zarr(path / 'raw', array)
  np.testing.assert_array_equal(volumes.open_volume(path)[:], array)
  format_support.write_zarr(path / 'more' / 'labels', array + 1)
  expected = r'array here, there are more/labels, raw; name one as in .*a\.zarr:/more/labels'
  with pytest.raises(DataError, match=expected):
    volumes.open_volume(path)
  np.testing.assert_array_equal(volumes.open_volume(f'{path}:/raw')[:], array)
  with pytest.raises(DataError, match=r'nothing has no|:/nothing: has no'):
    volumes.open_volume(f'{path}:/nothing')


@pytest.mark.parametrize('compression', ['gzip', 'raw', 'blosc', 'zstd', 'bzip2', 'xz'])
def test_n5_lists_x_first(tmp_path, compression):
  array = values(4, 6, 8, dtype='u2')
  more = {'blosc': {'cname': 'lz4', 'clevel': 5, 'shuffle': 1}}.get(compression, {})
  path = format_support.write_n5(
    tmp_path / 'a.n5', array, name='volumes/raw', compression=compression, **more
  )
  for name in (path, f'{path}:/volumes/raw', f'{path}/volumes'):
    volume = volumes.open_volume(name)
    assert (volume.kind, volume.axes, volume.voxel_size_zyx) == ('n5', 'ZYX', None)
    np.testing.assert_array_equal(volume[:], array)
  given = volumes.open_volume(path, reading=Reading(axes='ZYX'))
  np.testing.assert_array_equal(given[:], array.T)


@pytest.mark.parametrize(
  ('attributes', 'expected'),
  [
    ({'resolution': [4.0, 5.0, 30.0]}, VOXEL_SIZE),
    ({'resolution': [4.0, 5.0, 30.0], 'units': ['um', 'um', 'um']}, (30e3, 5e3, 4e3)),
    ({'pixelResolution': {'dimensions': [0.004, 0.005, 0.03], 'unit': 'um'}}, VOXEL_SIZE),
    ({'pixelResolution': {'dimensions': [4, 5, 30]}}, None),
    ({'resolution': [4, 5, 30], 'downsamplingFactors': [2, 2, 1]}, (30.0, 10.0, 8.0)),
    ({'resolution': [4, 5, 30], 'axes': ['z', 'y', 'x']}, (4.0, 5.0, 30.0)),
  ],
)
def test_voxel_size_of_n5(tmp_path, attributes, expected):
  path = format_support.write_n5(tmp_path / 'a.n5', values(4, 6, 8))
  format_support.edit_json(path / 'attributes.json', **attributes)
  assert volumes.open_volume(path).voxel_size_zyx == expected


def test_levels_of_n5(tmp_path):
  array = values(4, 6, 8)
  path = tmp_path / 'a.n5'
  for level in range(2):
    format_support.write_n5(path, array[:, :: level + 1, :: level + 1], name=f'raw/s{level}')
  described = {'resolution': [4, 5, 30], 'scales': [[1, 1, 1], [2, 2, 1]]}
  (path / 'raw' / 'attributes.json').write_text(json.dumps(described))
  fine = volumes.open_volume(f'{path}:/raw')
  np.testing.assert_array_equal(fine[:], array)
  assert fine.voxel_size_zyx == VOXEL_SIZE
  coarse = volumes.open_volume(f'{path}:/raw', reading=Reading(level=1))
  np.testing.assert_array_equal(coarse[:], array[:, ::2, ::2])
  assert coarse.voxel_size_zyx == (30.0, 10.0, 8.0)
  with pytest.raises(DataError, match=r'reading.level=2 is not there: no array s2'):
    volumes.open_volume(f'{path}:/raw', reading=Reading(level=2))


@pytest.mark.parametrize('prefix', ['', 'precomputed://', 'file://', 'precomputed://file://'])
def test_precomputed_with_an_offset_levels_and_nm(tmp_path, prefix):
  array = values(4, 6, 8)
  path = tmp_path / 'with space'
  format_support.write_precomputed(path, array)
  format_support.write_precomputed(path, array[::2, ::2, ::2], scale=1)
  volume = volumes.open_volume(f'{prefix}{path}')
  assert (volume.kind, volume.axes) == ('precomputed', 'ZYX')
  assert volume.voxel_size_zyx == VOXEL_SIZE
  np.testing.assert_array_equal(volume[:], array)
  np.testing.assert_array_equal(volume.box((1, 2, 3), (4, 6, 5)), array[1:, 2:, 3:5])
  coarse = volumes.open_volume(f'{prefix}{path}', reading=Reading(level=1))
  np.testing.assert_array_equal(coarse[:], array[::2, ::2, ::2])
  assert coarse.voxel_size_zyx == tuple(2 * n for n in VOXEL_SIZE)


def test_precomputed_channels(tmp_path):
  array = values(4, 6, 8, 3)
  volume = volumes.open_volume(format_support.write_precomputed(tmp_path / 'a', array))
  assert volume.axes == 'ZYXC'
  np.testing.assert_array_equal(volume[:], array)
  one = volumes.open_volume(tmp_path / 'a', reading=Reading(channel=2))
  np.testing.assert_array_equal(one[:], array[..., 2])


MISSING = {
  'a.zarr': (format_support.write_zarr, '1.0.1'),
  'v3.zarr': (lambda p, a: format_support.write_zarr(p, a, version=3), 'c/1/0/1'),
  'a.n5': (format_support.write_n5, '1/0/1'),
  'precomputed': (format_support.write_precomputed, 's0/9-13_6-9_9-11'),
}


@pytest.mark.parametrize('name', list(MISSING))
def test_a_missing_chunk_is_an_error_or_filled_in_with_a_warning(tmp_path, name, caplog):
  array = values(4, 6, 8)  # chunks are [2, 3, 4]
  write, chunk = MISSING[name]
  path = write(tmp_path / name, array)
  (path / chunk).unlink()
  volume = volumes.open_volume(path, reading=STRICT)
  np.testing.assert_array_equal(volume.box((2, 0, 0), (4, 3, 4)), array[2:, :3, :4])
  expected = rf'{name}: .*{chunk}" is missing; copy it again, or set reading.missing=fill'
  with pytest.raises(DataError, match=expected):
    volume.section(3)
  array[2:, :3, 4:] = 0
  filled = volumes.open_volume(path)
  with caplog.at_level(logging.WARNING):
    np.testing.assert_array_equal(filled[:], array)
  assert f'{chunk}" is missing; read as the fill value 0, so far 1 times' in caplog.text
  assert 'so far 2 times' in caplog.text
  assert 'so far 3' not in caplog.text  # reported at 1, 2, 4, 8, ...


def test_the_fill_value_is_that_of_the_store(tmp_path, caplog):
  path = format_support.write_zarr(tmp_path / 'a.zarr', values(4, 6, 8), fill_value=9)
  (path / '0.0.0').unlink()
  volume = volumes.open_volume(path)
  np.testing.assert_array_equal(volume.box((0, 0, 0), (1, 3, 4)), 9)
  assert 'fill value 9' in caplog.text


@pytest.mark.parametrize('name', list(MISSING))
def test_damaged_chunks_and_files_that_vanish_are_named(tmp_path, name):
  write, chunk = MISSING[name]
  path = write(tmp_path / name, values(4, 6, 8))
  volume = volumes.open_volume(path)
  (path / chunk).write_bytes(b'damaged')
  with pytest.raises(DataError, match=f'{name}: cannot be read: .*{chunk}'):
    volume.section(3)
  shutil.rmtree(path)
  with pytest.raises(DataError, match=f'{name}: is no longer there'):
    volume.section(3)


def test_unknown_compressions_are_named(tmp_path):
  path = format_support.write_zarr(tmp_path / 'a.zarr', values(4, 6, 8))
  format_support.edit_json(path / '.zarray', compressor={'id': 'squeeze'})
  with pytest.raises(DataError, match=r'a\.zarr: cannot be read: .*squeeze'):
    volumes.open_volume(path)
  path = format_support.write_zarr(tmp_path / 'b.zarr', values(4, 6, 8), version=3)
  format_support.edit_json(path / 'zarr.json', codecs=[{'name': 'bytes'}, {'name': 'squeeze'}])
  with pytest.raises(DataError, match=r'b\.zarr: cannot be read: .*"squeeze" is not registered$'):
    volumes.open_volume(path)
  path = format_support.write_n5(tmp_path / 'a.n5', values(4, 6, 8))
  format_support.edit_json(path / 'attributes.json', compression={'type': 'squeeze'})
  with pytest.raises(DataError, match=r'a\.n5: cannot be read: .*squeeze'):
    volumes.open_volume(path)


def test_absurd_chunks_are_refused(tmp_path):
  """Tensorstore would end the process where it cannot have the memory of one chunk."""
  path = format_support.write_zarr(tmp_path / 'a.zarr', values(4, 6, 8))
  format_support.edit_json(path / '.zarray', shape=[10**6] * 3, chunks=[10**5] * 3)
  with pytest.raises(DataError, match='chunks of 100000 x 100000 x 100000 uint8, 1000000 GB each'):
    volumes.open_volume(path)


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('.zarray', '{', r'\.zarray: is no JSON text'),
    ('.zarray', '[1, 2]', r'\.zarray: is JSON, but no object'),
    ('.zarray', '{}', 'cannot be read'),
    ('zarr.json', '{"node_type": "array"}', 'cannot be read'),
    ('attributes.json', '{"dimensions": "many"}', 'cannot be read'),
    ('info', '{"scales": [{}]}', 'cannot be read'),
    ('info', '{"scales": []}', r'reading.level=0 is not there'),
    ('.zattrs', '{"multiscales": [{"datasets": 5}]}', 'cannot be read'),
  ],
)
def test_damaged_descriptions_are_refused(tmp_path, name, text, message):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / name).write_text(text)
  with pytest.raises(DataError, match=message):
    volumes.open_volume(tmp_path / 'a')


def test_folders_of_images_may_have_notes_of_these_names(tmp_path):
  format_support.write_png(tmp_path / 'a.png', values(4, 5))
  (tmp_path / 'attributes.json').write_text('{"who": "me"}')
  assert volumes.open_volume(tmp_path).kind == 'folder'
