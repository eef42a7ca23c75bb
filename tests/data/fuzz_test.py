"""Small files of every format, damaged at random: an error of our own or a read of the right shape.

The quick version tries some dozens of damages per format, the long one thousands.
"""

import functools
import shutil
import tempfile
import time
from pathlib import Path

import format_support
import numpy as np
import pytest
from format_support import values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emseg_jax.config import Reading
from emseg_jax.data import volumes
from emseg_jax.errors import DataError

# Numbers that stand for sizes and offsets in headers.
WORDS = [n.to_bytes(size, order, signed=n < 0) for n in (0, 1, -1, 2**15, 2**30)
         for size in (4, 8) for order in ('little', 'big')]  # fmt: skip
LARGEST_READ = 2**26  # bytes
PATIENCE = 60  # seconds, for a machine that does other things, too

array = functools.partial(values, 4, 8, 9)
FORMATS = {
  'a.png': lambda path: format_support.write_png(path, array()[0]),
  'a.jpg': lambda path: format_support.write_jpeg(path, array()[0]),
  'plain.tif': lambda path: format_support.write_tiff(path, array()),
  'packed.tif': lambda path: format_support.write_tiff(path, array(), compression='lzw'),
  'tiled.tif': lambda path: format_support.write_tiff(
    path, array(dtype='u2'), compression='zstd', tile=(16, 16), bigtiff=True
  ),
  'imagej.tif': lambda path: format_support.write_tiff(path, array(), imagej=True),
  'a.ome.tif': lambda path: format_support.write_tiff(path, array(), ome=True),
  'a.mrc': lambda path: format_support.write_mrc(path, array(dtype='f4')),
  'a.mrc.gz': lambda path: format_support.write_mrc(path, array(dtype='i2')),
  'a.mrc.bz2': lambda path: format_support.write_mrc(path, array(dtype='i2')),
  'plain.h5': lambda path: format_support.write_hdf5(path, array()),
  'packed.h5': lambda path: format_support.write_hdf5(
    path, array(), name='volumes/raw', chunks=(2, 4, 4), compression='gzip', shuffle=True
  ),
  'a.nii': lambda path: format_support.write_nifti(path, array(dtype='i2'), slope=0.5),
  'a.nii.gz': lambda path: format_support.write_nifti(path, array(dtype='i2')),
  'v2.zarr': lambda path: format_support.write_zarr(path, array()),
  'v3.zarr': lambda path: format_support.write_zarr(path, array(), version=3),
  'sharded.zarr': lambda path: format_support.write_zarr(
    path, array(), version=3, chunks=(2, 4, 3), shards=(4, 8, 9)
  ),
  'ome.zarr': lambda path: format_support.write_ome_zarr(path, array()),
  'ome5.zarr': lambda path: format_support.write_ome_zarr(path, array(), version='0.5'),
  'a.n5': lambda path: format_support.write_n5(path, array(dtype='u2')),
  'blosc.n5': lambda path: format_support.write_n5(
    path, array(), compression='blosc', cname='lz4', clevel=5, shuffle=1
  ),
  'precomputed': lambda path: format_support.write_precomputed(path, array()),
  'segmented': lambda path: format_support.write_precomputed(
    path, array(dtype='u4'), encoding='compressed_segmentation'
  ),
}


@st.composite
def damaged(draw, data):
  """Some bytes changed, inserted, moved or cut off; headers more often than the rest."""
  data = bytearray(data)

  def place():
    near = draw(st.sampled_from([16, 64, 256, 2**62]))
    return draw(st.integers(0, max(0, min(near, len(data)) - 1)))

  for _ in range(draw(st.integers(1, 3))):
    how, at = draw(st.sampled_from(['byte', 'word', 'digit', 'cut', 'move', 'insert'])), place()
    if how == 'byte':
      data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
    elif how == 'word':
      word = draw(st.sampled_from(WORDS))
      data[at : at + len(word)] = word
    elif how == 'digit':  # in JSON and XML
      digits = [i for i, c in enumerate(data) if c in b'0123456789']
      if digits:
        i = draw(st.sampled_from(digits))
        data[i : i + 1] = draw(st.sampled_from([b'0', b'-1', b'999999', b'null', b'[]', b'1e9']))
    elif how == 'cut':
      del data[at:]
    elif how == 'move':
      other = place()
      data[at : at + 32] = data[other : other + draw(st.integers(0, 32))]
    else:
      data[at:at] = draw(st.binary(max_size=8))
  return bytes(data)


def read_or_refuse(path, reading):
  """Opens and reads; fails if anything but a DataError or voxels of the right shape comes out."""
  try:
    volume = volumes.open_volume(path, reading=reading)
    assert len(volume) >= 1
    colour = (3,) * (volume.channels == 3)
    for index in {0, len(volume) // 2, len(volume) - 1}:
      shape = volume.section_shape(index)
      if np.prod(shape, dtype=float) * volume.dtype.itemsize > LARGEST_READ:
        if volume.cheap_boxes:
          assert volume.box((index, 0, 0), (index + 1, 1, 1)).shape == (1, 1, 1, *colour)
        continue
      section = volume.section(index)
      assert section.shape == (*shape, *colour)
      assert section.dtype == volume.dtype
      assert section.dtype.isnative
  except DataError as error:
    assert error.args  # noqa: PT017 - either way is right


def check(name, examples):
  with tempfile.TemporaryDirectory() as folder:
    whole, broken = Path(folder, 'whole', name), Path(folder, 'broken', name)
    whole.parent.mkdir()
    broken.parent.mkdir()
    FORMATS[name](whole)
    files = sorted(f for f in whole.rglob('*') if f.is_file()) or [whole]
    # Descriptions as often as chunks.
    described = [f for f in files if f.name.startswith(('.z', 'zarr', 'attributes', 'info'))]

    @settings(
      max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(st.data())
    def damage(draw):
      chosen = draw.draw(st.sampled_from(files) | st.sampled_from(described or files))
      data = draw.draw(damaged(chosen.read_bytes()))
      if whole.is_dir():
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(whole, broken)
      (broken.parent / chosen.relative_to(whole.parent)).write_bytes(data)
      start = time.monotonic()
      read_or_refuse(broken, Reading(missing=draw.draw(st.sampled_from(['error', 'fill']))))
      assert time.monotonic() - start < PATIENCE

    damage()


@pytest.mark.parametrize('name', list(FORMATS))
def test_damaged_files_are_read_or_refused(name):
  if '.nii' in name:
    pytest.importorskip('nibabel')
  check(name, 60)


@pytest.mark.long
@pytest.mark.parametrize('name', list(FORMATS))
def test_thousands_of_damaged_files_are_read_or_refused(name):
  check(name, 2000)
