"""What each defect changes, and that it changes nothing else."""

import numpy as np
import pytest
from augment_support import located, run, still, tissue

OF_BOTH = 'motion_blur', 'cut_out', 'cut_noise', 'stripes', 'bands'
IMAGE, VOLUME = (16, 18), (4, 16, 18)
COUNT = 48


def spoilt(name, size, share=1.0, shift=3, batch=None):
  """A batch before and after one defect."""
  before = batch or tissue(range(COUNT), size)
  options = still(defects={name: share, 'shift': shift})
  return before, run(before, options, size)


def changed(before, after):
  """Which voxels, [B, *size] bool."""
  return np.any(before['image'] != after['image'], axis=-1)


def along(where, axis):
  """Which indices along one axis of [*size] hold any of `where`."""
  return np.flatnonzero(np.any(where, axis=tuple(a for a in range(where.ndim) if a != axis)))


def is_run(indices):
  return np.array_equal(indices, np.arange(indices[0], indices[-1] + 1))


@pytest.mark.parametrize('name', ['misalignment', 'motion_blur', 'cut_out'])
def test_a_defect_occurs_in_its_share_of_the_examples_and_leaves_the_others_alone(name):
  size = (4, 6, 6)
  batch = tissue(range(200), (4, 8, 8) if name == 'misalignment' else size)
  # A shift by up to 1 needs a region that is larger by 1 on every side.
  never, sometimes, always = (
    run(batch, still(defects={name: share, 'shift': 1}), size)['image'] for share in (1e-9, 0.25, 1)
  )
  middle = batch['image'][:, :, 1:7, 1:7] if name == 'misalignment' else batch['image']
  np.testing.assert_array_equal(never, middle)
  hit = np.any(sometimes != never, axis=(1, 2, 3, 4))
  # 50 of 200 expected; binomial standard deviation sqrt(200 · 3/16) = 6.1, so 4 of them
  assert abs(hit.sum() - 50) < 25
  assert np.all(np.any(always != never, axis=(1, 2, 3, 4)))
  np.testing.assert_array_equal(always[hit], sometimes[hit])  # whether is drawn apart from how


@pytest.mark.parametrize('name', ['missing_section', *OF_BOTH])
def test_labels_and_weights_stay_where_the_image_alone_is_spoilt(name):
  before, after = spoilt(name, VOLUME)
  for field in ('label', 'weight'):
    np.testing.assert_array_equal(before[field], after[field])
  assert np.all(np.isfinite(after['image']))


def test_a_missing_section_is_all_at_the_smallest_or_at_the_mean_grey_value():
  before, after = spoilt('missing_section', VOLUME)
  found, fills = set(), []
  for volume, spoilt_volume, where in zip(
    before['image'], after['image'], changed(before, after), strict=True
  ):
    (section,) = along(where, 0)
    found.add(section)
    (value,) = np.unique(spoilt_volume[section])
    fills.append([np.isclose(value, v, atol=1e-3) for v in (volume.min(), volume.mean())])
  assert found == {0, 1, 2, 3}
  assert np.all(np.sum(fills, axis=1) == 1)
  # half of 48 each, standard deviation sqrt(12) = 3.5, so 4 of them
  assert abs(np.sum(fills, axis=0)[0] - 24) < 14


def shown_shifts(name):
  """By how much each section is shifted against the first and last that agree: [B, Z, 2]."""
  margin = 3
  region = (5, 8 + 2 * margin, 8 + 2 * margin)
  batch, out = spoilt(name, (5, 8, 8), shift=margin, batch=located(range(COUNT), region))
  corner = np.unravel_index(out['label'][:, :, 0, 0], region)  # of each section
  np.testing.assert_array_equal(corner[0], np.tile(np.arange(5), (COUNT, 1)))
  for i, z in np.ndindex(COUNT, 5):
    y, x = corner[1][i, z], corner[2][i, z]
    for field in ('image', 'label', 'weight'):  # all of them move
      window = batch[field][i, z, y : y + 8, x : x + 8]
      np.testing.assert_array_equal(out[field][i, z], window)
  return np.stack(corner[1:], axis=-1)


def test_misalignment_shifts_all_sections_from_one_on():
  corner = shown_shifts('misalignment')
  np.testing.assert_array_equal(corner[:, 0], 3)  # in the middle of the margin
  firsts, vectors = set(), set()
  for sections in corner - 3:
    (moved,) = np.nonzero(np.any(sections != 0, axis=-1))
    np.testing.assert_array_equal(moved, np.arange(moved[0], 5))
    np.testing.assert_array_equal(sections[moved], sections[moved[:1]].repeat(len(moved), axis=0))
    firsts.add(moved[0])
    vectors.add(tuple(sections[-1]))
  assert firsts == {1, 2, 3, 4}
  assert np.max(np.abs(list(vectors))) == 3
  assert len(vectors) > 20  # of 7² - 1


def test_slice_shift_shifts_one_section():
  sections = shown_shifts('slice_shift') - 3
  moved = np.any(sections != 0, axis=-1)
  np.testing.assert_array_equal(moved.sum(axis=1), 1)
  assert set(np.argmax(moved, axis=1)) == {0, 1, 2, 3, 4}
  assert np.max(np.abs(sections)) == 3


@pytest.mark.parametrize('size', [(23, 23), (3, 23, 23)])
def test_motion_blur_is_the_mean_along_a_line(size):
  batch = tissue(range(COUNT), size)
  batch['image'] = np.zeros_like(batch['image'])
  batch['image'][..., 11, 11, 0] = 1
  _, after = spoilt('motion_blur', size, batch=batch)
  angles = []
  for image in after['image'][..., 0]:
    if len(size) == 3:
      (section,) = [i for i in range(3) if image[i, 11, 11] != 1]
      for other in {0, 1, 2} - {section}:
        np.testing.assert_array_equal(image[other], batch['image'][0, 0, ..., 0])
      image = image[section]
    voxels = np.argwhere(image > 0) - 11
    assert len(voxels) in (3, 5, 7, 9)
    np.testing.assert_allclose(image[image > 0], 1 / len(voxels), rtol=1e-6)
    assert np.max(np.abs(voxels)) == len(voxels) // 2  # one for each step along the longer axis
    end = voxels[np.argmax(np.hypot(*voxels.T))]
    # Close to the line through the middle and its end: half a voxel either way, twice.
    assert np.max(np.abs(voxels @ [end[1], -end[0]])) / np.hypot(*end) <= 1
    np.testing.assert_array_equal(voxels, -voxels[::-1])
    angles.append(np.arctan2(*end) % np.pi)
  assert np.ptp(angles) > 0.8 * np.pi


def boxes(where, size):
  """Checks that `where` [B, *size] are boxes of up to half the size; returns their volumes."""
  volumes = []
  for voxels in where:
    extent = [along(voxels, axis) for axis in range(len(size))]
    assert all(is_run(e) and len(e) <= n // 2 for e, n in zip(extent, size, strict=True))
    assert voxels.sum() == np.prod([len(e) for e in extent])
    volumes.append(voxels.sum())
  return np.array(volumes)


@pytest.mark.parametrize('size', [IMAGE, VOLUME])
def test_a_cut_out_box_has_the_mean_grey_value(size):
  before, after = spoilt('cut_out', size)
  where = changed(before, after)
  volumes = boxes(where, size)
  assert len(set(volumes)) > 10
  for volume, out, voxels in zip(before['image'], after['image'], where, strict=True):
    np.testing.assert_allclose(out[voxels], volume.mean(), atol=1e-3)


@pytest.mark.parametrize('size', [IMAGE, VOLUME])
def test_a_cut_noise_box_has_noise_of_one_standard_deviation(size):
  before, after = spoilt('cut_noise', size)
  where = changed(before, after)
  boxes(where, size)
  spatial = tuple(range(1, len(size) + 2))
  noise = (after['image'] - before['image']) / before['image'].std(axis=spatial, keepdims=True)
  samples = noise[where]
  # standard errors 1 / sqrt(2 n) and 1 / sqrt(n); the tolerances are 4 of them
  assert abs(samples.std() - 1) < 4 / np.sqrt(2 * samples.size)
  assert abs(samples.mean()) < 4 / np.sqrt(samples.size)


@pytest.mark.parametrize('size', [IMAGE, VOLUME])
def test_stripes_add_the_same_to_a_whole_column_and_less_than_two_standard_deviations(size):
  before, after = spoilt('stripes', size)
  offset = (after['image'] - before['image'])[..., 0]
  columns = offset.reshape(COUNT, -1, size[-1])
  np.testing.assert_allclose(columns, columns[:, :1].repeat(columns.shape[1], axis=1), atol=1e-5)
  std = before['image'].reshape(COUNT, -1).std(axis=1)
  assert 1 < np.max(np.abs(columns) / std[:, None, None]) < 2
  strength = columns[:, 0].std(axis=1) / std
  assert strength.min() < 0.1 < 0.6 < strength.max()
  steps = np.abs(np.diff(columns[:, 0], axis=1)).mean(axis=1)
  assert np.all(steps < 1.2 * columns[:, 0].std(axis=1))  # neighbours are alike: sqrt(2) if not


@pytest.mark.parametrize('size', [IMAGE, VOLUME])
def test_a_band_has_another_contrast_about_the_mean_in_some_lines_of_one_section(size):
  before, after = spoilt('bands', size)
  factors, sections = [], set()
  for volume, out, where in zip(
    before['image'], after['image'], changed(before, after), strict=True
  ):
    lines = along(where, len(size) - 2)
    assert is_run(lines)
    assert len(lines) <= size[-2] // 2
    mean = volume.mean()
    if len(size) == 3:
      (section,) = along(where, 0)
      sections.add(section)
      volume, out = volume[section], out[section]
    inside, changed_to = volume[lines] - mean, out[lines] - mean
    factor = np.sum(inside * changed_to) / np.sum(inside**2)
    np.testing.assert_allclose(changed_to, factor * inside, atol=1e-3)
    factors.append(factor)
  assert 0.5 - 1e-3 <= min(factors) < 0.7 < 1.3 < max(factors) <= 1.5 + 1e-3
  assert len(size) == 2 or sections == {0, 1, 2, 3}
