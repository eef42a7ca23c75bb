"""The cache behind a split, the statistics of its files, and its fingerprint."""

import collections
import concurrent.futures
import shutil
import time

import numpy as np
import pytest
from data_support import (
  CountingVolume,
  counting_split,
  open_split,
  rules,
  write_folder,
  write_stack,
)

from emseg_jax.config import Phantom, Source
from emseg_jax.data import normalise, pairs, volumes


def test_a_cached_section_is_read_once():
  split, image, label = counting_split(sections=3, cache_bytes=600)  # 3 images, 3 labels of 100 B
  for _ in range(3):
    for i in range(3):
      split.image(i)
      split.label(i)
  assert image.reads == label.reads == [1, 1, 1]


def test_the_least_recently_used_section_leaves_first():
  split, image, _ = counting_split(sections=3, cache_bytes=200)
  for i in (0, 1, 0, 2, 0, 1):  # 2 pushes out 1, because 0 was used since
    split.image(i)
  assert image.reads == [1, 2, 1]


@pytest.mark.parametrize('limit', [0, 99, 100, 350])
def test_the_cache_never_holds_more_than_its_limit(limit):
  split, _, _ = counting_split(sections=6, cache_bytes=limit)
  for i in (0, 3, 1, 5, 4, 2, 0):
    assert split.image(i)[0, 0] == i
    assert split.label(i)[0, 0] == i % 2
    held = sum(array.nbytes for array in split._cache.values())
    assert held == split._cached_bytes <= limit


class YieldingDict(collections.OrderedDict):
  """Lets other threads run between a look-up and what follows it, so that a missing lock shows."""

  def __contains__(self, key):
    found = super().__contains__(key)
    time.sleep(1e-5)
    return found


def test_many_threads_on_a_small_cache_read_the_right_sections():
  split, _, _ = counting_split(sections=16, cache_bytes=500)
  split._cache = YieldingDict()

  def read(seed):
    for i in np.random.default_rng(seed).integers(0, 16, 50):
      assert (split.image(i) == i).all()
      assert (split.label(i) == i % 2).all()
    return seed

  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    assert list(pool.map(read, range(16))) == list(range(16))
  assert split._cached_bytes == sum(array.nbytes for array in split._cache.values()) <= 500


def test_what_the_cache_hands_out_cannot_be_changed():
  split, _, _ = counting_split(sections=1, cache_bytes=1000)
  with pytest.raises(ValueError, match='read-only'):
    split.image(0)[0, 0] = 9


def test_reading_leaves_the_callers_array_writable():
  array = np.zeros((1, 4, 4), np.uint8)
  pairs.Split.of_images(volumes.ArrayVolume(array)).image(0)
  array[0, 0, 0] = 1
  assert array.flags.writeable


def test_statistics_are_those_of_the_stack_or_of_the_single_image(tmp_path):
  stack = np.arange(3, dtype=np.uint8)[:, None, None] * np.full((1, 6, 8), 10, np.uint8)
  one = open_split(Source(images=write_stack(tmp_path / 'stack.tif', stack), slices='0:1'))
  assert one.volume_statistics(0).mean == 10  # of 0, 10 and 20, also of the sections left out
  folder = write_folder(tmp_path / 'images', {f'z{i}': stack[i] for i in range(3)})
  single = open_split(Source(images=folder))
  assert [single.volume_statistics(i).mean for i in range(3)] == [0, 10, 20]


def test_volumes_of_the_same_name_keep_statistics_of_their_own():
  arrays = [np.full((2, 4, 4), value, np.uint8) for value in (10, 200)]
  same = [volumes.ArrayVolume(array, name='memory') for array in arrays]
  split = pairs.Split(
    [pairs.Section('s', volume, i, None, i) for volume in same for i in range(2)],
    rules=rules(2),
    cache_bytes=0,
  )
  assert [split.volume_statistics(i).mean for i in range(4)] == [10, 10, 200, 200]


def test_sections_of_the_phantom_are_unrelated_so_each_has_its_own_statistics():
  split = open_split(Source(phantom=Phantom(count=2, size=(32, 32), seed=1)))
  means = [split.volume_statistics(i).mean for i in range(2)]
  assert means == pytest.approx([split.image(i).mean() for i in range(2)])


def test_the_network_sees_the_normalised_section(tmp_path):
  stack = np.arange(96, dtype=np.uint8).reshape(2, 6, 8)
  split = open_split(Source(images=write_stack(tmp_path / 'stack.tif', stack)))
  n = normalise.fit('per_volume', 1, split.images())
  out = split.network_image(1, n)
  np.testing.assert_allclose(out[..., 0], (stack[1] - 47.5) / np.arange(96).std(), rtol=1e-4)
  assert split.network_image(1, normalise.fit('scale', 3, split.images())).shape == (6, 8, 3)


def test_copied_data_have_the_same_fingerprint(tmp_path):
  rng = np.random.default_rng(0)
  named = {f'z{i}': rng.integers(0, 2, (6, 8), dtype=np.uint8) for i in range(4)}
  write_folder(tmp_path / 'here' / 'x', named)
  shutil.copytree(tmp_path / 'here', tmp_path / 'there' / 'deep')

  def fingerprint(folder):
    return open_split(Source(images=str(folder / 'x'), labels=str(folder / 'x'))).fingerprint()

  original = fingerprint(tmp_path / 'here')
  assert fingerprint(tmp_path / 'there' / 'deep') == original
  assert fingerprint(tmp_path / 'here') == original


def _array_split(images, labels, name='memory'):
  image, label = (volumes.ArrayVolume(a, name=name) for a in (images, labels))
  return pairs.Split(
    [pairs.Section(n, image, i, label, i) for i, n in enumerate(image.names)],
    rules=rules(2),
    cache_bytes=0,
  )


@pytest.mark.parametrize('what', ['image', 'label', 'name', 'order', 'count', 'type'])
def test_changed_data_have_another_fingerprint(what):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 255, (8, 6, 8), dtype=np.uint8)
  labels = rng.integers(0, 2, (8, 6, 8), dtype=np.uint8)
  original = _array_split(images, labels).fingerprint()
  assert _array_split(images.copy(), labels.copy()).fingerprint() == original
  changed = {'image': images.copy(), 'label': labels.copy()}
  changed['image'][5, 3, 2] ^= what == 'image'  # a single pixel
  changed['label'][5, 3, 2] ^= what == 'label'
  order = {'order': [1, 0, 2, 3, 4, 5, 6, 7], 'count': range(7)}.get(what, range(8))
  arrays = [array[list(order)] for array in changed.values()]
  if what == 'type':
    arrays[0] = arrays[0].astype(np.uint16)
  split = _array_split(*arrays, name='other' if what == 'name' else 'memory')
  assert split.fingerprint() != original


def test_a_fingerprint_reads_at_most_64_sections():
  images, labels = np.zeros((200, 4, 4), np.uint8), np.zeros((200, 4, 4), np.uint8)
  image, label = CountingVolume(images), CountingVolume(labels)
  split = pairs.Split(
    [pairs.Section(n, image, i, label, i) for i, n in enumerate(image.names)],
    rules=rules(2),
    cache_bytes=0,
  )
  split.fingerprint()
  assert sum(image.reads) == sum(label.reads) == 64
  assert image.reads[0] == image.reads[-1] == 1
