"""Losses against plain numpy written from the equations, in float64, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emseg_jax import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (2, 5, 6, 3)).astype(np.float32)
LABELS = RNG.integers(0, 3, (2, 5, 6)).astype(np.int32)
WEIGHTS = (RNG.random((2, 5, 6)) < 0.7).astype(np.float32)
ALL = pytest.mark.parametrize('loss', [losses.cross_entropy, losses.dice], ids=['ce', 'dice'])


def softmax(z):
  e = np.exp(z.astype(np.float64))
  return e / e.sum(axis=-1, keepdims=True)


def numpy_cross_entropy(logits, labels, weights):
  total = 0.0
  p = softmax(logits)
  for place in np.ndindex(labels.shape):
    if weights[place] > 0:
      total -= weights[place] * np.log(p[(*place, labels[place])])
  return total / weights.sum()


def numpy_dice(logits, labels, weights, smooth=1.0, exponent=2, first=0):
  p = softmax(logits)
  values = []
  for b in range(len(labels)):
    valid = weights[b] > 0
    for k in range(first, logits.shape[-1]):
      pk, gk = p[b, ..., k][valid], (labels[b] == k)[valid].astype(float)
      below = (pk**exponent).sum() + (gk**exponent).sum() + smooth
      values.append(1 - (2 * (pk * gk).sum() + smooth) / below)
  return np.mean(values)


def test_cross_entropy_is_the_weighted_mean_of_minus_log_p():
  value = losses.cross_entropy(LOGITS, LABELS, WEIGHTS)
  np.testing.assert_allclose(value, numpy_cross_entropy(LOGITS, LABELS, WEIGHTS), rtol=1e-5)
  weights = WEIGHTS * RNG.random(WEIGHTS.shape).astype(np.float32)
  value = losses.cross_entropy(LOGITS, LABELS, weights)
  np.testing.assert_allclose(value, numpy_cross_entropy(LOGITS, LABELS, weights), rtol=1e-5)


def test_cross_entropy_of_an_undecided_network_is_log_k():
  ones = jnp.ones((1, 4, 4))
  value = losses.cross_entropy(jnp.zeros((1, 4, 4, 5)), ones.astype(int), ones)
  np.testing.assert_allclose(value, np.log(5), rtol=1e-6)  # p = 1/5 everywhere


@pytest.mark.parametrize(
  ('options', 'reference'),
  [
    ({}, {}),
    ({'smooth': 0.1}, {'smooth': 0.1}),
    ({'exponent': 1}, {'exponent': 1}),
    ({'include_background': False}, {'first': 1}),
  ],
)
def test_dice_follows_its_equation(options, reference):
  value = losses.dice(LOGITS, LABELS, WEIGHTS, **options)
  np.testing.assert_allclose(value, numpy_dice(LOGITS, LABELS, WEIGHTS, **reference), rtol=1e-5)


def test_dice_of_a_sure_prediction_is_one_minus_twice_the_overlap_over_the_sizes():
  labels = jnp.array([[0, 1, 1, 1]])
  found = jnp.array([[0, 0, 1, 1]])
  logits = 50.0 * jax.nn.one_hot(found, 2)
  value = losses.dice(logits, labels, jnp.ones((1, 4)), smooth=1e-6, include_background=False)
  np.testing.assert_allclose(value, 1 - 2 * 2 / (2 + 3), atol=1e-5)  # 2 |A ∩ B| / (|A| + |B|)


def test_dice_leaves_out_images_that_are_padding():
  padded = [np.concatenate([a, a]) for a in (LOGITS, LABELS)]
  weights = np.concatenate([WEIGHTS, np.zeros_like(WEIGHTS)])
  np.testing.assert_allclose(
    losses.dice(*padded, weights), losses.dice(LOGITS, LABELS, WEIGHTS), rtol=1e-6
  )


@ALL
def test_one_sigmoid_output_equals_two_softmax_classes(loss):
  z = LOGITS[..., :1]
  labels = np.minimum(LABELS, 1)
  two = np.concatenate([np.zeros_like(z), z], axis=-1)
  np.testing.assert_allclose(loss(z, labels, WEIGHTS), loss(two, labels, WEIGHTS), rtol=1e-6)
  p = jax.nn.softmax(losses.as_class_logits(jnp.asarray(z)), axis=-1)
  np.testing.assert_allclose(p[..., 1:], 1 / (1 + np.exp(-z.astype(float))), rtol=1e-5)
  assert losses.as_class_logits(LOGITS) is LOGITS


def test_cross_entropy_of_one_sigmoid_output_is_binary_cross_entropy():
  z, y = LOGITS[..., 0].astype(float), np.minimum(LABELS, 1)
  # max(z, 0) - z y + log(1 + e^-|z|), the usual stable form
  bce = np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z)))
  value = losses.cross_entropy(LOGITS[..., :1], y, np.ones_like(WEIGHTS))
  np.testing.assert_allclose(value, bce.mean(), rtol=1e-5)


@pytest.mark.parametrize(
  ('loss', 'reference'),
  [(losses.cross_entropy, numpy_cross_entropy), (losses.dice, numpy_dice)],
  ids=['ce', 'dice'],
)
def test_gradients_agree_with_finite_differences_of_the_numpy_form(loss, reference):
  gradient = jax.grad(loss)(LOGITS, LABELS, WEIGHTS)
  step = 1e-5
  for place in np.ndindex(LOGITS.shape):
    up, down = LOGITS.astype(np.float64), LOGITS.astype(np.float64)
    up[place] += step
    down[place] -= step
    difference = reference(up, LABELS, WEIGHTS) - reference(down, LABELS, WEIGHTS)
    np.testing.assert_allclose(gradient[place], difference / (2 * step), rtol=1e-3, atol=1e-7)


@ALL
def test_voxels_of_weight_zero_change_neither_value_nor_gradient(loss):
  ignored = WEIGHTS == 0
  value, gradient = jax.value_and_grad(loss)(LOGITS, LABELS, WEIGHTS)
  for label, logit in ((-1, 1e6), (255, -1e6), (0, np.nan), (7, np.inf)):
    z = np.where(ignored[..., None], np.float32(logit), LOGITS)
    other = jax.value_and_grad(loss)(z, np.where(ignored, label, LABELS), WEIGHTS)
    np.testing.assert_array_equal(other[0], value)
    np.testing.assert_array_equal(other[1], gradient)
  assert np.all(gradient[ignored] == 0)
  assert np.all(np.any(gradient[~ignored] != 0, axis=-1))


@ALL
def test_value_and_gradient_are_finite_at_the_extremes(loss):
  for labels in (np.zeros_like(LABELS), np.full_like(LABELS, 2)):  # empty and full foreground
    for scale in (0.0, 1.0, 1e4):
      for weights in (np.ones_like(WEIGHTS), np.zeros_like(WEIGHTS)):
        value, gradient = jax.value_and_grad(loss)(scale * LOGITS, labels, weights)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))
  assert loss(LOGITS, LABELS, np.zeros_like(WEIGHTS)) == 0


@ALL
def test_half_precision_logits_are_computed_in_float32(loss):
  half = jnp.asarray(LOGITS, jnp.bfloat16)
  value = jax.jit(loss)(half, LABELS, WEIGHTS)
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, loss(half.astype(jnp.float32), LABELS, WEIGHTS), rtol=1e-6)


@ALL
def test_volumes_are_taken_like_images(loss):
  def volume(a):
    return a.reshape(2, 5, 2, 3, *a.shape[3:])

  np.testing.assert_allclose(
    loss(volume(LOGITS), volume(LABELS), volume(WEIGHTS)),
    loss(LOGITS, LABELS, WEIGHTS),
    rtol=1e-6,
  )


@ALL
def test_shapes_that_do_not_belong_together_are_refused(loss):
  with pytest.raises(ValueError, match='must have one shape'):
    loss(LOGITS, LABELS[:, :-1], WEIGHTS)


def test_total_loss_sums_weighted_terms_and_auxiliary_heads():
  outputs = {'logits': LOGITS, 'aux/early': LOGITS[..., ::-1], 'boundary': LOGITS[..., :1]}
  terms = {'ce': (1.0, {}), 'dice': (3.0, {'smooth': 0.5})}
  total, parts = jax.jit(
    lambda o: losses.total_loss(o, LABELS, WEIGHTS, terms=terms, aux_weight=0.4)
  )(outputs)
  expected = {
    'ce': numpy_cross_entropy(LOGITS, LABELS, WEIGHTS),
    'dice': numpy_dice(LOGITS, LABELS, WEIGHTS, smooth=0.5),
    'aux/early': numpy_cross_entropy(LOGITS[..., ::-1], LABELS, WEIGHTS),
  }
  assert parts.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(parts[name], value, rtol=1e-5)
  weighted = expected['ce'] + 3.0 * expected['dice'] + 0.4 * expected['aux/early']
  np.testing.assert_allclose(total, weighted, rtol=1e-5)


@pytest.mark.parametrize(
  ('terms', 'message'),
  [
    ({'dise': (1.0, {})}, "unknown loss 'dise'; did you mean 'dice'"),
    ({'dice': (1.0, {'smoth': 1.0})}, "unknown option 'smoth'; did you mean 'smooth'"),
    ({'ce': (1.0, {'smooth': 1.0})}, "loss.terms.ce.options: unknown option 'smooth'; known: none"),
    ({'dice': (1.0, {'smooth': 0.0})}, 'smooth is 0.0, must be above 0'),
    ({'dice': (1.0, {'exponent': 'two'})}, 'loss.terms.dice.options'),
  ],
)
def test_impossible_terms_are_refused_with_the_nearest_name(terms, message):
  with pytest.raises(ValueError) as error:
    losses.validate_terms(terms)
  assert message in str(error.value)
  losses.validate_terms({'ce': (1.0, {}), 'dice': (3.0, {'smooth': 2, 'exponent': 1})})
