"""MRC in all its forms, written with mrcfile, and what is wrong with damaged ones."""

import bz2
import gzip
import struct
import time

import mrcfile
import numpy as np
import pytest
from format_support import VOXEL_SIZE, values, write_mrc

from emseg_jax.config import Reading
from emseg_jax.data import volumes
from emseg_jax.errors import DataError

MODES = {'i1': 0, 'i2': 1, 'f4': 2, 'u2': 6, 'f2': 12}
PACKED = ('a.mrc', 'a.map.gz', 'a.rec.bz2')


def patch(path, at, data):
  """Overwrites bytes of the header."""
  whole = bytearray(path.read_bytes())
  whole[at : at + len(data)] = data
  path.write_bytes(whole)


@pytest.mark.parametrize('name', PACKED)
@pytest.mark.parametrize('dtype', list(MODES))
def test_every_mode_is_read_as_it_was_written(tmp_path, dtype, name):
  array = values(3, 4, 5, dtype=dtype)
  volume = volumes.open_volume(write_mrc(tmp_path / name, array))
  assert (volume.kind, volume.axes, volume.dtype) == ('mrc', 'ZYX', np.dtype(dtype))
  assert volume.names == ('a[000]', 'a[001]', 'a[002]')
  assert volume.files == (str(tmp_path / name),)
  assert volume.cheap_boxes
  assert volume.voxel_size_zyx == VOXEL_SIZE
  np.testing.assert_array_equal(volume[:], array)


@pytest.mark.parametrize('stamp', [b'\x11\x11\0\0', b'\0\0\0\0', b'DD\0\0'])
def test_big_endian_is_read_even_under_a_wrong_stamp(tmp_path, stamp):
  array = values(3, 4, 5, dtype='i2')
  with mrcfile.new(tmp_path / 'a.mrc', array) as file:
    header = file.header.copy()
  header = header.astype(header.dtype.newbyteorder('>'))
  header.machst[:] = list(stamp)
  (tmp_path / 'a.mrc').write_bytes(header.tobytes() + array.astype('>i2').tobytes())
  volume = volumes.open_volume(tmp_path / 'a.mrc')
  assert volume.dtype.isnative
  np.testing.assert_array_equal(volume[:], array)


def test_bytes_are_signed_unless_imod_or_the_user_says_otherwise(tmp_path):
  path = write_mrc(tmp_path / 'a.mrc', values(2, 4, 5, dtype='i1'))
  signed = values(2, 4, 5, dtype='i1')
  np.testing.assert_array_equal(volumes.open_volume(path)[:], signed)
  unsigned = volumes.open_volume(path, reading=Reading(signed=False))
  assert unsigned.dtype == np.uint8
  np.testing.assert_array_equal(unsigned[:], signed.view('u1'))
  # The stamp of IMOD at byte 152, its flags at 156: bit 0 stands for signed bytes.
  for flags, dtype in ((0, 'u1'), (1, 'i1'), (4, 'u1'), (5, 'i1')):
    patch(path, 152, struct.pack('<ii', 1146047817, flags))
    np.testing.assert_array_equal(volumes.open_volume(path)[:], signed.view(dtype))
    assert volumes.open_volume(path).dtype == dtype
    forced = volumes.open_volume(path, reading=Reading(signed=True))
    np.testing.assert_array_equal(forced[:], signed)
  write_mrc(path, values(2, 4, 5, dtype='i2'))
  with pytest.raises(DataError, match=r'signed=True is for 8-bit files, mode 0, this is mode 1'):
    volumes.open_volume(path, reading=Reading(signed=True))


def test_the_order_of_axes_in_the_header_is_honoured(tmp_path):
  array = values(3, 4, 5, dtype='i2')  # as stored: sections, rows, columns
  path = write_mrc(tmp_path / 'a.mrc', array)
  patch(path, 64, struct.pack('<iii', 2, 3, 1))  # columns are Y, rows are Z, sections are X
  volume = volumes.open_volume(path)
  np.testing.assert_array_equal(volume[:], array.transpose(1, 2, 0))
  # The cell is along X, Y, Z, and so are its intervals, here 5, 4, 3 as mrcfile wrote them.
  assert volume.voxel_size_zyx == VOXEL_SIZE
  np.testing.assert_array_equal(volumes.open_volume(path, reading=Reading(axes='ZYX'))[:], array)
  patch(path, 64, struct.pack('<iii', 0, 0, 0))  # old files
  np.testing.assert_array_equal(volumes.open_volume(path)[:], array)
  patch(path, 64, struct.pack('<iii', 1, 2, 2))
  with pytest.raises(DataError, match=r'mapc, mapr, maps = \[1, 2, 2\], but 1, 2 and 3'):
    volumes.open_volume(path)


@pytest.mark.filterwarnings('error')
def test_a_damaged_voxel_size_is_unknown_without_a_warning_of_numpy(tmp_path):
  path = write_mrc(tmp_path / 'a.mrc', values(3, 4, 5, dtype='i1'))
  patch(path, 40, bytes.fromhex('0100a07f'))  # cella.x, a NaN whose arithmetic signals
  assert volumes.open_volume(path).voxel_size_zyx == (*VOXEL_SIZE[:2], None)


def test_voxel_size_is_nm_and_zero_is_unknown(tmp_path):
  array = values(2, 4, 5, dtype='i2')
  assert volumes.open_volume(
    write_mrc(tmp_path / 'a.mrc', array, voxel_size=None)
  ).voxel_size_zyx is None  # fmt: skip
  write_mrc(tmp_path / 'a.mrc', array, voxel_size=(0, 1.5, 1.5))
  assert volumes.open_volume(tmp_path / 'a.mrc').voxel_size_zyx == (None, 1.5, 1.5)


def test_image_stacks_are_sections_and_volume_stacks_are_refused(tmp_path):
  array = values(4, 4, 5, dtype='i2')
  path = write_mrc(tmp_path / 'a.st', array)
  patch(path, 88, struct.pack('<i', 0))
  assert volumes.open_volume(path).axes == 'ZYX'
  patch(path, 88, struct.pack('<i', 401))
  patch(path, 36, struct.pack('<i', 2))  # mz: two sections per volume
  with pytest.raises(DataError, match='has 2 time points, but one is needed'):
    volumes.open_volume(path)
  patch(path, 36, struct.pack('<i', 4))
  np.testing.assert_array_equal(volumes.open_volume(path)[:], array)
  patch(path, 36, struct.pack('<i', 3))
  with pytest.raises(DataError, match='stack of volumes of 3 sections each, but has 4'):
    volumes.open_volume(path)


def test_notes_behind_the_header_are_skipped(tmp_path):
  array = values(2, 4, 5, dtype='i2')
  with mrcfile.new(tmp_path / 'a.mrc', array) as file:
    file.set_extended_header(np.frombuffer(b'x' * 160, 'V1'))
  np.testing.assert_array_equal(volumes.open_volume(tmp_path / 'a.mrc')[:], array)


@pytest.mark.parametrize('mode', [3, 4, 16, 101, -1])
def test_other_modes_are_refused_by_number(tmp_path, mode):
  path = write_mrc(tmp_path / 'a.mrc', values(2, 4, 5, dtype='f4'))
  patch(path, 12, struct.pack('<i', mode))
  with pytest.raises(DataError, match=rf'has the mode {mode}, but only 0 \(int8\)'):
    volumes.open_volume(path)


def test_a_file_shorter_than_its_header_says_is_refused_when_opened(tmp_path):
  path = write_mrc(tmp_path / 'a.mrc', values(8, 16, 16, dtype='i2'))
  path.write_bytes(path.read_bytes()[:-1])
  expected = r'announces 8 x 16 x 16 int16, 5120 bytes in all, but the file has 5119; it was cut'
  with pytest.raises(DataError, match=expected):
    volumes.open_volume(path)
  path.write_bytes(path.read_bytes()[:1000])
  with pytest.raises(DataError, match=r"a\.mrc: is no MRC file, or cut short: 'MAP' is missing"):
    volumes.open_volume(path)


def test_a_file_cut_short_after_opening_is_an_error_and_no_crash(tmp_path):
  path = write_mrc(tmp_path / 'a.mrc', values(8, 64, 64, dtype='i2'))
  volume = volumes.open_volume(path)
  path.write_bytes(path.read_bytes()[:9000])
  with pytest.raises(DataError, match=r'a\.mrc: section 0: cannot be read, damaged or cut short'):
    volume.section(0)


@pytest.mark.parametrize('name', PACKED[1:])
def test_a_packed_file_cut_short_is_refused(tmp_path, name):
  path = write_mrc(tmp_path / name, values(8, 16, 16, dtype='i2'))
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(DataError, match=f'{name}: cannot be read, damaged or cut short'):
    volumes.open_volume(path)
  whole = write_mrc(tmp_path / 'whole.mrc', values(8, 16, 16, dtype='i2')).read_bytes()
  pack = gzip.compress if name.endswith('gz') else bz2.compress
  path.write_bytes(pack(whole[:-1]))  # nothing wrong with the packing
  with pytest.raises(DataError, match=r'announces 4096 bytes of voxels, but 4095 are there'):
    volumes.open_volume(path)


@pytest.mark.parametrize('sizes', [(10_000,) * 3, (2**31 - 1,) * 3, (-1, 5, 5), (0, 5, 5)])
@pytest.mark.parametrize('name', PACKED)
def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path, name, sizes):
  whole = bytearray(write_mrc(tmp_path / 'whole.mrc', values(2, 4, 5, dtype='f4')).read_bytes())
  whole[:12] = struct.pack('<iii', *sizes)
  pack = {'.gz': gzip.compress, '.bz2': bz2.compress}.get((tmp_path / name).suffix, bytes)
  (tmp_path / name).write_bytes(pack(bytes(whole)))
  start = time.perf_counter()
  with pytest.raises(DataError, match=r'announces|memory'):
    volumes.open_volume(tmp_path / name)
  assert time.perf_counter() - start < 1


def test_absurd_notes_are_refused_before_memory_is_taken(tmp_path):
  path = write_mrc(tmp_path / 'a.mrc', values(2, 4, 5, dtype='f4'))
  patch(path, 92, struct.pack('<i', 2**31 - 1))
  with pytest.raises(DataError, match='2147484831 bytes in all'):
    volumes.open_volume(path)
