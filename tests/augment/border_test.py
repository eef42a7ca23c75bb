"""What a patch shows beyond the image, where it lies in it, and which changes fit which patch."""

import numpy as np
import pytest
from augment_support import ramps, run, still, tissue

from emseg_jax import augment, config


def mirrored(field, by):
  return np.pad(field, by, mode='symmetric')


def windows(field, by, size):
  """All windows of `size` of a field that is mirrored by `by` voxels on every side, by corner."""
  padded = mirrored(field, by)
  steps = [range(p - s + 1) for p, s in zip(padded.shape, size, strict=True)]
  return {(y, x): padded[y : y + size[0], x : x + size[1]] for y in steps[0] for x in steps[1]}


@pytest.mark.parametrize('fill', ['reflect', 'ignore'])
def test_a_shifted_patch_shows_the_image_mirrored_and_trained_on_or_not(fill):
  batch = tissue(range(64), (10, 8))
  batch['weight'][:, 2, :] = 0.25
  out = run(batch, still(shift=0.3, fill=fill), (10, 8))
  corners = set()
  for i in range(64):
    (corner,) = [
      c
      for c, w in windows(batch['image'][i, ..., 0], 3, (10, 8)).items()
      if np.array_equal(w, out['image'][i, ..., 0])
    ]
    corners.add(corner)
    (y, x) = corner
    cut = slice(y, y + 10), slice(x, x + 8)
    np.testing.assert_array_equal(out['label'][i], mirrored(batch['label'][i], 3)[cut])
    weight = np.pad(batch['weight'][i], 3, mode='symmetric' if fill == 'reflect' else 'constant')
    np.testing.assert_array_equal(out['weight'][i], weight[cut])
  # 0.3 · 10 = 3 along y, 0.3 · 8 = 2.4, rounded to 2, along x
  assert {y - 3 for y, _ in corners} == set(range(-3, 4))
  assert {x - 3 for _, x in corners} == set(range(-2, 3))


def test_what_a_zoom_sees_beyond_the_image_has_weight_zero_if_ignored():
  options = config.Augment(resize=(0.5, 0.5), fill='ignore')
  out = run(ramps(range(16), (16, 16)), options, (16, 16))
  # Half size: the region fills 8 of 16 voxels along each axis, every other voxel of it.
  np.testing.assert_array_equal(out['weight'].sum(axis=(1, 2)), 64)
  for label, weight in zip(out['label'], out['weight'], strict=True):
    rows, columns = np.unique(label[weight > 0] // 16), np.unique(label[weight > 0] % 16)
    np.testing.assert_array_equal(np.diff(rows), [2] * 7)
    np.testing.assert_array_equal(np.diff(columns), [2] * 7)


@pytest.mark.parametrize('resize', [(1.0, 1.0), (0.5, 2.0)])
def test_a_patch_lies_within_the_image_where_it_fits_though_the_region_is_larger(resize):
  """Images of 40 x 48 in regions of 64 x 64: boxes of at most 16 / 0.5 = 32 voxels always fit."""
  batch = ramps(range(64), (64, 64))
  batch['valid'] = np.tile(np.array([40, 48], np.int32), (64, 1))
  batch['weight'][:, 40:] = 0
  batch['weight'][:, :, 48:] = 0
  out = run(batch, config.Augment(resize=resize, fill='ignore'), (16, 16))
  assert out['weight'].min() == 1
  assert out['image'][..., 0].max() > 32  # the far side is reached


@pytest.mark.parametrize('fill', ['reflect', 'ignore'])
def test_a_patch_larger_than_the_image_shows_all_of_it_and_around_it_its_mirror(fill):
  batch = tissue(range(8), (32, 32))
  batch['valid'] = np.tile(np.array([20, 5], np.int32), (8, 1))
  for value in batch.values():
    if value.ndim > 2:
      value[:, 20:] = -1  # never to be seen
      value[:, :, 5:] = -1
  out = run(batch, still(fill=fill), (32, 32))
  for before, after, weight in zip(batch['image'], out['image'], out['weight'], strict=True):
    # In the middle: 6 rows on either side; 13 columns before and 14 behind, mirrored repeatedly.
    around = (6, 6), (14, 13), (0, 0)
    np.testing.assert_array_equal(after, np.pad(before[:20, :5], around, mode='symmetric'))
    inside = np.pad(np.ones((20, 5)), around[:2])
    np.testing.assert_array_equal(weight, 1 if fill == 'reflect' else inside)


def test_quarter_turns_of_an_oblong_patch_and_regions_that_are_too_small_are_refused():
  with pytest.raises(ValueError, match='needs a square'):
    run(ramps([0], (8, 9)), config.Augment(), (8, 9))
  with pytest.raises(ValueError, match='smaller than the patch'):
    run(ramps([0], (8, 8)), config.Augment(), (9, 9))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'defects': {'missing_section': 0.1}}, r'augment.defects.missing_section needs .*\(8, 8\)'),
    ({'defects': {'misalignment': 0.1}}, 'augment.defects.misalignment needs'),
    ({'defects': {'slice_shift': 0.1}}, 'augment.defects.slice_shift needs'),
    ({'flip': 'zyx'}, 'augment.flip=zyx needs'),
    ({'isotropic': True}, 'augment.isotropic needs'),
  ],
)
def test_changes_of_volumes_are_refused_for_images_and_taken_for_volumes(changes, message):
  options = config.Augment(**changes)
  with pytest.raises(ValueError, match=message):
    augment.validate(options, (8, 8))
  augment.validate(options, (4, 8, 8))


@pytest.mark.parametrize('name', ['motion_blur', 'cut_out', 'cut_noise', 'stripes', 'bands'])
def test_the_other_defects_occur_in_images_too(name):
  augment.validate(config.Augment(defects={name: 1}), (8, 8))


def test_displacements_that_fold_the_tissue_are_refused():
  with pytest.raises(ValueError, match=r'elastic=17.0 .* elastic_spacing=32'):
    config.Augment(elastic=17)
  config.Augment(elastic=16)
