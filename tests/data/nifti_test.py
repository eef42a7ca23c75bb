"""NIfTI, written with nibabel, the library that also reads its headers; values are numpy's."""

import gzip
import struct
import sys

import numpy as np
import pytest
from format_support import VOXEL_SIZE, values, write_nifti

from emseg_jax.config import Reading
from emseg_jax.data import volumes
from emseg_jax.errors import DataError

nibabel = pytest.importorskip('nibabel')


@pytest.mark.parametrize('name', ['a.nii', 'a.nii.gz'])
@pytest.mark.parametrize('dtype', ['u1', 'i2', '>i2', 'f4', 'u4'])
def test_voxels_are_read_as_zyx(tmp_path, dtype, name):
  array = values(3, 4, 5, dtype=dtype)
  volume = volumes.open_volume(write_nifti(tmp_path / name, array))
  assert (volume.kind, volume.axes) == ('nifti', 'ZYX')
  assert volume.dtype == np.dtype(dtype).newbyteorder('=')
  assert volume.names[2] == 'a[002]'
  np.testing.assert_array_equal(volume[:], array)
  np.testing.assert_array_equal(volume.box((1, 2, 0), (3, 4, 2)), array[1:, 2:, :2])
  assert volume.voxel_size_zyx == VOXEL_SIZE


@pytest.mark.parametrize('unit', ['unknown', 'mm'])
def test_unit_of_the_voxel_size(tmp_path, unit):
  volume = volumes.open_volume(write_nifti(tmp_path / 'a.nii', values(3, 4, 5), unit=unit))
  expected = tuple(1e3 * n for n in VOXEL_SIZE)  # the numbers were meant as µm
  assert volume.voxel_size_zyx == (pytest.approx(expected) if unit == 'mm' else None)


def test_stored_values_are_scaled(tmp_path):
  array = values(3, 4, 5, dtype='i2')
  path = write_nifti(tmp_path / 'a.nii', array, slope=0.5, intercept=-3.0)
  volume = volumes.open_volume(path)
  assert volume.dtype == np.float32
  np.testing.assert_allclose(volume[:], 0.5 * array - 3)  # exact: 16 bits and a half
  np.testing.assert_allclose(volume[:], np.asarray(nibabel.load(path).dataobj).T)


def test_nifti_2_and_four_axes(tmp_path):
  array = values(2, 3, 4, 5)  # x y z t
  nibabel.save(nibabel.Nifti2Image(array[..., :1], np.eye(4)), tmp_path / 'a.nii')
  np.testing.assert_array_equal(volumes.open_volume(tmp_path / 'a.nii')[:], array[..., 0].T)
  nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / 'b.nii')
  with pytest.raises(DataError, match='has 5 time points'):
    volumes.open_volume(tmp_path / 'b.nii')
  channel = volumes.open_volume(tmp_path / 'b.nii', reading=Reading(axes='XYZC', channel=3))
  np.testing.assert_array_equal(channel[:], array[..., 3].T)


@pytest.mark.parametrize('name', ['a.nii', 'a.nii.gz'])
def test_damaged_files_are_refused(tmp_path, name):
  whole = write_nifti(tmp_path / 'whole.nii', values(8, 9, 10, dtype='i2')).read_bytes()
  pack = gzip.compress if name.endswith('gz') else bytes

  def refuse(data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
      volumes.open_volume(tmp_path / name)

  refuse(pack(whole[:-1]), 'announces .* bytes')
  refuse(pack(whole)[:-9], f'{name}: ')
  refuse(pack(whole[:100]), f'{name}: cannot be read')
  huge = whole[:40] + struct.pack('<8h', 3, 30000, 30000, 30000, 1, 1, 1, 1) + whole[56:]
  refuse(pack(huge), 'announces|memory')
  refuse(pack(whole[:40] + struct.pack('<8h', 3, 8, -9, 10, 1, 1, 1, 1) + whole[56:]), 'dim')
  refuse(pack(whole[:70] + struct.pack('<h', 32) + whole[72:]), 'complex64')
  refuse(pack(whole[:70] + struct.pack('<h', 7777) + whole[72:]), '7777')
  refuse(pack(whole[:112] + struct.pack('<f', np.inf) + whole[116:]), 'scl_slope=inf')


def test_without_nibabel_the_error_says_what_to_install(tmp_path, monkeypatch):
  path = write_nifti(tmp_path / 'a.nii', values(3, 4, 5))
  monkeypatch.setitem(sys.modules, 'nibabel', None)
  with pytest.raises(DataError, match=r'a\.nii: .* pip install "\.\[nifti\]"'):
    volumes.open_volume(path)
