"""Ids of instances need 32 bits: formats hold them, or say that they do not."""

import numpy as np
import pytest

from emseg_jax.data import volumes, writers
from emseg_jax.errors import OutputError

# More than 16 and more than 24 bits, so that neither uint16 nor float32 would do.
IDS = np.array([0, 1, 70_000, 2**24 + 1, 2**32 - 1], np.uint32)[
  np.random.default_rng(0).integers(0, 5, (5, 6, 7))
]
SIZE = (30.0, 5.0, 4.0)


@pytest.mark.parametrize(
  'extension', ['.h5', '.zarr', '.n5', '.precomputed', '.nii', '.tif', '.ome.tif']
)
def test_what_is_written_is_read_back(tmp_path, extension):
  reference = volumes.ArrayVolume(IDS, voxel_size_zyx=SIZE)
  path = writers.write_like(reference, tmp_path / f'out{extension}', iter(IDS))
  volume = volumes.open_volume(path, palette='index')
  assert volume.dtype == np.uint32
  np.testing.assert_array_equal(volume[:], IDS)
  np.testing.assert_allclose(volume.voxel_size_zyx, SIZE, rtol=1e-6)


@pytest.mark.parametrize(
  ('axes', 'name', 'form'), [('ZYX', 'out.mrc', 'MRC'), ('NYX', 'out', 'PNG')]
)
def test_formats_that_cannot_hold_them_say_so(tmp_path, axes, name, form):
  reference = volumes.ArrayVolume(IDS, axes=axes)
  with pytest.raises(OutputError, match=f'out.*: {form} cannot hold uint32; name the output .zarr'):
    writers.write_like(reference, tmp_path / name, iter(IDS))
  assert list(tmp_path.iterdir()) == []
