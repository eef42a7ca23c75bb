"""Reader processes, and files that go bad while they are read."""

import collections
import itertools
import multiprocessing

import jax
import numpy as np
import pytest
from data_support import open_split, plain, write_folder

from emseg_jax.config import Data, Source
from emseg_jax.data import normalise, pipeline
from emseg_jax.errors import DataError, TrainingError


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """A folder of eight images, image s filled with s."""
  folder = tmp_path_factory.mktemp('files')
  return write_folder(folder / 'images', {f's{i}': plain(i, (16, 16)) for i in range(8)})


def of_files(images, *, damaged='stop'):
  """Batches of four patches; nothing is kept in memory."""
  split = open_split(Source(images=images, labels=images), classes=tuple('abcdefgh'), cache_gb=0)
  return pipeline.train_dataset(
    split,
    Data(patch=(8, 8), damaged=damaged),
    region=(8, 8),
    normalisation=normalise.Normalisation('dataset', 1, 0.0, 1.0, 'uint8'),
    seed=0,
    batch_size=4,
  )


def iterate(data, count, *, start_step=0, threads=0, workers=0):
  batches = pipeline.train_iterator(
    data, start_step=start_step, threads=threads, prefetch=2, workers=workers
  )
  return list(itertools.islice(batches, count))


def assert_same(ours, theirs):
  assert len(ours) == len(theirs) > 0
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_reader_processes_read_the_same_and_go_on_where_others_stopped(files):
  reference = iterate(of_files(files), 6)
  assert_same(iterate(of_files(files), 6, workers=2, threads=1), reference)
  assert_same(iterate(of_files(files), 3, workers=1, start_step=3), reference[3:])


def test_the_death_of_a_reader_process_is_said_in_one_sentence(files):
  batches = pipeline.train_iterator(of_files(files), start_step=0, threads=1, prefetch=1, workers=1)
  next(batches)
  for child in multiprocessing.active_children():
    child.kill()
  with pytest.raises(TrainingError, match='a reader process ended by itself, exit code -9'):
    collections.deque(itertools.islice(batches, 100), maxlen=0)


def test_what_a_reader_process_cannot_read_is_named(tmp_path):
  images = write_folder(tmp_path / 'images', {'a': plain(0, (16, 16))})
  data = of_files(images)
  (tmp_path / 'images' / 'a.png').write_bytes(b'\x89PNG\r\n')
  with pytest.raises(DataError, match=r'a\.png: cannot be read'):
    iterate(data, 1, workers=1)


@pytest.mark.parametrize('how', ['truncated', 'removed'])
def test_a_file_that_goes_bad_stops_or_is_passed_over(tmp_path, caplog, how):
  named = {f's{i}': plain(i, (16, 16)) for i in range(4)}
  images = write_folder(tmp_path / 'images', named)
  stops, skips = of_files(images), of_files(images, damaged='skip')
  bad = tmp_path / 'images' / 's2.png'
  if how == 'truncated':
    bad.write_bytes(bad.read_bytes()[:50])
  else:
    bad.unlink()
  with pytest.raises(DataError, match=r's2\.png: cannot be read'):
    iterate(stops, 4)
  sections = {int(i[0, 0, 0]) for batch in iterate(skips, 8) for i in batch['image']}
  assert sections == {0, 1, 3}
  assert 's2.png: cannot be read' in caplog.text
  # What is read in its place depends on seed and number only.
  assert_same(iterate(skips, 8), [skips[step] for step in range(8)])


def test_a_set_of_bad_files_alone_is_an_error_even_if_they_are_passed_over(tmp_path):
  images = write_folder(tmp_path / 'images', {'a': plain(0, (16, 16))})
  data = of_files(images, damaged='skip')
  (tmp_path / 'images' / 'a.png').unlink()
  with pytest.raises(DataError, match=r'a\.png: cannot be read'):
    iterate(data, 1)
