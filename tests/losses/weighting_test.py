"""Voxel weights against loops over voxels and scipy's filters, in float64 from the equations."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from emseg_jax import config as config_lib
from emseg_jax import sharding
from emseg_jax.losses import weighting

RNG = np.random.default_rng(0)
K = 3


def blobs(shape, classes=K, seed=0):
  """Smooth random labels [B, *spatial], some voxels of each class."""
  noise = np.random.default_rng(seed).normal(size=shape)
  smooth = scipy.ndimage.gaussian_filter(noise, [0] + [3] * (len(shape) - 1))
  edges = np.quantile(smooth, np.linspace(0, 1, classes + 1)[1:-1])
  return np.digitize(smooth, edges).astype(np.int32)


LABELS = blobs((2, 24, 30))
WEIGHTS = (RNG.random(LABELS.shape) < 0.8).astype(np.float32)
ONES = np.ones_like(WEIGHTS)
RULES = {
  'class': {'values': (0.5, 1.0, 3.0)},
  'adaptive': {},
  'contour': {},
  'volume': {},
  'volume_contour': {},
}


@functools.partial(jax.jit, static_argnames=('name', 'classes', 'values', 'cap'))
def apply(name, labels, weights, classes=K, **options):
  return weighting.WEIGHTINGS[name](labels, weights, num_classes=classes, **options)


def window_mean(labels, valid, classes, k):
  """a_c of Res-CR-Net, [B, *spatial, K]: scipy's box filter over the last two axes of each class.

  scipy divides by all k·k pixels; the division by the same filter of the valid ones undoes it.
  """
  size = [1] * (labels.ndim - 2) + [k, k]
  count = scipy.ndimage.uniform_filter(valid.astype(float), size, mode='constant')
  sums = [
    scipy.ndimage.uniform_filter(valid * (labels == c).astype(float), size, mode='constant')
    for c in range(classes)
  ]
  return np.stack(sums, -1) / np.maximum(count, 1e-12)[..., None]


def window_mean_by_hand(labels, valid, classes, k):
  """The same for one image [Y, X], as loops."""
  a = np.zeros((*labels.shape, classes))
  for y, x in np.ndindex(labels.shape):
    here = np.s_[max(0, y - k // 2) : y + k // 2 + 1, max(0, x - k // 2) : x + k // 2 + 1]
    for c in range(classes):
      if valid[here].any():
        a[y, x, c] = (labels[here] == c)[valid[here]].mean()
  return a


def numpy_volume(labels, valid, classes):
  v = np.array([1 / np.sum((labels == c) & valid) ** 2.0 for c in range(classes)])
  return v * v.sum() / (v**2).sum()


def numpy_contour(labels, weights, classes, k, base):
  valid = weights > 0
  a = window_mean(labels, valid, classes, k)
  # Means of a few hundred zeros and ones: 1e-9 keeps scipy's roundings off the limits.
  b = (a > 0.005 + 1e-9) & (a < 0.995 - 1e-9)
  w = base + 2.0 * b
  w = w * (base * valid[..., None]).sum() / w[valid].sum()
  return weights[..., None] * w**2


def test_the_configuration_and_the_rules_have_the_same_names():
  names = typing.get_args(config_lib.Weighting.model_fields['name'].annotation)
  assert set(names) == set(weighting.WEIGHTINGS) == set(RULES)


def test_given_class_weights_are_those_of_the_labels():
  w = apply('class', LABELS, WEIGHTS, values=(0.5, 1.0, 3.0))
  np.testing.assert_allclose(w, WEIGHTS * np.array([0.5, 1.0, 3.0])[LABELS], rtol=1e-6)


def test_automatic_class_weights_are_median_over_count():
  counts = jnp.array([900.0, 90.0, 0.0, 10.0])
  w = apply('class', np.arange(4)[None], np.ones((1, 4)), 4, values='auto', class_counts=counts)
  # The counts that occur are 900, 90 and 10, their median 90.
  np.testing.assert_allclose(w, [[0.1, 1.0, 1.0, 9.0]], rtol=1e-6)


@pytest.mark.parametrize('values', [(1.0, 2.0), (1.0, -1.0, 1.0), (1.0, 1.0, np.nan), 'balanced'])
def test_impossible_class_weights_are_refused(values):
  with pytest.raises(ValueError, match='values is'):
    apply('class', LABELS, WEIGHTS, values=values)


def test_automatic_class_weights_need_counts():
  with pytest.raises(ValueError, match='needs the voxels per class'):
    apply('class', LABELS, WEIGHTS, values='auto')


def test_adaptive_weights_are_background_over_foreground_of_each_patch():
  labels = np.array([[0, 0, 0, 1], [0, 2, 1, 1], [0, 0, 0, 0], [1, 1, 2, 1]])
  weights = np.ones(labels.shape, np.float32)
  # 3 : 1; 1 : 3; no foreground; no background.
  expected = [[1, 1, 1, 3], [1, 1 / 3, 1 / 3, 1 / 3], [1, 1, 1, 1], [1, 1, 1, 1]]
  np.testing.assert_allclose(apply('adaptive', labels, weights), expected, rtol=1e-6)
  weights[0, 0] = 0  # not counted: 2 : 1
  np.testing.assert_allclose(apply('adaptive', labels, weights)[0], [0, 1, 1, 2], rtol=1e-6)


def test_adaptive_weights_are_capped():
  labels = np.zeros((1, 10, 10), np.int32)
  labels[0, 4, 4] = 1  # 99 : 1
  w = apply('adaptive', labels, np.ones(labels.shape, np.float32), cap=20.0)
  assert w[0, 4, 4] == 20
  assert float(w.sum()) == 99 + 20
  with pytest.raises(ValueError, match='cap is 0'):
    apply('adaptive', labels, np.ones(labels.shape, np.float32), cap=0)


@pytest.mark.parametrize('weights', [ONES, WEIGHTS], ids=['all', 'some'])
def test_contour_weights_follow_the_equation(weights):
  expected = numpy_contour(LABELS, weights, K, 11, np.ones((*LABELS.shape, K)))
  w = apply('contour', LABELS, weights)
  np.testing.assert_allclose(w, expected, rtol=1e-5)
  assert len(np.unique(np.asarray(w[weights > 0]).round(4))) == 2  # far from and near a contour


def test_the_mean_of_the_contour_leaves_out_what_is_not_in_the_image_or_ignored():
  valid = WEIGHTS[0] > 0
  hand = window_mean_by_hand(LABELS[0], valid, K, 11)
  scipys = window_mean(LABELS[:1], valid[None], K, 11)[0]
  np.testing.assert_allclose(scipys[valid], hand[valid], atol=1e-9)
  # A class that fills a corner fills the window at the corner, though most of it lies outside.
  labels = np.zeros((1, 20, 20), np.int32)
  labels[0, 13:] = 1
  w = apply('contour', labels, np.ones(labels.shape, np.float32), 2)
  assert w[0, 0, 0, 0] == w.min()  # 13 rows away
  assert w[0, 7, 0, 0] == w.min()  # the window reaches rows 2 to 12
  assert w[0, 8, 0, 0] == w.max()


@pytest.mark.parametrize(
  ('short', 'k'), [(150, 11), (151, 21), (300, 21), (301, 31), (600, 31), (601, 41)]
)
def test_the_window_grows_with_the_short_side(short, k):
  # A vertical border at column 0 | 1: with k = 2 h + 1, class 0 is seen up to column h.
  labels = np.ones((1, short, 700), np.int32)
  labels[..., 0] = 0
  w = np.asarray(apply('contour', labels, np.ones(labels.shape, np.float32), 2))
  near = w[0, short // 2, :, 0] > w.min()
  assert near.sum() == k // 2 + 1


def test_contour_weights_of_a_volume_are_those_of_its_sections():
  labels = blobs((4, 20, 22))
  weights = (RNG.random(labels.shape) < 0.8).astype(np.float32)
  volume = apply('contour', labels.reshape(2, 2, 20, 22), weights.reshape(2, 2, 20, 22))
  sections = apply('contour', labels, weights)
  np.testing.assert_allclose(volume.reshape(sections.shape), sections, rtol=1e-6)


@pytest.mark.parametrize('weights', [ONES, WEIGHTS], ids=['all', 'some'])
def test_volume_weights_follow_the_equation(weights):
  labels = np.where(LABELS == 2, 1, 0) + (LABELS == 0) * 2 * (np.arange(30) < 4)
  expected = weights[..., None] * numpy_volume(labels, weights > 0, K)
  np.testing.assert_allclose(apply('volume', labels, weights), expected, rtol=1e-5)


def test_an_absent_class_gets_the_largest_volume_weight_of_those_present():
  labels = np.array([[0, 0, 0, 0, 2, 2]])
  w = apply('volume', labels, np.ones(labels.shape, np.float32))
  # V = 4, 0, 2: v = 1/16, 1/4, 1/4, times their sum over that of their squares.
  v = np.array([1 / 16, 1 / 4, 1 / 4])
  np.testing.assert_allclose(w[0, 0], v * v.sum() / (v**2).sum(), rtol=1e-6)


def test_volume_weights_of_very_different_volumes_are_finite():
  labels = np.zeros((1, 1000, 1000), np.int32)
  labels[0, 0, 0] = 1
  w = apply('volume', labels, np.ones(labels.shape, np.float32), 2)
  # v = 1e-12, 1: the scale is 1 to twelve digits.
  np.testing.assert_allclose(w[0, 0, 0], [1e-12, 1.0], rtol=1e-3)


@pytest.mark.parametrize('weights', [ONES, WEIGHTS], ids=['all', 'some'])
def test_volume_and_contour_weights_follow_the_equation(weights):
  base = np.broadcast_to(numpy_volume(LABELS, weights > 0, K), (*LABELS.shape, K))
  expected = numpy_contour(LABELS, weights, K, 11, base)
  np.testing.assert_allclose(apply('volume_contour', LABELS, weights), expected, rtol=1e-5)


@pytest.mark.parametrize('name', RULES)
@pytest.mark.parametrize('shape', [(2, 12, 14), (1, 3, 10, 12)], ids=['2d', '3d'])
def test_voxels_of_weight_zero_stay_zero_and_change_nothing(name, shape):
  labels = blobs(shape)
  weights = (RNG.random(shape) < 0.6).astype(np.float32)
  expected = apply(name, labels, weights, **RULES[name])
  assert expected.dtype == jnp.float32
  assert np.all(expected[weights == 0] == 0)
  assert np.all(expected[weights > 0] > 0)
  for label in (0, 2, 255, -1):
    other = apply(name, np.where(weights > 0, labels, label), weights, **RULES[name])
    np.testing.assert_array_equal(other, expected)


@pytest.mark.parametrize('name', RULES)
def test_rules_are_finite_at_the_extremes(name):
  for labels in (np.zeros_like(LABELS), np.full_like(LABELS, K - 1)):
    w = apply(name, labels, ONES, **RULES[name])
    assert np.all(np.isfinite(w))
    assert np.all(np.asarray(w) > 0)
  assert np.all(apply(name, LABELS, 0 * ONES, **RULES[name]) == 0)


@pytest.mark.parametrize('name', RULES)
def test_weights_of_a_batch_on_many_devices_are_those_of_one(name):
  labels = blobs((2, 32, 20))
  weights = (RNG.random(labels.shape) < 0.8).astype(np.float32)
  mesh = sharding.make_mesh(config_lib.Mesh(data=2, space=4))

  def rule(batch):
    batch = sharding.constrain_patches(batch, mesh)
    return apply(name, batch['label'], batch['weight'], **RULES[name])

  batch = sharding.put_batch({'label': labels, 'weight': weights}, mesh)
  expected = apply(name, labels, weights, **RULES[name])
  np.testing.assert_allclose(jax.jit(rule)(batch), expected, rtol=1e-5)


def test_a_weighting_is_applied_as_the_configuration_says():
  adaptive = config_lib.Weighting(name='adaptive', options={'cap': 2.0})
  w = weighting.apply_weighting(adaptive, LABELS, WEIGHTS, num_classes=K)
  np.testing.assert_array_equal(w, apply('adaptive', LABELS, WEIGHTS, cap=2.0))
  counts = jnp.array([4.0, 2.0, 1.0])
  w = weighting.apply_weighting(
    config_lib.Weighting(), LABELS, WEIGHTS, num_classes=K, class_counts=counts
  )
  np.testing.assert_allclose(w, WEIGHTS * np.array([0.5, 1.0, 2.0])[LABELS], rtol=1e-6)
