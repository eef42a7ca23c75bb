"""Which places are drawn: foreground, balance, fixed places, volumes and their planes."""

import collections

import numpy as np
import pydantic
import pytest
from data_support import cut_out, volume_split

from emseg_jax.config import Data, Sampling
from emseg_jax.data import blocks, normalise, sampling
from emseg_jax.errors import DataError

RAW = normalise.Normalisation('dataset', 1, 0.0, 1.0, 'float32')  # leaves pixels as they are
SHAPE = (6, 20, 24)
NUMBERS = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)


def split_of(label, **options):
  """A volume whose image holds the numbers of its voxels."""
  numbers = np.arange(label.size, dtype=np.float32).reshape(label.shape)
  return volume_split((numbers, label.astype(np.uint8)), num_classes=5, **options)


def sampler_of(split, patch, region=None, **options):
  return sampling.Sampler(split, patch=patch, region=region or patch, options=Sampling(**options))


def regions(sampler, count, entry=0):
  return [sampler.draw(entry, np.random.default_rng(seed)) for seed in range(count)]


def box(region):
  return tuple(slice(o, o + s) for o, s in zip(region.origin, region.size, strict=True))


def example(split, region, ndim, **options):
  return cut_out(split, region, ndim=ndim, normalisation=RAW, **options)


# ---- by what the patch holds --------------------------------------------------------------------


@pytest.mark.parametrize('patch', [(5, 6), (3, 5, 6)])
def test_foreground_is_searched_until_there_is_enough(patch):
  label = np.zeros(SHAPE)
  label[2, 3:6, 4:8] = 3
  label[2, :2] = 4  # ignored: neither foreground nor counted
  split = split_of(label, ignore_value=4)
  sampler = sampler_of(split, patch, kind='foreground', min_foreground=0.1, tries=2000)
  for region in regions(sampler, 20, entry=2):
    seen = label[2][box(region)[1:]] if len(patch) == 2 else label[box(region)]
    assert (seen == 3).sum() >= 0.1 * (seen != 4).sum() > 0
  # Uniform draws seldom do.
  shares = [(label[box(r)] == 3).mean() for r in regions(sampler_of(split, (3, 5, 6)), 20)]
  assert np.mean(np.array(shares) >= 0.1) < 0.5


def test_the_search_gives_up_after_so_many_tries_and_decodes_no_image():
  split = split_of(np.zeros(SHAPE), cache_bytes=0)
  volume, labels = split.sections[0].image_volume, split.sections[0].label_volume
  sampler = sampler_of(split, (5, 6), kind='foreground', tries=4)
  sampler.draw(1, np.random.default_rng(0))
  # The last draw is taken whatever it holds, so that it need not be looked at.
  assert labels.reads == [0, 3, 0, 0, 0, 0]
  assert volume.reads == [0] * 6
  expected = np.random.default_rng(0)
  places = [(0, int(expected.integers(0, 16)), int(expected.integers(0, 19))) for _ in range(4)]
  assert sampler.draw(1, np.random.default_rng(0)).origin == places[-1]


def test_random_sampling_decodes_no_label_to_choose_a_place():
  split = split_of(np.zeros(SHAPE))
  sampler_of(split, (3, 5, 6)).draw(0, np.random.default_rng(0))
  assert split.sections[0].label_volume.reads == [0] * 6


def test_balanced_patches_have_two_classes_and_none_too_large():
  label = np.zeros(SHAPE)
  label[:, :, 12:] = 1
  label[:, 10:, 20:] = 4  # ignored, else it would be a second class
  split = split_of(label, ignore_value=4)
  sampler = sampler_of(split, (5, 6), kind='balanced', max_share=0.7, tries=500)
  starts = set()
  for region in regions(sampler, 60):
    seen = label[box(region)]
    counts = collections.Counter(seen[seen != 4].tolist())
    assert len(counts) == 2
    assert max(counts.values()) <= 0.7 * counts.total()
    starts.add(region.origin[2])
  # 30 % of 6 columns are 1.8: both classes need two columns, so x is 8, 9 or 10.
  assert starts == {8, 9, 10}


def test_enough_is_judged_in_the_middle_of_the_region():
  label = np.zeros((1, 40, 40))
  label[0, 20, 20] = 1
  split = split_of(label)
  options = {'kind': 'foreground', 'min_foreground': 1e-6, 'tries': 5000}
  sampler = sampler_of(split, (4, 4), region=(12, 12), **options)
  for region in regions(sampler, 30):
    _, y, x = region.origin
    assert region.size == (1, 12, 12)
    assert {20 - y, 20 - x} <= {4, 5, 6, 7}  # the middle 4 of 12


def accepts(label, kind, **options):
  """Whether a patch as large as the section is accepted; 4 is ignored."""
  split = split_of(np.array([label]), ignore_value=4)
  sampler = sampler_of(split, (8, 8), kind=kind, **options)
  region = sampler.draw(0, np.random.default_rng(0))
  return sampler._accepts(sampler._middle(region, (1, *np.shape(label))), kind)


def test_shares_are_those_of_the_voxels_that_are_scored_limits_included():
  label = [[0, 0, 1, 4], [0, 2, 4, 4]]  # five scored, two foreground; smaller than the patch
  assert accepts(label, 'foreground', min_foreground=0.4)
  assert not accepts(label, 'foreground', min_foreground=0.41)
  assert accepts(label, 'balanced', max_share=0.6)
  assert not accepts(label, 'balanced', max_share=0.59)
  assert not accepts([[1, 1, 4]], 'balanced', max_share=1.0)


def test_a_place_that_is_all_ignored_is_no_foreground():
  split = split_of(np.full(SHAPE, 4), ignore_value=4)
  sampler = sampler_of(split, (5, 6), kind='foreground', min_foreground=0.0)
  region = sampler.draw(0, np.random.default_rng(0))
  assert not sampler._accepts(region, 'foreground')
  assert (example(split, region, 2)['weight'] == 0).all()


# ---- fixed places -------------------------------------------------------------------------------


def test_a_grid_visits_its_places_and_nothing_is_drawn():
  sampler = sampler_of(split_of(np.zeros(SHAPE)), (10, 12), kind='grid')
  places = [sampler.draw(entry, None) for entry in range(len(sampler))]
  expected = [((z,), (0, y, x)) for z in range(6) for y in (0, 5, 10) for x in (0, 6, 12)]
  assert [(p.group, p.origin) for p in places] == expected
  assert {p.size for p in places} == {(1, 10, 12)}


def test_a_larger_region_lies_around_the_place_as_far_as_the_image_goes():
  sampler = sampler_of(split_of(np.zeros(SHAPE)), (4, 4), region=(8, 30), kind='grid')
  origins = [sampler.draw(entry, None).origin for entry in range(len(sampler))]
  # Places at y = 0, 2, .. 16; two voxels more on either side where there are any.
  assert [y for _, y, _ in origins[::11]][:9] == [0, 0, 2, 4, 6, 8, 10, 12, 12]
  assert {x for _, _, x in origins} == {0}  # 30 is more than the image has


def test_a_share_of_the_tiles_is_drawn_where_there_is_foreground():
  label = np.zeros(SHAPE)
  label[0, 7, 9] = 1
  options = {'kind': 'tiles', 'random_share': 0.3, 'min_foreground': 0.01, 'tries': 3000}
  sampler = sampler_of(split_of(label), (4, 5), **options)
  found = regions(sampler, 300, entry=0)
  drawn = [r for r in found if r.origin != (0, 0, 0)]
  assert all(label[box(r)].any() for r in drawn)
  assert 60 < len(drawn) < 120  # 90 expected, standard deviation 8
  assert len({r.origin for r in drawn}) > 10


def test_options_of_fixed_places_are_refused_elsewhere():
  for option in ({'positive_copies': 2}, {'random_share': 0.5}):
    with pytest.raises(pydantic.ValidationError, match='need kind grid or tiles'):
      Sampling(kind='random', **option)
  with pytest.raises(pydantic.ValidationError, match='needs as many axes as patch'):
    Data(patch=(8, 64, 64), sampling=Sampling(kind='grid', stride=(32, 32)))


# ---- volumes and planes -------------------------------------------------------------------------


def test_a_region_of_a_volume_is_cut_from_image_label_and_targets_alike():
  label = NUMBERS % 5
  split = split_of(label, ignore_value=3)
  maps = {'proximity': list(NUMBERS + 1)}
  for region in regions(sampler_of(split, (3, 8, 6)), 10):
    found = example(split, region, 3, targets=maps)
    number = NUMBERS[box(region)]
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
      'image': ((3, 8, 6, 1), np.float32),
      'label': ((3, 8, 6), np.int32),
      'weight': ((3, 8, 6), np.float32),
      'valid': ((3,), np.int32),
      'proximity': ((3, 8, 6), np.float32),
    }
    np.testing.assert_array_equal(found['image'][..., 0], number)
    np.testing.assert_array_equal(found['proximity'], number + 1)
    np.testing.assert_array_equal(found['weight'], number % 5 != 3)
    np.testing.assert_array_equal(found['label'], np.where(number % 5 == 3, 0, number % 5))
    np.testing.assert_array_equal(found['valid'], (3, 8, 6))


def test_every_place_of_a_volume_is_drawn():
  sampler = sampler_of(split_of(np.zeros((3, 4, 4))), (2, 3, 3))
  origins = {r.origin for r in regions(sampler, 200)}
  assert origins == {(z, y, x) for z in range(2) for y in range(2) for x in range(2)}


def test_a_volume_smaller_than_the_region_is_mirrored_and_does_not_count_there():
  split = split_of(np.zeros((2, 4, 9)))
  found = example(split, sampler_of(split, (5, 6, 9)).draw(0, np.random.default_rng(0)), 3)
  np.testing.assert_array_equal(found['valid'], (2, 4, 9))
  weight = np.zeros((5, 6, 9))
  weight[:2, :4] = 1
  np.testing.assert_array_equal(found['weight'], weight)
  mirrored = np.pad(np.arange(72).reshape(2, 4, 9), [(0, 3), (0, 2), (0, 0)], 'symmetric')
  np.testing.assert_array_equal(found['image'][..., 0], mirrored)


def test_volumes_count_by_their_sections():
  split = volume_split(*[(np.zeros((n, 8, 8), np.uint8),) * 2 for n in (2, 5)], weights=[1.0, 3.0])
  sampler = sampler_of(split, (2, 4, 4))
  groups = [sampler.draw(i, np.random.default_rng(0)).group for i in range(len(sampler))]
  assert groups == [(0, 1)] * 2 + [(2, 3, 4, 5, 6)] * 5
  assert sampler.weights() == [1, 1, 3, 3, 3, 3, 3]


@pytest.mark.parametrize('kind', ['random', 'tiles'])
@pytest.mark.parametrize('patch', [(4, 5), (3, 4, 5)])
def test_planes_are_cut_along_the_other_axes(kind, patch):
  split = split_of(NUMBERS % 3)
  sampler = sampler_of(split, patch, kind=kind, planes_share=0.6)
  ndim, found = len(patch), regions(sampler, 300)
  count = collections.Counter(r.axis for r in found)
  # 120, 90 and 90 expected, standard deviations below 9
  assert set(count) == {0, 1, 2}
  assert abs(count[0] - 120) < 40
  assert abs(count[1] - 90) < 40
  for region in found[:60]:
    one = example(split, region, ndim)
    assert one['image'].shape == (*patch, 1)
    assert one['valid'].shape == (ndim,)
    numbers = one['image'][..., 0].astype(int)
    # z, y, x of every voxel, read from its number: which of them changes along which axis?
    places = np.unravel_index(numbers, SHAPE)
    exchanged = [0, 1, 2]
    exchanged[0], exchanged[region.axis] = region.axis, 0
    for axis, along in enumerate(exchanged[3 - ndim :]):
      valid = one['valid'][axis]
      steps = np.diff(places[along], axis=axis).take(range(valid - 1), axis)
      assert (steps == 1).all()
    inside = one['weight'] > 0
    np.testing.assert_array_equal(one['label'][inside], (numbers % 3)[inside])


def test_tiles_of_another_plane_are_those_of_the_turned_volume():
  sampler = sampler_of(split_of(np.zeros(SHAPE)), (4, 10), kind='tiles', planes_share=1.0)
  found = regions(sampler, 300)
  origins = {axis: {r.origin for r in found if r.axis == axis} for axis in (1, 2)}
  # Along y: 20 sections of 6 x 24; along x: 24 sections of 20 x 6, narrower than the patch.
  assert {o[1:] for o in origins[1]} == {(y, x) for y in (0, 2) for x in (0, 7, 14)}
  assert {o[1:] for o in origins[2]} == {(y, 0) for y in (0, 4, 8, 12, 16)}
  assert {o[0] for o in origins[1]} <= set(range(20))


def test_planes_need_a_volume_with_voxels_of_one_size():
  label = np.zeros(SHAPE)
  with pytest.raises(DataError, match=r'voxels are \(50.0, 4.0, 4.0\) nm .* set it to 0'):
    sampler_of(split_of(label, voxel_size_zyx=(50.0, 4.0, 4.0)), (8, 8), planes_share=0.1)
  for known in ((5.0, 5.0, 5.02), (None, 4.0, 4.0), None):
    sampler_of(split_of(label, voxel_size_zyx=known), (8, 8), planes_share=0.1)
  sampler_of(split_of(label, voxel_size_zyx=(50.0, 4.0, 4.0)), (3, 8, 8))  # cuts no planes
  with pytest.raises(DataError, match='unrelated'):
    sampler_of(split_of(label, axes='NYX'), (8, 8), planes_share=0.1)
  with pytest.raises(DataError, match='unrelated'):
    sampler_of(split_of(label, axes='NYX'), (3, 8, 8))


def test_groups_of_a_2d_sampler_are_its_sections():
  split = split_of(np.zeros(SHAPE))
  sampler = sampler_of(split, (8, 8))
  drawn = [sampler.draw(i, np.random.default_rng(0)).group for i in range(6)]
  assert tuple(drawn) == blocks.groups(split, 2)
