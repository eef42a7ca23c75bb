"""Lovász-Softmax against the definition of the Lovász extension, with Python's sets, in float64."""

import jax
import loss_support as support
import numpy as np
import pytest
from loss_support import ANY_WEIGHTS, LABELS, LOGITS, VALID, WEIGHTS, with_options

from emseg_jax.losses.lovasz import lovasz_softmax

BATCH = jax.jit(lovasz_softmax)
FOREGROUND = jax.jit(with_options(lovasz_softmax, {'include_background': False}))
PER_IMAGE = jax.jit(with_options(lovasz_softmax, {'over': 'image'}))
ALL = pytest.mark.parametrize(
  'loss', [BATCH, FOREGROUND, PER_IMAGE], ids=['batch', 'foreground', 'image']
)


def jaccard_loss(wrong, members, weight):
  """Berman et al. 2018, eq. 5: the loss of a class whose voxels `wrong` are mistaken."""
  return sum(weight[i] for i in wrong) / sum(weight[i] for i in members | wrong)


def numpy_lovasz(logits, labels, weights, include_background=True, over='batch'):
  p = support.softmax(logits)
  w = support.per_class(weights, p.shape[-1])
  if over == 'image':
    options = {'include_background': include_background}
    images = [
      numpy_lovasz(logits[[b]], labels[[b]], weights[[b]], **options) for b in range(len(labels))
    ]
    return np.mean(images)
  values = []
  for k in range(0 if include_background else 1, p.shape[-1]):
    weight = {i: w[(*i, k)] for i in np.ndindex(labels.shape) if w[(*i, k)] > 0}
    members = {i for i in weight if labels[i] == k}
    if not members:
      continue
    error = {i: 1 - p[(*i, k)] if i in members else p[(*i, k)] for i in weight}
    value, wrong, before = 0.0, set(), 0.0
    for i in sorted(error, key=error.get, reverse=True):
      wrong.add(i)
      after = jaccard_loss(wrong, members, weight)
      value += error[i] * (after - before)
      before = after
    values.append(value)
  return np.mean(values) if values else 0.0


@ANY_WEIGHTS
@pytest.mark.parametrize(
  'options',
  [{}, {'include_background': False}, {'over': 'image'}],
  ids=['batch', 'foreground', 'image'],
)
def test_value_and_gradient_follow_the_definition(options, weights):
  pair = with_options(lovasz_softmax, options), with_options(numpy_lovasz, options)
  # Rounding reorders nearly equal errors only, where the function has no kink worth mentioning.
  support.check_against(*pair, weights=weights, places=8)


def test_sure_predictions_give_one_minus_the_mean_jaccard_index():
  labels = np.array([[0, 0, 1, 1, 1]])
  logits = 50.0 * np.eye(2, dtype=np.float32)[[[0, 1, 0, 1, 1]]]
  ones = np.ones((1, 5), np.float32)
  value = BATCH(logits, labels, ones)
  np.testing.assert_allclose(value, 1 - (2 / 4 + 1 / 3) / 2, atol=1e-6)  # |A ∩ B| / |A ∪ B|
  np.testing.assert_allclose(FOREGROUND(logits, labels, ones), 1 - 2 / 4, atol=1e-6)


def test_two_voxels_by_hand():
  # p of class 1: 0.3 where it is right, 0.6 where it is wrong. Sorted errors 0.7 (in the set), 0.6.
  logits = np.log(np.float32([[[0.7, 0.3], [0.4, 0.6]]]))
  labels, ones = np.array([[1, 0]]), np.ones((1, 2), np.float32)
  # J goes 0, 1 - 0/1, 1 - 0/2: all of the loss at the first voxel.
  np.testing.assert_allclose(FOREGROUND(logits, labels, ones), 0.7, rtol=1e-6)
  # The same with the right voxel at p = 0.5: errors 0.6 (outside), 0.5: J is 1 - 1/2, then 1.
  logits[0, 0] = np.log(0.5)
  value = FOREGROUND(logits, labels, ones)
  np.testing.assert_allclose(value, 0.6 * 0.5 + 0.5 * 0.5, rtol=1e-6)


def test_a_voxel_of_weight_two_counts_twice():
  weights = VALID + (np.arange(VALID.size).reshape(VALID.shape) % 3 == 0) * VALID  # 0, 1 or 2
  twice = [np.repeat(a.reshape(60, -1), 2, axis=0)[None] for a in (LOGITS, LABELS)]
  first, second = np.minimum(weights, 1).ravel(), np.maximum(weights - 1, 0).ravel()
  copies = np.stack([first, second], axis=-1).reshape(1, -1)
  value = BATCH(twice[0], twice[1][..., 0], copies)
  np.testing.assert_allclose(value, BATCH(LOGITS, LABELS, weights), rtol=1e-5)


def test_an_absent_class_is_left_out_of_the_mean():
  labels = np.minimum(LABELS, 1)
  w = VALID.astype(np.float32)
  value = BATCH(LOGITS, labels, w)
  np.testing.assert_allclose(value, numpy_lovasz(LOGITS, labels, w), rtol=1e-5)
  empty = jax.jit(jax.value_and_grad(FOREGROUND))(LOGITS, np.zeros_like(labels), w)
  assert empty[0] == 0
  assert not np.any(empty[1])


def test_images_that_are_padding_are_left_out():
  padded = [np.concatenate([a, a]) for a in (LOGITS, LABELS)]
  weights = np.concatenate([WEIGHTS, np.zeros_like(WEIGHTS)])
  expected = PER_IMAGE(LOGITS, LABELS, WEIGHTS)
  np.testing.assert_allclose(PER_IMAGE(*padded, weights), expected, rtol=1e-6)


def test_steps_are_exact_where_differences_of_indices_would_be_rounded():
  # J changes by 1e-5 per voxel; the difference of two float32 near 1 has an error of 1e-7.
  n = 100_000
  p = np.full(n, 1e-3)
  logits = np.log(np.stack([1 - p, p], axis=-1))[None].astype(np.float32)
  labels = np.arange(n)[None] < 10
  gradient = jax.jit(jax.grad(lovasz_softmax))(
    logits, labels.astype(np.int32), np.ones((1, n), np.float32)
  )
  # Class 1: its 10 voxels come first, with errors 0.999 and steps 1/10; of class 0 the same voxels
  # come first, each with the step J = i / n. The others' steps in class 1 are 0 as none is left.
  # d e / d z_1 = -p (1 - p) for its voxels, in both classes.
  slope = -1e-3 * 0.999 * (1 / 10 + 1 / n) / 2
  np.testing.assert_allclose(gradient[0, :10, 1], np.full(10, slope), rtol=1e-4)
  # Others: in class 0 error p, step 1/n each, to within the 10 before them.
  slope = 1e-3 * 0.999 * (1 / n) / 2
  np.testing.assert_allclose(gradient[0, 10:, 1], np.full(n - 10, slope), rtol=1e-4)


@ALL
def test_one_sigmoid_output_equals_two_softmax_classes(loss):
  support.check_one_output(loss)


@ALL
def test_voxels_of_weight_zero_change_neither_value_nor_gradient(loss):
  support.check_ignores_weight_zero(loss)


@ALL
def test_value_and_gradient_are_finite_at_the_extremes(loss):
  support.check_extremes(loss)
  support.check_extremes(loss, logits=LOGITS[..., :1], labels=np.minimum(LABELS, 1))


@ALL
def test_half_precision_logits_are_computed_in_float32(loss):
  support.check_float32(loss)


@ALL
def test_volumes_are_taken_like_images(loss):
  support.check_volumes(loss)


@ALL
def test_shapes_that_do_not_belong_together_are_refused(loss):
  support.check_shapes_refused(loss)


def test_an_unknown_sum_is_refused():
  with pytest.raises(ValueError, match="over is 'voxel', must be image or batch"):
    lovasz_softmax(LOGITS, LABELS, WEIGHTS, over='voxel')
