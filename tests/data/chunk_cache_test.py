"""Boxes cut at the borders of chunks, and the chunks that are kept."""

import h5py
import numpy as np
from format_support import values, write_hdf5
from hypothesis import given
from hypothesis import strategies as st

from emseg_jax.data import hdf5, volumes
from emseg_jax.data.chunk_cache import ChunkCache, cells


@given(st.data())
def test_cells_cover_a_box_once_and_stay_in_one_chunk(data):
  ranges = [sorted(data.draw(st.tuples(*[st.integers(0, 20)] * 2))) for _ in range(2)]
  index = tuple(slice(a, b + 1) for a, b in ranges)
  chunks = data.draw(st.tuples(*[st.integers(1, 8)] * 2))
  origin = data.draw(st.tuples(*[st.integers(-7, 0)] * 2))
  covered = np.zeros((21, 21), int)
  box = np.zeros([i.stop - i.start for i in index], int)
  for part, place in cells(index, chunks, origin):
    covered[part] += 1
    box[place] += 1
    for p, c, o in zip(part, chunks, origin, strict=True):
      assert (p.start - o) // c == (p.stop - 1 - o) // c
  assert covered[index].size == covered.sum() == covered[index].sum()
  np.testing.assert_array_equal(box, 1)


def test_the_chunks_used_last_are_kept_up_to_the_limit():
  reads = []

  def read(key):
    reads.append(key)
    return np.full(10, key, 'u1')

  cache = ChunkCache(limit=25)
  for key in (1, 2, 1, 3, 1, 2):  # 3 drives out 2
    np.testing.assert_array_equal(cache.get(key, lambda key=key: read(key)), key)
  assert reads == [1, 2, 3, 2]
  huge = ChunkCache(limit=5)
  np.testing.assert_array_equal(huge.get(1, lambda: read(1)), 1)
  np.testing.assert_array_equal(huge.get(2, lambda: read(2)), 2)


def test_sections_of_one_chunk_are_decoded_once(tmp_path, monkeypatch):
  array = values(8, 16, 16)
  path = write_hdf5(tmp_path / 'a.h5', array, chunks=(4, 8, 8), compression='gzip')
  volume = volumes.open_volume(path)
  monkeypatch.setattr(hdf5, 'CHUNKS', ChunkCache())
  opened = []
  whole = h5py.File
  monkeypatch.setattr(h5py, 'File', lambda *a: opened.append(a) or whole(*a))
  np.testing.assert_array_equal(np.stack(list(volume)), array)
  assert len(opened) == 2  # for sections 0 and 4
  np.testing.assert_array_equal(volume.box((1, 3, 5), (7, 12, 9)), array[1:7, 3:12, 5:9])
  assert len(opened) == 2
  # A file that was written anew is read anew.
  path.unlink()
  write_hdf5(path, array[::-1], chunks=(4, 8, 8), compression='gzip')
  np.testing.assert_array_equal(volume.section(0), array[-1])


def test_boxes_of_many_tiny_chunks_are_read_at_once(tmp_path, monkeypatch):
  array = values(8, 32, 32)
  path = write_hdf5(tmp_path / 'a.h5', array, chunks=(1, 2, 2), compression='gzip')
  monkeypatch.setattr(hdf5.CHUNKS, 'get', None)
  np.testing.assert_array_equal(volumes.open_volume(path).box((0, 0, 0), (8, 32, 32)), array)
