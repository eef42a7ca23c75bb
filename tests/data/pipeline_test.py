"""The order of training examples: a pure function of the seed, whoever reads it and how."""

import collections
import itertools

import numpy as np
import pytest
import tifffile
from data_support import rules, volume_split

from emseg_jax.config import Data, Proximity, Sampling
from emseg_jax.data import normalise, pairs, pipeline, targets, volumes
from emseg_jax.errors import DataError

SIZE, REGION, SECTIONS = (24, 20), (8, 8), 5
RAW = normalise.Normalisation('dataset', 1, 0.0, 1.0, 'float32')


def make_split(sections=SECTIONS, size=SIZE):
  """Images that hold section * 1000 + flat pixel number, so that each crop tells its origin."""
  number = np.arange(np.prod(size)).reshape(size)
  images = np.stack([1000 * s + number for s in range(sections)]).astype(np.float32)
  labels = np.stack([number % 3] * sections).astype(np.uint8)
  image, label = volumes.ArrayVolume(images), volumes.ArrayVolume(labels)
  return pairs.Split(
    [pairs.Section(name, image, i, label, i) for i, name in enumerate(image.names)],
    rules=rules(3),
    cache_bytes=10**4,  # two or three sections: some are read again
  )


SPLIT = make_split()


def dataset(
  *,
  split=SPLIT,
  seed=0,
  batch_size=4,
  process=0,
  processes=1,
  patch=REGION,
  sampling=None,
  proximity=None,
  **kwargs,
):
  options = {'sampling': sampling or Sampling(), 'proximity': proximity or Proximity()}
  return pipeline.train_dataset(
    split,
    Data(patch=patch, **options),
    region=patch,
    normalisation=RAW,
    seed=seed,
    batch_size=batch_size,
    process_index=process,
    process_count=processes,
    **kwargs,
  )


def iterate(data, count, *, start_step=0, threads=0, prefetch=2):
  batches = pipeline.train_iterator(data, start_step=start_step, threads=threads, prefetch=prefetch)
  return list(itertools.islice(batches, count))


def assert_same(ours, theirs):
  assert len(ours) == len(theirs)
  for a, b in zip(ours, theirs, strict=True):
    assert set(a) == set(b)
    for name in a:
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def sections_of(batches):
  return [int(image[0, 0, 0]) // 1000 for batch in batches for image in batch['image']]


REFERENCE = iterate(dataset(), 8)


def test_a_batch_has_the_documented_fields():
  batch = REFERENCE[0]
  shapes = {name: (value.shape, value.dtype) for name, value in batch.items()}
  assert shapes == {
    'image': ((4, 8, 8, 1), np.float32),
    'label': ((4, 8, 8), np.int32),
    'weight': ((4, 8, 8), np.float32),
    'valid': ((4, 2), np.int32),
    'index': ((4,), np.int32),
  }


def test_index_numbers_the_examples_of_the_whole_run():
  assert [int(i) for batch in REFERENCE for i in batch['index']] == list(range(32))


def test_a_batch_is_a_pure_function_of_seed_and_step():
  data = dataset()
  for step in (7, 0, 3):  # in any order
    assert_same([data[step]], [REFERENCE[step]])
    assert_same([data[step]], [dataset()[step]])


def test_seeds_give_other_orders_and_other_places():
  other = iterate(dataset(seed=1), 8)
  assert sections_of(other) != sections_of(REFERENCE)
  places = [
    {int(i[0, 0, 0]) % 1000 for batch in batches for i in batch['image']}
    for batches in (REFERENCE, other)
  ]
  assert places[0] != places[1]


@pytest.mark.parametrize('start', [1, 3, 7])
def test_a_restart_at_a_step_goes_on_with_the_batches_of_that_step(start):
  assert_same(iterate(dataset(), 8 - start, start_step=start, threads=2), REFERENCE[start:])


@pytest.mark.parametrize(('threads', 'prefetch'), [(0, 1), (1, 1), (4, 2), (3, 16)])
def test_the_number_of_threads_changes_nothing(threads, prefetch):
  assert_same(iterate(dataset(), 8, threads=threads, prefetch=prefetch), REFERENCE)


@pytest.mark.parametrize('processes', [2, 4])
@pytest.mark.parametrize('start', [0, 5])
def test_processes_together_see_the_rows_that_one_process_sees(processes, start):
  shares = [
    iterate(dataset(process=p, processes=processes), 8 - start, start_step=start, threads=p % 2)
    for p in range(processes)
  ]
  joined = [
    {name: np.concatenate([rows[name] for rows in parts]) for name in parts[0]}
    for parts in zip(*shares, strict=True)
  ]
  assert_same(joined, REFERENCE[start:])


def test_every_epoch_visits_every_section_once_in_a_new_order():
  order = sections_of(iterate(dataset(), 10))  # 40 examples: 8 epochs of 5 sections
  epochs = [order[i : i + SECTIONS] for i in range(0, 40, SECTIONS)]
  assert all(sorted(epoch) == list(range(SECTIONS)) for epoch in epochs)
  assert len(set(map(tuple, epochs))) > 4


def test_a_section_is_cut_elsewhere_in_every_epoch():
  one = make_split(sections=1)
  places = [int(i[0, 0, 0]) for b in iterate(dataset(split=one), 10) for i in b['image']]
  # 17 x 13 places: 40 draws meet about 37 of them, never the same one throughout
  assert len(set(places)) > 25


def test_batches_of_one_example_are_batches():
  # grain rounds the length of an infinite dataset up to 2^63, unless told to drop the remainder.
  ones = iterate(dataset(batch_size=1), 6, start_step=2, threads=1)
  rows = [{name: rows[i : i + 1] for name, rows in b.items()} for b in REFERENCE for i in range(4)]
  assert_same(ones, rows[2:8])


def test_a_batch_may_be_larger_than_the_split():
  batch = dataset(split=make_split(sections=3), batch_size=8)[0]
  assert sorted(sections_of([batch])[:3]) == [0, 1, 2]
  assert batch['image'].shape[0] == 8


def test_an_error_while_reading_reaches_the_loop():
  split = make_split()
  broken = pairs.Split(split.sections, rules=rules(2), cache_bytes=0)
  with pytest.raises(Exception, match='label value 2 is not in'):
    iterate(dataset(split=broken), 1, threads=2)


# ---- volumes, fixed places, weights, targets ----------------------------------------------------


def volumes_of(*sizes, weights=None):
  """Volumes of 12 x 12 whose images hold 10000 * volume + voxel number."""
  arrays = []
  for v, depth in enumerate(sizes):
    number = np.arange(depth * 144).reshape(depth, 12, 12)
    arrays.append(((10000 * v + number).astype(np.float32), (number % 7 == 0).astype(np.uint8)))
  return volume_split(*arrays, weights=weights)


SAMPLINGS = {
  'random': Sampling(),
  'foreground': Sampling(kind='foreground', planes_share=0.5),
  'tiles': Sampling(kind='tiles', random_share=0.5, planes_share=0.3, positive_copies=2),
}


@pytest.mark.parametrize('kind', SAMPLINGS)
@pytest.mark.parametrize('patch', [(6, 5), (3, 6, 5)])
def test_a_restart_or_other_threads_and_processes_change_nothing(kind, patch):
  options = {
    'split': volumes_of(4, 7, weights=[2.0, 1.0]),
    'patch': patch,
    'sampling': SAMPLINGS[kind],
    'targets': ('proximity',),
    'proximity': Proximity(dimensions=3),
  }
  reference = iterate(dataset(**options), 5)
  assert reference[0]['proximity'].shape == reference[0]['label'].shape == (4, *patch)
  assert_same(iterate(dataset(**options), 3, start_step=2, threads=3), reference[2:])
  shares = [iterate(dataset(**options, process=p, processes=2), 5, threads=p) for p in range(2)]
  for whole, *parts in zip(reference, *shares, strict=True):
    joined = {name: np.concatenate([part[name] for part in parts]) for name in whole}
    assert_same([joined], [whole])
  assert not np.array_equal(dataset(**options, seed=1)[0]['image'], reference[0]['image'])


def first_volumes(batches):
  return collections.Counter(int(i) // 10000 for b in batches for i in b['image'][:, 0, 0, 0, 0])


@pytest.mark.parametrize(('weights', 'shares'), [(None, (0.2, 0.8)), ([6.0, 1.0], (0.6, 0.4))])
def test_volumes_come_by_sections_times_weight(weights, shares):
  # 2 and 8 sections: 0.2 and 0.8; with weights 12 and 8 of 20.
  split = volumes_of(2, 8, weights=weights)
  found = first_volumes(iterate(dataset(split=split, patch=(2, 4, 4)), 25))  # 100 examples
  assert [found[v] / 100 for v in (0, 1)] == pytest.approx(shares, abs=0.01)


def test_weighted_sections_still_come_once_a_pass():
  split = volumes_of(3, 4, weights=[4.0, 1.0])
  images = [b['image'][0, 0, 0, 0] for b in iterate(dataset(split=split, batch_size=1), 80)]
  for volume, depth in ((0, 3), (1, 4)):
    # Patches of 8 x 8: the first voxel of any lies in the section that its number tells.
    order = [int(i) % 10000 // 144 for i in images if int(i) // 10000 == volume]
    passes = [order[k : k + depth] for k in range(0, len(order) - depth, depth)]
    assert len(passes) > 3
    assert all(sorted(p) == list(range(depth)) for p in passes)


def test_a_pass_over_tiles_visits_every_place_and_positive_ones_as_often_as_asked():
  label = np.zeros((2, 12, 12), np.uint8)
  label[1, 11, 11] = 1
  number = np.arange(288, dtype=np.float32).reshape(2, 12, 12)
  split = volume_split((number, label))
  sampling = Sampling(kind='tiles', positive_copies=3)
  batches = iterate(dataset(split=split, patch=(6, 6), sampling=sampling, batch_size=1), 20)
  places = [int(b['image'][0, 0, 0, 0]) for b in batches]
  once = {s * 144 + y * 12 + x for s in (0, 1) for y in (0, 6) for x in (0, 6)}
  positive = 144 + 6 * 12 + 6
  for k in (0, 10):  # eight places, one of them three times: ten a pass
    assert sorted(places[k : k + 10]) == sorted([*once, positive, positive])


def test_targets_are_cut_where_the_image_is():
  split = volumes_of(4)
  maps = np.stack(targets.proximity_sections(split, Proximity(radius=4.0), ndim=3))
  data = dataset(
    split=split,
    patch=(2, 5, 5),
    targets=('proximity',),
    proximity=Proximity(radius=4.0),
  )
  for image, proximity in zip(data[0]['image'], data[0]['proximity'], strict=True):
    z, y, x = np.unravel_index(int(image[0, 0, 0, 0]), (4, 12, 12))
    np.testing.assert_array_equal(proximity, maps[z : z + 2, y : y + 5, x : x + 5])
    assert proximity.max() > 0
  assert 'proximity' not in dataset(split=split, patch=(2, 5, 5))[0]


def test_planes_need_centrelines_of_volumes():
  options = {'split': volumes_of(4), 'sampling': Sampling(planes_share=0.5)}
  with pytest.raises(DataError, match=r'proximity\.dimensions: is 2.*set it to 3'):
    dataset(**options, patch=(5, 5), targets=('proximity',))
  dataset(**options, patch=(5, 5))  # without the target nothing is wrong


def test_small_regions_of_images_in_memory_are_read_without_further_threads():
  assert pipeline.useful_threads(SPLIT, (128, 128), 4) == 0
  assert pipeline.useful_threads(SPLIT, (128, 128), 4, workers=1) == 1
  assert pipeline.useful_threads(SPLIT, (128, 128), 0, workers=1) == 0
  assert pipeline.useful_threads(SPLIT, (64, 128, 128), 4) == 4  # 2^20 voxels to copy


def test_files_are_read_by_all_threads(tmp_path):
  tifffile.imwrite(tmp_path / 'image.tif', np.zeros((2, 16, 16), np.uint8))
  split = pairs.Split.of_images(volumes.open_volume(str(tmp_path / 'image.tif')))
  assert pipeline.useful_threads(split, (8, 8), 4) == 4
