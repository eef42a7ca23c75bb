"""Grey values against their definitions."""

import numpy as np
from augment_support import located, run, still, tissue
from scipy import ndimage

FULL = {'brightness': 0.3, 'contrast': 0.3, 'gamma': 0.3, 'noise': 0.2, 'blur': 1.0}


def test_contrast_scales_about_the_mean_and_brightness_shifts_by_standard_deviations():
  batch = tissue(range(64), (16, 16))
  before = batch['image'].astype(np.float64).reshape(64, -1)
  out = run(batch, still(contrast=0.4, brightness=0.3), (16, 16))
  after = out['image'].reshape(64, -1)
  mean, std = before.mean(1, keepdims=True), before.std(1, keepdims=True)
  factor = after.std(1, keepdims=True) / std
  shift = (after.mean(1, keepdims=True) - mean) / std
  np.testing.assert_allclose(after, mean + factor * (before - mean) + shift * std, atol=1e-4)
  assert 0.6 - 1e-3 <= factor.min() < 0.7 < 1.3 < factor.max() <= 1.4 + 1e-3
  assert -0.3 - 1e-3 <= shift.min() < -0.2 < 0.2 < shift.max() <= 0.3 + 1e-3
  assert abs(np.corrcoef(factor[:, 0], shift[:, 0])[0, 1]) < 0.5  # drawn apart; 4 / sqrt(64)


def test_statistics_of_a_volume_are_those_of_all_its_voxels():
  batch = tissue(range(8), (3, 9, 10))
  batch['image'][:, 1] += 5  # sections differ
  out = run(batch, still(contrast=0.4, brightness=0.3), (3, 9, 10))
  before, after = (b['image'].reshape(8, -1).astype(np.float64) for b in (batch, out))
  mean, std = before.mean(1, keepdims=True), before.std(1, keepdims=True)
  factor = after.std(1, keepdims=True) / std
  shift = (after.mean(1, keepdims=True) - mean) / std
  np.testing.assert_allclose(after, mean + factor * (before - mean) + shift * std, atol=1e-3)
  assert np.max(np.abs(shift)) <= 0.3 + 1e-3


def test_gamma_raises_grey_values_between_their_extremes_to_a_power():
  batch = tissue(range(64), (16, 16))
  out = run(batch, still(gamma=0.5), (16, 16))

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
  out = run(batch, still(noise=0.5), (32, 32))
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


def test_blur_is_scipys_gaussian_in_the_plane_of_every_section():
  batch = located(range(32), (2, 17, 19))
  batch['image'][..., 0] = 0
  batch['image'][:, :, 8, 9, 0] = 1  # shows the kernel
  out = run(batch, still(blur=1.3), (2, 17, 19))
  sigmas = []
  for before, after in zip(batch['image'], out['image'], strict=True):
    # exp(-1 / 2 sigma²) is the kernel one voxel beside its middle
    with np.errstate(divide='ignore'):  # the least sigma leaves nothing there: none
      sigmas.append(np.sqrt(-0.5 / np.log(after[0, 8, 10, 0] / after[0, 8, 9, 0])))
    for channel in (0, 3):
      expected = ndimage.gaussian_filter(
        before[..., channel].astype(float), sigmas[-1], axes=(1, 2), radius=4, mode='reflect'
      )  # radius: 3 · 1.3, rounded up
      np.testing.assert_allclose(after[..., channel], expected, atol=1e-4)
  assert min(sigmas) < 0.3 < 1.0 < max(sigmas) <= 1.3


def test_a_constant_patch_stays_constant():
  batch = tissue(range(8), (16, 16))
  batch['image'] = np.full_like(batch['image'], 0.25)
  out = run(batch, still(**{**FULL, 'blur': 0.0}), (16, 16))
  np.testing.assert_array_equal(out['image'], np.float32(0.25))


def test_a_grey_image_on_three_differently_normalised_channels_stays_grey():
  grey = tissue(range(8), (16, 16))
  offset, scale = np.array([0.1, 0.2, -0.3]), np.array([1.0, 2.0, 0.5])
  colour = {**grey, 'image': (offset + scale * grey['image']).astype(np.float32)}
  options = still(**FULL, defects={'cut_out': 1, 'cut_noise': 1, 'stripes': 1, 'bands': 1})
  expected = offset + scale * run(grey, options, (16, 16))['image']
  np.testing.assert_allclose(run(colour, options, (16, 16))['image'], expected, atol=2e-4)
