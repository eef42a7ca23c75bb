"""Which region is read for a patch, and crops, flips, turns and zooms against numpy."""

import numpy as np
from augment_support import ramps, run, still, tissue

from emseg_jax import augment, config


def symmetries(plane):
  return [np.rot90(side, k) for side in (plane, plane[:, ::-1]) for k in range(4)]


def matches(plane, candidates):
  return [i for i, candidate in enumerate(candidates) if np.array_equal(plane, candidate)]


def read_size(patch, **changes):
  return augment.read_size(still(**changes), patch)


def test_read_size_is_the_patch_over_the_smallest_zoom_rounded_up():
  assert read_size((128, 96)) == (128, 96)
  assert read_size((128, 96), resize=(0.5, 2.0)) == (
    256,
    192,
  )  # zooming out by 2 doubles the extent
  assert read_size((128, 96), resize=(1.5, 2.0)) == (128, 96)
  assert read_size((100, 10), resize=(0.75, 1.0)) == (134, 14)  # 133.3 and 13.3
  assert read_size((90, 3), resize=(0.3, 1.0)) == (300, 10)  # exact divisions cost no extra voxel


def test_read_size_holds_the_corners_of_turned_sheared_shifted_and_warped_patches():
  assert read_size((128, 128), rotate=180) == (182, 182)  # the diagonal, 128 · sqrt 2 = 181.02
  assert read_size((128, 128), rotate=45) == (182, 182)
  assert read_size((30, 40), rotate=90) == (50, 50)  # the diagonal once more
  # cos 30 · 100 + sin 30 · 100 = 136.6
  assert read_size((100, 100), rotate=30) == (137, 137)
  assert read_size((30, 40), shear=45) == (30, 70)  # tan 45 = 1 voxel along x for each along y
  assert read_size((30, 40), shift=0.1) == (36, 48)  # 3 and 4 on either side
  assert read_size((30, 40), elastic=2.5) == (35, 45)
  assert read_size((30, 40), elastic=2.5, resize=(0.5, 1.0)) == (70, 90)


def test_read_size_reads_more_sections_only_of_isotropic_volumes():
  assert read_size((8, 16, 16)) == (8, 16, 16)
  assert read_size((8, 16, 16), resize=(0.5, 1.0), elastic=1) == (8, 36, 36)
  assert read_size((8, 16, 16), resize=(0.5, 1.0), elastic=1, isotropic=True) == (20, 36, 36)
  defects = {'misalignment': 0.1, 'slice_shift': 0.1, 'shift': 5}  # each 5 voxels on either side
  assert read_size((8, 16, 16), defects=defects) == (8, 36, 36)
  assert read_size((8, 16, 16), defects={'slice_shift': 0.1, 'shift': 5}) == (8, 26, 26)
  assert read_size((8, 16, 16), defects={'cut_out': 0.1}) == (8, 16, 16)


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


def test_a_volume_is_mirrored_along_z_only_if_asked_and_turned_in_the_plane():
  batch = tissue(range(128), (3, 5, 5))
  for flip, ways in (('zyx', 16), ('yx', 8)):
    out = run(batch, config.Augment(flip=flip), (3, 5, 5))
    found = set()
    for before, after in zip(batch['image'][..., 0], out['image'][..., 0], strict=True):
      candidates = [
        np.rot90(side[:, :, ::mirror], k, axes=(1, 2))
        for side in (before, before[::-1])
        for mirror in (1, -1)
        for k in range(4)
      ]
      found |= set(matches(after, candidates))
    assert found == set(range(ways))  # 16 in 128 draws: each missing with p = 0.0003


def test_turns_alone_never_mirror():
  turned = run(ramps(range(64), (7, 7)), config.Augment(flip='off'), (7, 7))['label']
  found = {matches(out, symmetries(np.arange(49).reshape(7, 7)))[0] for out in turned}
  assert found == {0, 1, 2, 3}


def test_mirroring_along_x_alone_never_turns_rows_upside_down():
  out = run(ramps(range(32), (8, 8)), config.Augment(flip='x', rotate90=False), (8, 8))
  rows, columns = out['image'][..., 0], out['image'][..., 1]
  assert (rows[:, 0] == 0).all()
  assert {int(c) for c in columns[:, 0, 0]} == {0, 7}


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


def test_zoom_is_uniform_in_its_range_and_the_same_along_both_axes():
  out = run(ramps(range(512), (32, 32)), config.Augment(resize=(0.5, 2.0)), (16, 16))
  # One step along an axis moves one coordinate, whichever way the patch was turned, by 1 / zoom.
  down, right = (
    np.sum(np.abs(out['image'][:, 8 + dy, 8 + dx] - out['image'][:, 8, 8]), axis=-1)
    for dy, dx in ((1, 0), (0, 1))
  )
  np.testing.assert_allclose(down, right, rtol=1e-4)
  zooms = 1 / down
  assert 0.5 - 1e-3 <= zooms.min() < 0.52 < 1.98 < zooms.max() <= 2.0 + 1e-3
  # uniform: mean 1.25, standard error 1.5 / sqrt(12 · 512) = 0.019; the tolerance is 4 of them
  assert abs(zooms.mean() - 1.25) < 0.077


def test_zooming_in_by_two_samples_a_ramp_at_half_steps_anywhere_in_the_region():
  out = run(ramps(range(64), (32, 32)), still(resize=(2.0, 2.0)), (32, 32))
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
