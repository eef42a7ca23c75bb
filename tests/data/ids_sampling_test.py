"""Instance ids on their way into batches: masks, foreground, boxes of large volumes."""

import numpy as np
import pytest
from data_support import BoxVolume

from emseg_jax.config import Data, Sampling, Task
from emseg_jax.data import labels, normalise, pairs, sampling, volumes

TASK = Task(activation='affinities', offsets=((1, 0, 0), (0, 1, 0), (0, 0, 1)), ignore_value=9)
IDENTITY = normalise.Normalisation('dataset', 1, 0.0, 1.0, 'uint8')
IDS = np.zeros((4, 12, 12), np.uint64)
IDS[:, 8:, 8:] = 2**33
IDS[:, 8, 8] = 9
IDS[:, 9, 9] = 5


def split_of(*, large=False, mask=None):
  make = BoxVolume if large else volumes.ArrayVolume
  image, ids = (make(a, name=n, axes='ZYX') for a, n in ((IDS.astype(np.uint8), 'i'), (IDS, 'l')))
  masked = None if mask is None else volumes.ArrayVolume(mask, name='m', axes='ZYX')
  sections = [
    pairs.Section(f'{i}', image, i, ids, i, mask_volume=masked, mask_index=i) for i in range(4)
  ]
  rules = labels.Rules(TASK, Data(patch=(2, 4, 4)))
  return pairs.Split(sections, rules=rules, cache_bytes=0 if large else 10**9)


def example(split, origin, size=(2, 4, 4)):
  into = {name: array[0] for name, array in sampling.allocate(1, size, channels=1).items()}
  region = sampling.Region(tuple(range(4)), 0, origin, size)
  sampling.read_example(split, region, into, normalisation=IDENTITY)
  sampling.weigh(into)
  return into


@pytest.mark.parametrize('large', [False, True])
def test_ids_of_a_patch_are_small_and_ignored_ones_have_no_weight(large):
  found = example(split_of(large=large), (0, 8, 8))
  assert found['label'].dtype == np.int32
  assert found['label'][0, :2, :2].tolist() == [[0, 2], [2, 1]]
  assert found['weight'][0, :2, :2].tolist() == [[0, 1], [1, 1]]


def test_what_the_mask_leaves_out_has_no_weight():
  mask = np.ones(IDS.shape, np.uint8)
  mask[:, 10:] = 0
  found = example(split_of(mask=mask), (1, 8, 8))
  assert found['weight'][0].sum(axis=1).tolist() == [3, 4, 0, 0]


def test_beyond_the_volume_there_is_background_without_weight():
  found = example(split_of(), (0, 0, 0), (2, 14, 14))
  assert found['label'][:, 11, 11].tolist() == [2, 2]
  for name in ('label', 'weight'):
    assert not found[name][:, 12:].any()
    assert not found[name][:, :, 12:].any()


@pytest.mark.parametrize('large', [False, True])
def test_foreground_are_objects_and_not_what_is_ignored(large):
  options = Sampling(kind='foreground', min_foreground=0.3, tries=500)
  sampler = sampling.Sampler(
    split_of(large=large), patch=(2, 4, 4), region=(2, 4, 4), options=options
  )
  for seed in range(5):
    region = sampler.draw(0, np.random.default_rng(seed))
    label = IDS[region.origin[0] :][:2, region.origin[1] :, region.origin[2] :][:, :4, :4]
    assert np.mean((label > 0) & (label != 9)) >= 0.29 or large
    assert ((label > 0) & (label != 9)).any()
