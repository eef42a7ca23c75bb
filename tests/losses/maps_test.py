"""Losses on maps against float64 numpy from the equations, their gradients and their edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emseg_jax import config as config_lib
from emseg_jax import sharding
from emseg_jax.losses import label_maps, maps

RNG = np.random.default_rng(0)
SHAPE = (2, 8, 9)
OFFSETS = ((-1, 0), (0, -1), (3, 2))
Z = RNG.normal(0, 2, (*SHAPE, 1)).astype(np.float32)
AFFINITY = RNG.normal(0, 2, (*SHAPE, 3)).astype(np.float32)
LOGITS = RNG.normal(0, 2, (*SHAPE, 3)).astype(np.float32)
TARGET = RNG.random(SHAPE).astype(np.float32)
LABELS = np.kron(RNG.integers(0, 3, (2, 2, 3)), np.ones((1, 4, 3), int)).astype(np.int32)
WEIGHTS = ((RNG.random(SHAPE) < 0.8) * RNG.random(SHAPE)).astype(np.float32)
ONES = np.ones_like(WEIGHTS)


def sigmoid(z):
  return 1 / (1 + np.exp(-z.astype(np.float64)))


def entropy(z, t):
  p = sigmoid(z)
  return -t * np.log(p) - (1 - t) * np.log(1 - p)


def numpy_mse(z, target, weights):
  return (weights * (sigmoid(z[..., 0]) - target) ** 2).sum() / weights.sum()


def numpy_boundary_bce(z, labels, weights):
  t = np.asarray(label_maps.boundary_map(labels, weights, width=1))  # see label_maps_test
  total, positive, negative = 0.0, (weights * t).sum(), (weights * (1 - t)).sum()
  for place in np.ndindex(labels.shape):
    other = negative if t[place] else positive
    share = other / (positive + negative)
    total += weights[place] * share * entropy(z[(*place, 0)], t[place])
  return total / weights.sum()


def numpy_affinity_bce(z, labels, weights):
  total = below = 0.0
  for b, y, x in np.ndindex(labels.shape):
    for a, (dy, dx) in enumerate(OFFSETS):
      v, u = y + dy, x + dx
      if 0 <= v < SHAPE[1] and 0 <= u < SHAPE[2] and weights[b, v, u] > 0:
        same = labels[b, y, x] == labels[b, v, u] != 0
        total += weights[b, y, x] * entropy(z[b, y, x, a], float(same))
        below += weights[b, y, x]
  return total / below


CASES = {
  'mse': (maps.mse, numpy_mse, Z, TARGET),
  'boundary_bce': (functools.partial(maps.boundary_bce, width=1), numpy_boundary_bce, Z, LABELS),
  'affinity_bce': (
    functools.partial(maps.affinity_bce, offsets=OFFSETS),
    numpy_affinity_bce,
    AFFINITY,
    LABELS,
  ),
}
JITTED = {name: jax.jit(jax.value_and_grad(case[0])) for name, case in CASES.items()}
ALL = pytest.mark.parametrize('name', CASES)


@ALL
def test_values_follow_the_equations(name):
  _, reference, z, target = CASES[name]
  for weights in (ONES, WEIGHTS):
    value, _ = JITTED[name](z, target, weights)
    np.testing.assert_allclose(value, reference(z, target, weights), rtol=1e-5)


@ALL
def test_gradients_agree_with_finite_differences_of_the_numpy_form(name):
  _, reference, z, target = CASES[name]
  _, gradient = JITTED[name](z, target, WEIGHTS)
  step = 1e-5
  for place in list(np.ndindex(z.shape))[::11]:
    up, down = z.astype(np.float64), z.astype(np.float64)
    up[place] += step
    down[place] -= step
    difference = reference(up, target, WEIGHTS) - reference(down, target, WEIGHTS)
    np.testing.assert_allclose(gradient[place], difference / (2 * step), rtol=1e-3, atol=1e-8)


@ALL
def test_voxels_of_weight_zero_change_neither_value_nor_gradient(name):
  _, _, z, target = CASES[name]
  ignored = WEIGHTS == 0
  value, gradient = JITTED[name](z, target, WEIGHTS)
  for bad in (np.nan, np.inf, -1e6):
    label = bad if target.dtype == np.float32 else 255
    moved = np.where(ignored[..., None], np.float32(bad), z)
    marked = np.where(ignored, label, target).astype(target.dtype)
    other = JITTED[name](moved, marked, WEIGHTS)
    np.testing.assert_array_equal(other[0], value)
    np.testing.assert_array_equal(other[1], gradient)
  assert np.all(gradient[ignored] == 0)
  # A voxel whose neighbours are all outside or ignored has no affinity.
  assert np.any(gradient[~ignored] != 0, axis=-1).mean() > (0.9 if 'affinity' in name else 0.999)


@ALL
def test_value_and_gradient_are_finite_at_the_extremes(name):
  _, _, z, target = CASES[name]
  for filled in (0 * target, 0 * target + 1):
    for scale in (0.0, 1e4):
      value, gradient = JITTED[name](np.float32(scale) * z, filled, ONES)
      assert np.isfinite(value)
      assert np.all(np.isfinite(gradient))
  value, gradient = JITTED[name](z, target, 0 * ONES)
  assert value == 0
  assert np.all(gradient == 0)


@ALL
def test_half_precision_maps_are_computed_in_float32(name):
  _, reference, z, target = CASES[name]
  half = jnp.asarray(z, jnp.bfloat16)
  value, _ = JITTED[name](half, target, WEIGHTS)
  assert value.dtype == jnp.float32
  expected = reference(np.asarray(half, np.float32), target, WEIGHTS)
  np.testing.assert_allclose(value, expected, rtol=1e-5)


@ALL
def test_the_loss_of_a_batch_on_many_devices_is_that_of_one(name):
  function, reference, z, target = CASES[name]
  mesh = sharding.make_mesh(config_lib.Mesh(data=2, space=4))

  def loss(batch):
    batch = sharding.constrain_patches(batch, mesh)
    return function(batch['z'], batch['target'], batch['weight'])

  value = jax.jit(loss)(sharding.put_batch({'z': z, 'target': target, 'weight': WEIGHTS}, mesh))
  np.testing.assert_allclose(value, reference(z, target, WEIGHTS), rtol=1e-5)


@ALL
def test_shapes_that_do_not_belong_together_are_refused(name):
  function, _, z, target = CASES[name]
  with pytest.raises(ValueError, match='the map'):
    function(z[:, 1:], target, WEIGHTS)
  with pytest.raises(ValueError, match='channels'):
    function(np.concatenate([z, z], -1), target, WEIGHTS)


def test_mse_without_activation_is_of_the_map_itself():
  value = maps.mse(jnp.array([[[3.0], [1.0]]]), jnp.array([[1.0, 1.5]]), jnp.array([[1.0, 3.0]]))
  by_hand = ((1 / (1 + np.exp(-3)) - 1) ** 2 + 3 * (1 / (1 + np.exp(-1)) - 1.5) ** 2) / 4
  np.testing.assert_allclose(value, by_hand, rtol=1e-6)
  value = maps.mse(
    jnp.array([[[3.0], [1.0]]]),
    jnp.array([[1.0, 1.5]]),
    jnp.array([[1.0, 3.0]]),
    activation='none',
  )
  np.testing.assert_allclose(value, (4 + 3 * 0.25) / 4, rtol=1e-6)
  with pytest.raises(ValueError, match='activation is'):
    maps.mse(Z, TARGET, ONES, activation='relu')


def test_the_two_sides_of_the_boundary_weigh_the_same():
  # With z = 0 each voxel costs ln 2; both sides have the sum P·N / (P + N).
  value = maps.boundary_bce(0 * Z, LABELS, ONES, width=1)
  s = label_maps.boundary_map(LABELS, ONES, width=1).mean()
  np.testing.assert_allclose(value, 2 * s * (1 - s) * np.log(2), rtol=1e-5)


def test_volumes_are_taken_like_images():
  def volume(a):
    return a.reshape(1, *a.shape)

  def as_offsets(*offsets):
    return [(0, *offset) for offset in offsets]

  np.testing.assert_allclose(
    maps.boundary_bce(volume(Z), volume(LABELS), volume(WEIGHTS), width=1),
    numpy_boundary_bce(Z, LABELS, WEIGHTS),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    maps.affinity_bce(
      volume(AFFINITY), volume(LABELS), volume(WEIGHTS), offsets=as_offsets(*OFFSETS)
    ),
    numpy_affinity_bce(AFFINITY, LABELS, WEIGHTS),
    rtol=1e-5,
  )


def numpy_boundary_ce(logits, boundary, labels, weights, threshold):
  """All voxels of a boundary are kept: OHEM's own choice is tested with it."""
  total = below = 0.0
  for place in np.ndindex(labels.shape):
    if sigmoid(boundary[(*place, 0)]) > threshold and weights[place] > 0:
      e = np.exp(logits[place].astype(np.float64))
      total -= weights[place] * np.log(e[labels[place]] / e.sum())
      below += weights[place]
  return total / below if below else 0.0


@pytest.mark.parametrize('threshold', [0.3, 0.8])
def test_boundary_ce_is_cross_entropy_where_a_boundary_is_seen(threshold):
  options = {'threshold': threshold, 'ohem_threshold': 1.0}
  value = maps.boundary_ce(LOGITS, Z, LABELS, WEIGHTS, **options)
  expected = numpy_boundary_ce(LOGITS, Z, LABELS, WEIGHTS, threshold)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  weights = np.repeat(WEIGHTS[..., None], 3, axis=-1)
  value = maps.boundary_ce(LOGITS, Z, LABELS, weights, **options)
  np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_boundary_ce_leaves_out_easy_voxels():
  labels = jnp.array([[0, 1, 0, 1]])
  logits = jnp.log(jnp.array([[[0.95, 0.05], [0.7, 0.3], [0.6, 0.4], [0.1, 0.9]]]))
  boundary = jnp.array([[[5.0], [5.0], [-5.0], [5.0]]])
  value = maps.boundary_ce(logits, boundary, labels, jnp.ones((1, 4)), min_kept=0)
  # The third is not on a boundary, the first and last have probability 0.9 and more.
  np.testing.assert_allclose(value, -np.log(0.3), rtol=1e-5)


def test_boundary_ce_has_no_gradient_to_the_boundary_nor_to_ignored_voxels():
  ignored = WEIGHTS == 0
  logits = np.where(ignored[..., None], np.nan, LOGITS)
  boundary = np.where(ignored[..., None], np.nan, Z)
  gradient = jax.grad(maps.boundary_ce, argnums=(0, 1))
  to_logits, to_boundary = gradient(logits, boundary, LABELS, WEIGHTS)
  np.testing.assert_array_equal(to_logits, gradient(LOGITS, Z, LABELS, WEIGHTS)[0])
  assert np.any(to_logits != 0)
  assert np.all(to_logits[ignored] == 0)
  assert np.all(to_boundary == 0)


def test_boundary_ce_without_boundary_is_zero():
  value, gradient = jax.value_and_grad(maps.boundary_ce)(LOGITS, 0 * Z - 9, LABELS, ONES)
  assert value == 0
  assert np.all(gradient == 0)
  for options in ({'threshold': 1.5}, {'ohem_threshold': 0.0}, {'min_kept': -1}):
    with pytest.raises(ValueError, match='must be'):
      maps.boundary_ce(LOGITS, Z, LABELS, ONES, **options)
