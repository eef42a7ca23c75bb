"""By what a volume is told from another one, or from itself after it was changed."""

import numpy as np
import pytest

from emseg_jax.data import identity, volumes, writers

VALUES = np.random.default_rng(0).integers(0, 255, (3, 130, 200), np.uint8)


def written(folder, name, values=VALUES):
  return volumes.open_volume(
    writers.write_like(volumes.ArrayVolume(values), folder / name, iter(values))
  )


def test_size_type_and_time_are_described(tmp_path):
  found = identity.describe(written(tmp_path, 'a.tif'))
  file = (tmp_path / 'a.tif').stat()
  assert found == {
    'path': str(tmp_path / 'a.tif'),
    'shape': [3, 130, 200],
    'dtype': 'uint8',
    'bytes': file.st_size,
    'changed': file.st_mtime_ns,
  }


@pytest.mark.parametrize('place', [(0, 0, 0), (2, 129, 199), (1, 70, 64)])
def test_a_voxel_changed_in_a_volume_of_up_to_64_squares_tells(tmp_path, place):
  """3 sections of 3 x 4 squares are 36, so that all are looked at."""
  changed = VALUES.copy()
  changed[place] += 1
  first, same, other = (
    identity.digest(written(tmp_path, name, values))
    for name, values in (('a.zarr', VALUES), ('b.zarr', VALUES), ('c.zarr', changed))
  )
  assert first == same != other


def test_of_sections_decoded_as_a_whole_nothing_is_read(tmp_path):
  assert identity.digest(written(tmp_path, 'a.tif')) is None
