"""Geometry against numpy, grey values against their definitions, the same on any device."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from emseg_jax import augment, config

FULL = config.Augment(resize=(0.5, 2.0), brightness=0.3, contrast=0.3, gamma=0.3, noise=0.2)
STILL = {'flip': 'off', 'rotate90': False}
KEY = jax.random.key(7)
FIELDS = 'image', 'label', 'weight'


def ramps(indices, size):
  """Examples whose image holds its own coordinates (y, x) and whose label the flat voxel number."""
  y, x = np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing='ij')
  count = len(indices)
  return {
    'image': np.tile(np.stack([y, x], axis=-1).astype(np.float32), (count, 1, 1, 1)),
    'label': np.tile((y * size[1] + x).astype(np.int32), (count, 1, 1)),
    'weight': np.ones((count, *size), np.float32),
    'index': np.asarray(indices, np.int32),
    'valid': np.tile(np.asarray(size, np.int32), (count, 1)),
  }


def tissue(indices, size, channels=1):
  """Random grey values that depend on the example number only."""
  batch = ramps(indices, size)
  images = [np.random.default_rng(i).normal(3.0, 2.0, (*size, channels)) for i in indices]
  return {**batch, 'image': np.stack(images).astype(np.float32)}


CALL = jax.jit(augment.augment, static_argnames=('options', 'patch'))


def run(batch, options, patch, key=KEY):
  out = CALL(batch, key, options=options, patch=patch)
  return {name: np.asarray(value) for name, value in out.items()}


def symmetries(plane):
  return [np.rot90(side, k) for side in (plane, plane[:, ::-1]) for k in range(4)]


def matches(plane, candidates):
  return [i for i, candidate in enumerate(candidates) if np.array_equal(plane, candidate)]


def test_read_size_is_the_patch_over_the_smallest_zoom_rounded_up():
  def size(low, high, patch):
    return augment.read_size(config.Augment(resize=(low, high)), patch)

  assert size(0.5, 2.0, (128, 96)) == (256, 192)  # zooming out by 2 doubles the extent
  assert size(1.5, 2.0, (128, 96)) == (128, 96)
  assert size(0.75, 1.0, (100, 10)) == (134, 14)  # 133.3 and 13.3
  assert size(0.3, 1.0, (90, 3)) == (300, 10)  # exact divisions cost no extra voxel


def test_flips_and_turns_give_the_eight_symmetries_of_the_square_about_equally_often():
  batch = tissue(range(400), (7, 7))
  numbers = batch['label']
  batch['label'] = np.stack([numbers, 48 - numbers], axis=-1).astype(np.uint8)  # two masks
  batch['mask'] = np.arange(400) % 3 > 0
  out = run(batch, config.Augment(), (7, 7))
  found = []
  for before, after, label in zip(batch['image'], out['image'], out['label'], strict=True):
    (which,) = matches(after[..., 0], symmetries(before[..., 0]))
    assert matches(label[..., 0], symmetries(numbers[0])) == [which]
    found.append(which)
  # 50 expected of each; binomial standard deviation sqrt(400 · 1/8 · 7/8) = 6.6, so 4 of them
  assert np.all(np.abs(np.bincount(found, minlength=8) - 50) < 27)
  np.testing.assert_array_equal(out['label'][..., 1], 48 - out['label'][..., 0])
  assert out['label'].dtype == np.uint8
  for name in ('mask', 'index'):  # other entries pass through
    np.testing.assert_array_equal(out[name], batch[name])


def test_turns_alone_never_mirror():
  turned = run(ramps(range(64), (7, 7)), config.Augment(flip='off'), (7, 7))['label']
  assert {matches(out, symmetries(np.arange(49).reshape(7, 7)))[0] for out in turned} == {
    0,
    1,
    2,
    3,
  }


def test_quarter_turns_of_an_oblong_patch_and_regions_that_are_too_small_are_refused():
  with pytest.raises(ValueError, match='needs a square'):
    run(ramps([0], (8, 9)), config.Augment(), (8, 9))
  with pytest.raises(ValueError, match='smaller than the patch'):
    run(ramps([0], (8, 8)), config.Augment(), (9, 9))


def test_a_larger_region_is_cropped_at_every_whole_voxel_position_and_mirrored_four_ways():
  out = run(ramps(range(300), (9, 11)), config.Augment(rotate90=False), (7, 8))
  seen = set()
  for image, label in zip(out['image'], out['label'], strict=True):
    y, x = divmod(int(label.min()), 11)
    window = np.arange(99).reshape(9, 11)[y : y + 7, x : x + 8]
    ways = [window[::sy, ::sx] for sy in (1, -1) for sx in (1, -1)]
    seen.add((y, x, *matches(label, ways)))
    np.testing.assert_array_equal(image @ np.array([11, 1]), label)
  # 9 - 7 + 1 by 11 - 8 + 1 corners and 4 mirrorings; 48 in 300 draws: each missing with p = 0.002
  assert {corner[:2] for corner in seen} == {(y, x) for y in range(3) for x in range(4)}
  assert {which for *_, which in seen} == {0, 1, 2, 3}


def test_image_label_and_weight_move_together_under_zoom_turns_and_flips():
  batch = ramps(range(512), (32, 32))
  batch['weight'] = (batch['label'] % 3 > 0).astype(np.float32)
  out = run(batch, config.Augment(resize=(0.5, 2.0)), (16, 16))
  nearest = np.stack([out['label'] // 32, out['label'] % 32], axis=-1)
  # The image holds its exact coordinates, the label those of the nearest voxel.
  assert np.max(np.abs(out['image'] - nearest)) < 0.5 + 1e-4
  np.testing.assert_array_equal(out['weight'], (out['label'] % 3 > 0).astype(np.float32))
  # One step along y moves one coordinate, whichever way the patch was turned, by 1 / zoom.
  zooms = 1 / np.sum(np.abs(out['image'][:, 9, 8] - out['image'][:, 8, 8]), axis=-1)
  assert 0.5 - 1e-3 <= zooms.min() < 0.52 < 1.98 < zooms.max() <= 2.0 + 1e-3
  # uniform: mean 1.25, standard error 1.5 / sqrt(12 · 512) = 0.019; the tolerance is 4 of them
  assert abs(zooms.mean() - 1.25) < 0.077


def test_zooming_in_by_two_samples_a_ramp_at_half_steps_anywhere_in_the_region():
  out = run(ramps(range(64), (32, 32)), config.Augment(resize=(2.0, 2.0), **STILL), (32, 32))
  y, x = out['image'][..., 0], out['image'][..., 1]
  inner = slice(1, -1)  # beyond the centre of the first and last voxel the edge is repeated
  np.testing.assert_allclose(np.diff(y, axis=1)[:, inner], 0.5, atol=1e-4)
  np.testing.assert_allclose(np.diff(x, axis=2)[:, :, inner], 0.5, atol=1e-4)
  # The middle of the patch is that of a box of 16 voxels, whose corner is uniform in 0..16.
  corner = y[:, 15:17, 0].mean(axis=1) + 0.5 - 8
  assert -1e-4 <= corner.min() < 2 < 14 < corner.max() <= 16 + 1e-4
  # mean 8, standard error 16 / sqrt(12 · 64) = 0.58; the tolerance is 4 of them
  assert abs(corner.mean() - 8) < 2.3
  assert np.all(out['weight'] == 1)


def test_what_a_zoom_sees_beyond_its_region_has_weight_zero():
  out = run(ramps(range(16), (16, 16)), config.Augment(resize=(0.5, 0.5)), (16, 16))
  # Half size: the region fills 8 of 16 voxels along each axis, every other voxel of it.
  np.testing.assert_array_equal(out['weight'].sum(axis=(1, 2)), 64)
  assert np.all(np.isfinite(out['image']))
  for label, weight in zip(out['label'], out['weight'], strict=True):
    rows, columns = np.unique(label[weight > 0] // 16), np.unique(label[weight > 0] % 16)
    np.testing.assert_array_equal(np.diff(rows), [2] * 7)
    np.testing.assert_array_equal(np.diff(columns), [2] * 7)


def full_batch(indices):
  return tissue(indices, augment.read_size(FULL, (16, 16)))


def test_same_bits_on_one_and_on_eight_devices_without_communication():
  batch = full_batch(range(8))
  mesh = jax.make_mesh((8, 1), ('data', 'space'), axis_types=(AxisType.Auto,) * 2)
  split = NamedSharding(mesh, PartitionSpec('data'))
  call = jax.jit(
    functools.partial(augment.augment, options=FULL, patch=(16, 16)), out_shardings=split
  )
  sharded = jax.device_put(batch, split)
  compiled = call.lower(sharded, KEY).compile()
  assert not any(op in compiled.as_text() for op in ('all-gather', 'all-reduce', 'all-to-all'))
  alone, together = run(batch, FULL, (16, 16)), compiled(sharded, KEY)
  for name in FIELDS:
    assert len(together[name].sharding.device_set) == 8
    np.testing.assert_array_equal(np.asarray(together[name]), alone[name])


def test_an_example_does_not_depend_on_its_batch():
  inside = run(full_batch([9, 2, 5, 7, 1, 0, 4, 3]), FULL, (16, 16))
  alone = run(full_batch([5]), FULL, (16, 16))
  for name in FIELDS:
    np.testing.assert_array_equal(inside[name][2], alone[name][0])


def test_no_two_examples_and_no_two_steps_draw_the_same():
  batch = {**full_batch([3] * 8), 'index': np.arange(8, dtype=np.int32)}  # eight times one image
  first = run(batch, FULL, (16, 16))['image']
  assert len(np.unique(first.reshape(8, -1), axis=0)) == 8
  np.testing.assert_array_equal(run(batch, FULL, (16, 16))['image'], first)
  later = run(batch, FULL, (16, 16), key=jax.random.fold_in(KEY, 1))['image']
  assert not any(np.array_equal(a, b) for a, b in zip(first, later, strict=True))


def test_contrast_scales_about_the_mean_and_brightness_shifts_by_standard_deviations():
  batch = tissue(range(64), (16, 16))
  before = batch['image'].astype(np.float64).reshape(64, -1)
  out = run(batch, config.Augment(contrast=0.4, brightness=0.3, **STILL), (16, 16))
  after = out['image'].reshape(64, -1)
  mean, std = before.mean(1, keepdims=True), before.std(1, keepdims=True)
  factor = after.std(1, keepdims=True) / std
  shift = (after.mean(1, keepdims=True) - mean) / std
  np.testing.assert_allclose(after, mean + factor * (before - mean) + shift * std, atol=1e-4)
  assert 0.6 - 1e-3 <= factor.min() < 0.7 < 1.3 < factor.max() <= 1.4 + 1e-3
  assert -0.3 - 1e-3 <= shift.min() < -0.2 < 0.2 < shift.max() <= 0.3 + 1e-3
  assert abs(np.corrcoef(factor[:, 0], shift[:, 0])[0, 1]) < 0.5  # drawn apart; 4 / sqrt(64)


def test_gamma_raises_grey_values_between_their_extremes_to_a_power():
  batch = tissue(range(64), (16, 16))
  out = run(batch, config.Augment(gamma=0.5, **STILL), (16, 16))

  def relative(image):
    low, high = image.min((1, 2), keepdims=True), image.max((1, 2), keepdims=True)
    return ((image - low) / (high - low)).reshape(len(image), -1), low, high

  before, low, high = relative(batch['image'].astype(np.float64))
  after, low_after, high_after = relative(out['image'].astype(np.float64))
  np.testing.assert_allclose([low_after, high_after], [low, high], atol=1e-5)
  middle = np.argmin(np.abs(before - 0.5), axis=1)[:, None]
  exponent = np.log(np.take_along_axis(after, middle, 1)) / np.log(
    np.take_along_axis(before, middle, 1)
  )
  np.testing.assert_allclose(after, before**exponent, atol=1e-4)
  bounds = np.log2(exponent)
  assert -0.5 - 1e-3 <= bounds.min() < -0.4 < 0.4 < bounds.max() <= 0.5 + 1e-3


def test_noise_is_gaussian_with_a_sigma_up_to_its_share_of_the_standard_deviation():
  batch = tissue(range(64), (32, 32))
  out = run(batch, config.Augment(noise=0.5, **STILL), (32, 32))
  noise = (out['image'] - batch['image']) / batch['image'].std((1, 2), keepdims=True)
  sigma = noise.std((1, 2))
  # 32² samples: the standard deviation of sigma is sigma / sqrt(2 · 1024) = 2.2 %; bounds at 4 of
  # them
  assert sigma.max() < 0.5 * 1.09
  assert sigma.min() < 0.05 < 0.45 < sigma.max()
  whitened = noise / sigma[:, None, None]
  # 65 536 samples; kurtosis of a Gaussian is 3, its standard error sqrt(24 / 65536) = 0.02
  assert abs(np.mean(whitened**4) - 3) < 0.1
  np.testing.assert_array_equal(out['label'], batch['label'])
  np.testing.assert_array_equal(out['weight'], batch['weight'])


def test_a_constant_patch_stays_constant():
  batch = full_batch(range(8))
  batch['image'] = np.full_like(batch['image'], 0.25)
  np.testing.assert_array_equal(run(batch, FULL, (16, 16))['image'], np.float32(0.25))


def test_a_grey_image_on_three_differently_normalised_channels_stays_grey():
  grey = full_batch(range(8))
  offset, scale = np.array([0.1, 0.2, -0.3]), np.array([1.0, 2.0, 0.5])
  colour = {**grey, 'image': (offset + scale * grey['image']).astype(np.float32)}
  expected = offset + scale * run(grey, FULL, (16, 16))['image']
  np.testing.assert_allclose(run(colour, FULL, (16, 16))['image'], expected, atol=1e-4)


@pytest.mark.parametrize('resize', [(1.0, 1.0), (0.5, 2.0)])
def test_a_patch_lies_within_the_image_where_it_fits_though_the_region_is_larger(resize):
  """Images of 40 x 48 in regions of 64 x 64: boxes of at most 16 / 0.5 = 32 voxels always fit."""
  batch = ramps(range(64), (64, 64))
  batch['valid'] = np.tile(np.array([40, 48], np.int32), (64, 1))
  batch['weight'][:, 40:] = 0
  batch['weight'][:, :, 48:] = 0
  out = run(batch, config.Augment(resize=resize), (16, 16))
  assert out['weight'].min() == 1
  assert out['image'][..., 0].max() > 32  # the far side is reached


def test_a_patch_larger_than_the_image_shows_all_of_it_and_gives_the_rest_weight_zero():
  batch = ramps(range(8), (32, 32))
  batch['valid'] = np.tile(np.array([20, 24], np.int32), (8, 1))
  batch['weight'][:, 20:] = 0
  batch['weight'][:, :, 24:] = 0
  out = run(batch, config.Augment(), (32, 32))
  np.testing.assert_array_equal(out['weight'].sum(axis=(1, 2)), 20 * 24)


def test_mirroring_along_x_alone_never_turns_rows_upside_down():
  out = run(ramps(range(32), (8, 8)), config.Augment(flip='x', rotate90=False), (8, 8))
  rows, columns = out['image'][..., 0], out['image'][..., 1]
  assert (rows[:, 0] == 0).all()
  assert {int(c) for c in columns[:, 0, 0]} == {0, 7}
