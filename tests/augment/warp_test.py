"""Rotation, shear, zoom and displacements against scipy, at the coordinates that a patch shows."""

import math

import numpy as np
import pytest
from augment_support import STILL, located, ramps, run, still
from scipy import interpolate, ndimage

from emseg_jax import augment, config
from emseg_jax.augment import elastic

EVERYTHING = {'resize': (0.7, 1.5), 'rotate': 50, 'shear': 20, 'shift': 0.2, 'elastic': 3.0}


def fitted(shown, middle):
  """Matrix and offset of the affine map from voxels of the patch to the coordinates they show.

  Fitted to the middle of the patch, which shows the image itself and not its mirror.
  """
  voxel = np.stack(np.meshgrid(*map(np.arange, shown.shape[:-1]), indexing='ij'), axis=-1)[middle]
  ndim = voxel.shape[-1]
  design = np.column_stack([voxel.reshape(-1, ndim), np.ones(voxel.size // ndim)])
  solution, *_ = np.linalg.lstsq(design, shown[middle].reshape(-1, ndim).astype(float), rcond=None)
  return solution[:ndim].T, solution[ndim]


MATRICES = {
  'rotate': lambda m: (
    (m[0, 0] == pytest.approx(m[1, 1], abs=1e-4))
    and (m[0, 1] == pytest.approx(-m[1, 0], abs=1e-4))
    and np.linalg.det(m) == pytest.approx(1, abs=1e-4)
  ),
  'shear': lambda m: np.allclose(m[0], [1, 0], atol=1e-4) and m[1, 1] == pytest.approx(1, abs=1e-4),
  'resize': lambda m: np.allclose(m, m[0, 0] * np.eye(2), atol=1e-4),
}
STRENGTHS = {
  'rotate': lambda m: np.degrees(np.arctan2(m[1, 0], m[0, 0])),
  'shear': lambda m: np.degrees(np.arctan(m[1, 0])),
  'resize': lambda m: 1 / m[0, 0],
}


@pytest.mark.parametrize(
  ('name', 'value', 'limits'),
  [('rotate', 60, (-60, 60)), ('shear', 30, (-30, 30)), ('resize', (0.6, 1.4), (0.6, 1.4))],
)
def test_affine_changes_equal_scipy_also_beyond_the_image(name, value, limits):
  """The region is as small as the patch, so that corners are mirrored: mode='reflect' in scipy."""
  batch = located(range(64), (24, 24))
  out = run(batch, still(**{name: value, 'fill': 'reflect'}), (24, 24))
  strengths = []
  for before, after, label in zip(batch['image'], out['image'], out['label'], strict=True):
    matrix, offset = fitted(after[..., :2], (slice(7, 17), slice(7, 17)))
    assert MATRICES[name](matrix)
    strengths.append(STRENGTHS[name](matrix))
    shape = {'output_shape': (24, 24), 'mode': 'reflect'}
    expected = ndimage.affine_transform(
      before[..., 2].astype(float), matrix, offset, order=1, **shape
    )
    np.testing.assert_allclose(after[..., 2], expected, atol=5e-3)
    nearest = ndimage.affine_transform(batch['label'][0], matrix, offset, order=0, **shape)
    assert np.mean(nearest != label) < 0.01  # at a border between voxels rounding decides
  assert np.all(out['weight'] == 1)
  low, high = limits
  assert low - 0.01 <= min(strengths) < low + 0.1 * (high - low)
  assert high - 0.1 * (high - low) < max(strengths) <= high + 0.01
  assert abs(np.mean(strengths) - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * 64)


@pytest.mark.parametrize('isotropic', [False, True])
def test_volumes_are_interpolated_as_by_scipy_and_along_z_only_if_isotropic(isotropic):
  patch = (5, 12, 12)
  options = still(**EVERYTHING, isotropic=isotropic)
  batch = located(range(16), augment.read_size(options, patch))
  batch['proximity'] = batch['image'][..., 3] ** 2
  out = run(batch, options, patch)
  for i in range(16):
    shown, (before, after) = out['image'][i, ..., :3], (b['image'][i, ..., 3] for b in (batch, out))
    where = np.moveaxis(shown, -1, 0).astype(float)
    np.testing.assert_allclose(
      after,
      ndimage.map_coordinates(before.astype(float), where, order=1, mode='nearest'),
      atol=5e-3,
    )
    proximity = ndimage.map_coordinates(batch['proximity'][i].astype(float), where, order=1)
    # A ramp repeated at the edge shows less than half a voxel of where it was taken from.
    inner = np.all((where > 0) & (where < np.array(before.shape).reshape(3, 1, 1, 1) - 1), axis=0)
    np.testing.assert_allclose(out['proximity'][i][inner], proximity[inner], atol=2e-2)
    number = ndimage.map_coordinates(batch['label'][i], where, order=0, mode='nearest')
    assert np.mean(number != out['label'][i]) < 0.01
    if not isotropic:
      np.testing.assert_array_equal(shown[..., 0], np.arange(5.0)[:, None, None] * np.ones(patch))
      np.testing.assert_array_equal(shown[..., 1:], shown[[0] * 5][..., 1:])  # sections alike
  steps = np.diff(out['image'][..., 0], axis=1)
  assert (steps.std() > 0.1) == isotropic  # the zoom and the displacement


@pytest.mark.parametrize('size', [(16, 16), (6, 16, 16)])
def test_image_label_weight_and_target_move_together_under_all_of_it(size):
  options = config.Augment(
    **EVERYTHING,
    flip='zyx' if len(size) == 3 else 'yx',
    isotropic=len(size) == 3,
    defects={'misalignment': 1, 'slice_shift': 1} if len(size) == 3 else {},
  )
  batch = ramps(range(32), size)
  batch['weight'] = (batch['label'] % 3 > 0).astype(np.float32)
  batch['proximity'] = batch['image'][..., 0] / 8
  out = run(batch, options, size)
  nearest = np.stack(np.unravel_index(out['label'], size), axis=-1)
  # The image holds its exact coordinates, the label those of the nearest voxel.
  assert np.max(np.abs(out['image'] - nearest)) < 0.5 + 1e-4
  np.testing.assert_array_equal(out['weight'], (out['label'] % 3 > 0).astype(np.float32))
  np.testing.assert_allclose(out['proximity'], out['image'][..., 0] / 8, atol=1e-5)


def test_displacements_are_smooth_and_up_to_the_largest():
  options = still(elastic=4.0, elastic_spacing=16)
  out = run(ramps(range(64), augment.read_size(options, (48, 48))), options, (48, 48))
  displacement = out['image'] - ramps([0], (48, 48))['image']
  # The region leaves no other place than its middle. The mean of some 20 control points has a
  # standard deviation of at most 4 / sqrt(3 · 20) = 0.5; the tolerance is 3 of them.
  assert np.max(np.abs(displacement.mean(axis=(1, 2)) - 4)) < 1.5
  wide = np.ptp(displacement, axis=(1, 2))
  assert 3 < wide.max() < 8
  assert wide.min() < 1  # how strong is drawn, too
  # The slope of a cubic B-spline is at most 2 · 4 / 16, that of its slope 4 · 4 / 16².
  assert np.max(np.abs(np.diff(displacement, axis=1))) < 0.5
  assert np.max(np.abs(np.diff(displacement, n=2, axis=1))) < 4 * 4 / 16**2 + 1e-2
  assert wide[:, 0] != pytest.approx(wide[:, 1])


def test_the_spline_is_scipys_to_its_rounding():
  values = np.random.default_rng(0).integers(-elastic.LEVELS, elastic.LEVELS, (2, 6, 4))
  # 3 cells of 7 voxels and 1 of 5, of which 17 and 4 voxels are used
  out = np.asarray(elastic.spline(values.astype(np.float32), (17, 4), spacing=7))
  assert out.shape == (2, 17, 4)

  def reference(field, axis, size):
    knots = np.arange(-3, field.shape[axis] + 1)
    curve = interpolate.BSpline(knots, np.moveaxis(field, axis, 0), 3)
    return np.moveaxis(curve((np.arange(size) + 0.5) / 7), 0, axis)

  expected = reference(reference(values, 1, 17), 2, 4)
  # In levels of 2048: two roundings of 1/2, and of weights to 1/4096.
  np.testing.assert_allclose(out, expected, atol=4)
  flat = elastic.spline(np.full((1, 6, 4), elastic.LEVELS, np.float32), (17, 4), spacing=7)
  np.testing.assert_array_equal(flat, elastic.LEVELS)


@pytest.mark.parametrize(
  ('size', 'options'),
  [
    ((12, 12), {**EVERYTHING, 'rotate90': True}),
    ((12, 12), {**STILL, 'rotate': 90}),
    ((48, 48), {**STILL, 'elastic': 3.0, 'elastic_spacing': 6}),
    ((4, 12, 12), {**EVERYTHING, 'isotropic': True}),
    ((4, 12, 12), {'defects': {'misalignment': 1, 'slice_shift': 1, 'shift': 3}}),
  ],
)
def test_regions_of_read_size_leave_no_voxel_to_be_filled(size, options):
  options = config.Augment(**options, fill='ignore')
  region = augment.read_size(options, size)
  assert run(ramps(range(128), region), options, size)['weight'].min() == 1
