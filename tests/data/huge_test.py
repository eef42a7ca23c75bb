"""Volumes of a hundred gigabytes: opened at once, read in the memory of a box.

The files are sparse: they announce their size, and take no room on the disk.
"""

import subprocess
import sys
import time
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
import zarr

from emseg_jax.data import volumes

ROOT = Path(__file__).parent.parent.parent
SHAPE = (4000, 5000, 6000)  # 120 GB of bytes
BOX = ((3000, 2000, 1000), (3032, 2128, 1128))
MARK = (3031, 2127, 1127)  # the last voxel of the box


def write_mrc(path):
  with mrcfile.new(path, np.zeros((1, 1, 1), 'i1')) as file:
    header = file.header.copy()
  header.nz, header.ny, header.nx = SHAPE
  with open(path, 'wb') as file:
    file.write(header.tobytes())
    file.truncate(1024 + np.prod(SHAPE, dtype=int))
    file.seek(1024 + np.ravel_multi_index(MARK, SHAPE))
    file.write(b'\x07')


def write_hdf5(path):
  with h5py.File(path, 'w') as file:
    dataset = file.create_dataset('raw', SHAPE, 'i1', chunks=(32, 64, 64), compression='gzip')
    dataset[MARK] = 7


def write_zarr(path):
  stored = zarr.create_array(
    path,
    shape=SHAPE,
    dtype='i1',
    chunks=(64, 64, 64),
    zarr_format=2,
    config={'write_empty_chunks': True},
  )
  region = tuple(slice(a // 64 * 64, -(-b // 64) * 64) for a, b in zip(*BOX, strict=True))
  stored[region] = 0
  stored[MARK] = 7


WRITERS = {'a.mrc': write_mrc, 'a.h5': write_hdf5, 'a.zarr': write_zarr}


@pytest.mark.parametrize('name', list(WRITERS))
def test_120_gb_are_opened_within_a_second_and_read_box_by_box(tmp_path, name):
  WRITERS[name](tmp_path / name)
  volumes.open_volume(tmp_path / name)  # libraries are imported once
  start = time.perf_counter()
  volume = volumes.open_volume(tmp_path / name)
  assert time.perf_counter() - start < 1
  assert (len(volume), volume.section_shape(0)) == (4000, (5000, 6000))
  assert volume.cheap_boxes
  box = volume.box(*BOX)
  assert box.shape == (32, 128, 128)
  assert np.flatnonzero(box).tolist() == [box.size - 1]
  assert box[-1, -1, -1] == 7


READ = """
import resource, sys
from emseg_jax.data import volumes
volume = volumes.open_volume(sys.argv[1])
volume.box((3000, 2000, 1000), (3032, 2128, 1128))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for i in range(40):
  volume.box((3000, 2000, 1000), (3032, 2128, 1128))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize('name', list(WRITERS))
def test_patches_take_no_more_memory_the_longer_it_goes_on(tmp_path, name):
  WRITERS[name](tmp_path / name)
  done = subprocess.run(
    [sys.executable, '-c', READ, str(tmp_path / name)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert int(done.stdout) < 40_000  # kB; forty boxes have 20 MB, the volume 120 GB
