"""Axes of TIFF stacks, from the file or given, and the channel that is read."""

import struct
import time

import numpy as np
import pytest
import tifffile
from format_support import values

from emseg_jax.config import Reading
from emseg_jax.data import volumes
from emseg_jax.errors import DataError


def write(path, array, axes, form):
  if form == 'ome':
    tifffile.imwrite(path, array, ome=True, photometric='minisblack', metadata={'axes': axes})
  else:
    tifffile.imwrite(path, array, imagej=True, metadata={'axes': axes})
  return path


@pytest.mark.parametrize(
  ('axes', 'form'), [('ZCYX', 'imagej'), ('ZCYX', 'ome'), ('CZYX', 'ome'), ('CYX', 'imagej')]
)
def test_one_of_several_channels_is_read(tmp_path, axes, form):
  shape = dict(zip('ZCYX', (4, 2, 6, 7), strict=True))
  array = values(*[shape[a] for a in axes])
  path = write(tmp_path / 'a.tif', array, axes, form)
  found = ', '.join(f'{a}={shape[a]}' for a in axes)
  with pytest.raises(DataError, match=f'has the axes {found}, .* with reading.channel'):
    volumes.open_volume(path)
  volume = volumes.open_volume(path, reading=Reading(channel=1))
  expected = array.take(1, axes.index('C'))
  np.testing.assert_array_equal(volume[:], expected if 'Z' in axes else expected[None])
  with pytest.raises(DataError, match=r'has 2 channels, reading\.channel=2 is beyond 0 to 1'):
    volumes.open_volume(path, reading=Reading(channel=2))


@pytest.mark.parametrize('axes', ['TYX', 'CYX', 'ZYX'])
def test_given_axes_go_before_those_of_the_file(tmp_path, axes):
  array = values(3, 6, 7)
  path = write(tmp_path / 'a.tif', array, axes, 'imagej')
  np.testing.assert_array_equal(volumes.open_volume(path, reading=Reading(axes='ZYX'))[:], array)
  one = volumes.open_volume(path, reading=Reading(axes='CYX', channel=2))
  assert one.kind == 'image'
  np.testing.assert_array_equal(one.section(0), array[2])
  with pytest.raises(DataError, match='save one time point'):
    volumes.open_volume(path, reading=Reading(axes='TYX'))
  for wrong in ('CZYX', 'ZXY', 'YXZ', 'YX'):
    with pytest.raises(DataError, match=f'which reading.axes={wrong} cannot name'):
      volumes.open_volume(path, reading=Reading(axes=wrong))


def test_a_plain_stack_is_zyx_and_one_page_may_be_called_so(tmp_path):
  array = values(3, 6, 7)
  tifffile.imwrite(tmp_path / 'a.tif', array, photometric='minisblack', metadata=None)
  assert volumes.open_volume(tmp_path / 'a.tif').axes == 'ZYX'
  tifffile.imwrite(tmp_path / 'b.tif', array[0], photometric='minisblack', metadata=None)
  volume = volumes.open_volume(tmp_path / 'b.tif', reading=Reading(axes='ZYX'))
  np.testing.assert_array_equal(volume.section(0), array[0])


@pytest.mark.parametrize('planar', ['contig', 'separate'])
def test_channels_within_the_page(tmp_path, planar):
  array = values(3, 6, 7, 5)
  stored = array if planar == 'contig' else np.moveaxis(array, -1, 1)
  path = tmp_path / 'a.tif'
  tifffile.imwrite(path, stored, photometric='minisblack', planarconfig=planar)
  with pytest.raises(DataError, match=r'has 5 channels \(minisblack\), .* reading\.channel'):
    volumes.open_volume(path)
  volume = volumes.open_volume(path, reading=Reading(channel=3))
  assert (volume.axes, volume.channels) == ('ZYX', 1)
  np.testing.assert_array_equal(volume[:], array[..., 3])
  with pytest.raises(DataError, match=r'has 5 channels, reading\.channel=5 is beyond 0 to 4'):
    volumes.open_volume(path, reading=Reading(channel=5))


def test_one_colour_of_rgb(tmp_path):
  array = values(3, 6, 7, 3)
  tifffile.imwrite(tmp_path / 'a.tif', array, photometric='rgb')
  volume = volumes.open_volume(tmp_path / 'a.tif', reading=Reading(channel=2))
  np.testing.assert_array_equal(volume[:], array[..., 2])
  given = volumes.open_volume(tmp_path / 'a.tif', reading=Reading(axes='ZYXC'))
  np.testing.assert_array_equal(given[:], array)


@pytest.mark.parametrize('compression', [None, 'deflate'])
@pytest.mark.parametrize('tile', [None, (16, 16)])
def test_absurd_pages_are_refused_before_memory_is_taken(tmp_path, compression, tile):
  path = tmp_path / 'a.tif'
  tifffile.imwrite(
    path, values(32, 32), compression=compression, tile=tile, photometric='minisblack'
  )
  with tifffile.TiffFile(path) as tif:
    tags = tif.pages.first.tags
    places = [tags[name].valueoffset for name in ('ImageWidth', 'ImageLength')]
    forms = [tags[name].dtype for name in ('ImageWidth', 'ImageLength')]
  assert forms == [tifffile.DATATYPE.LONG] * 2
  data = bytearray(path.read_bytes())
  for place in places:
    data[place : place + 4] = struct.pack('<I', 2**31 - 1)
  path.write_bytes(data)
  start = time.perf_counter()
  with pytest.raises(DataError, match=r'announces pages of 2147483647 x 2147483647 uint8'):
    volumes.open_volume(path)
  assert time.perf_counter() - start < 2
