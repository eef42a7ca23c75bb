"""Arrays and checks that the tests of all losses on logits share.

A loss here is a function of (logits, labels, weights); a reference is the same in numpy in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (2, 5, 6, 3)).astype(np.float32)
LABELS = RNG.integers(0, 3, (2, 5, 6)).astype(np.int32)
VALID = (RNG.random((2, 5, 6)) < 0.7).astype(np.float32)  # 0 or 1
WEIGHTS = VALID * RNG.uniform(0.2, 3, VALID.shape).astype(np.float32)
CLASS_WEIGHTS = VALID[..., None] * RNG.uniform(0.2, 3, LOGITS.shape).astype(np.float32)
ANY_WEIGHTS = pytest.mark.parametrize('weights', [WEIGHTS, CLASS_WEIGHTS], ids=['voxel', 'class'])


def softmax(z):
  """Probabilities in float64; one output is made two classes."""
  z = z.astype(np.float64)
  if z.shape[-1] == 1:
    z = np.concatenate([np.zeros_like(z), z], axis=-1)
  e = np.exp(z - z.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def per_class(weights, classes):
  """Weights [..., K] from [...] or [..., K], in float64."""
  if weights.ndim == LABELS.ndim:
    weights = np.repeat(weights[..., None], classes, axis=-1)
  return weights.astype(np.float64)


def evaluate(loss, logits, labels, weights, **options):
  """The loss in one compilation instead of one per operation."""
  return jax.jit(functools.partial(loss, **options))(logits, labels, weights)


def check_against(
  loss, reference, *, logits=LOGITS, labels=LABELS, weights=WEIGHTS, places=20, step=1e-6
):
  """Value, and gradient against central differences of the reference at some random entries."""
  value, gradient = jax.jit(jax.value_and_grad(loss))(logits, labels, weights)
  np.testing.assert_allclose(value, reference(logits, labels, weights), rtol=1e-5)
  largest = np.max(np.abs(gradient))
  assert largest > 0
  for flat in np.random.default_rng(1).choice(logits.size, min(places, logits.size), replace=False):
    place = np.unravel_index(flat, logits.shape)
    up, down = logits.astype(np.float64), logits.astype(np.float64)
    up[place] += step
    down[place] -= step
    slope = (reference(up, labels, weights) - reference(down, labels, weights)) / (2 * step)
    np.testing.assert_allclose(gradient[place], slope, rtol=1e-3, atol=1e-5 * largest)


def check_ignores_weight_zero(loss, *, logits=LOGITS, labels=LABELS, weights=WEIGHTS):
  """Neither value nor gradient may depend on labels and logits where the weight is 0."""
  ignored = weights == 0
  function = jax.jit(jax.value_and_grad(loss))
  value, gradient = function(logits, labels, weights)
  for label, logit in ((-1, 1e6), (255, -1e6), (0, np.nan), (7, np.inf)):
    z = np.where(ignored[..., None], np.float32(logit), logits)
    other = function(z, np.where(ignored, label, labels).astype(np.int32), weights)
    np.testing.assert_array_equal(other[0], value)
    np.testing.assert_array_equal(other[1], gradient)
  assert np.all(gradient[ignored] == 0)
  assert np.any(gradient[~ignored] != 0)


def check_extremes(loss, *, logits=LOGITS, labels=LABELS):
  """Finite where a class is empty, full or alone, where logits are huge, without any weight."""
  function = jax.jit(jax.value_and_grad(loss))
  ones = np.ones(labels.shape, np.float32)
  for label in (np.zeros_like(labels), np.full_like(labels, logits.shape[-1] - 1), labels):
    for scale in (0.0, 1.0, 1e4):
      for weights in (ones, 0 * ones):
        value, gradient = function(np.float32(scale) * logits, label, weights)
        assert np.isfinite(value)
        assert value >= -1e-6
        assert np.all(np.isfinite(gradient))
        if not weights.any():
          assert value == 0
          assert not np.any(gradient)


def check_float32(loss, *, logits=LOGITS, labels=LABELS, weights=WEIGHTS):
  half = jnp.asarray(logits, jnp.bfloat16)
  value, gradient = jax.jit(jax.value_and_grad(loss))(half, labels, weights)
  assert value.dtype == jnp.float32
  assert value.shape == ()
  assert gradient.dtype == jnp.bfloat16
  expected = evaluate(loss, half.astype(jnp.float32), labels, weights)
  np.testing.assert_allclose(value, expected, rtol=1e-6)


def check_one_output(loss):
  """One sigmoid output z is the same as two softmax classes [0, z]."""
  loss = jax.jit(loss)
  z = LOGITS[..., :1]
  labels = np.minimum(LABELS, 1)
  two = np.concatenate([np.zeros_like(z), z], axis=-1)
  weights = CLASS_WEIGHTS[..., :2]
  np.testing.assert_allclose(loss(z, labels, weights), loss(two, labels, weights), rtol=1e-6)


def check_volumes(loss):
  """Losses without neighbourhoods do not see how voxels are arranged."""

  def volume(a):
    return a.reshape(2, 5, 2, 3, *a.shape[3:])

  loss = jax.jit(loss)
  flat = loss(LOGITS, LABELS, CLASS_WEIGHTS)
  value = loss(volume(LOGITS), volume(LABELS), volume(CLASS_WEIGHTS))
  np.testing.assert_allclose(value, flat, rtol=1e-6)


def check_shapes_refused(loss):
  for labels, weights in ((LABELS[:, :-1], WEIGHTS), (LABELS, CLASS_WEIGHTS[..., :2])):
    with pytest.raises(ValueError, match='must have one shape'):
      loss(LOGITS, labels, weights)


def with_options(function, options):
  """`function` with keyword arguments, for use as a loss."""
  return functools.partial(function, **options)
