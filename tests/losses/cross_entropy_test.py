"""Cross entropies against loops over voxels in numpy, written from the equations, in float64."""

import jax
import jax.numpy as jnp
import loss_support as support
import numpy as np
import pytest
from loss_support import ANY_WEIGHTS, LABELS, LOGITS, VALID, WEIGHTS, evaluate, with_options

from emseg_jax.losses.cross_entropy import (
  binary_cross_entropy,
  cross_entropy,
  focal,
  ohem_cross_entropy,
)

MINED = with_options(ohem_cross_entropy, {'threshold': 0.5, 'min_kept': 0.6})
SUMMED = pytest.mark.parametrize(
  'loss', [cross_entropy, binary_cross_entropy, focal, MINED], ids=['ce', 'bce', 'focal', 'ohem']
)
NORMALISED = pytest.mark.parametrize('normalise', ['weight', 'voxels'])


def voxels(logits, labels, weights):
  """(p_label, weight of the label) of every voxel with a positive weight."""
  p = support.softmax(logits)
  w = support.per_class(weights, p.shape[-1])
  places = [place for place in np.ndindex(labels.shape) if w[place].any()]
  return [(p[place][labels[place]], w[place][labels[place]]) for place in places]


def numpy_cross_entropy(logits, labels, weights, normalise='weight'):
  each = voxels(logits, labels, weights)
  below = sum(w for _, w in each) if normalise == 'weight' else len(each)
  return sum(-w * np.log(p) for p, w in each) / below


def numpy_binary_cross_entropy(logits, labels, weights, normalise='weight'):
  """For K > 1: SegET eq. 2 for every class."""
  w = support.per_class(weights, logits.shape[-1])
  total = below = 0.0
  for *place, k in np.ndindex(logits.shape):
    here = w[(*place, k)]
    y, t = float(logits[(*place, k)]), float(labels[tuple(place)] == k)
    total += here * (max(y, 0) - y * t + np.log(1 + np.exp(-abs(y)))) if here > 0 else 0
    below += here if normalise == 'weight' else float(here > 0)
  return total / below


def numpy_focal(logits, labels, weights, gamma=2.0, alpha=(1.0, 1.0, 1.0)):
  p = support.softmax(logits)
  w = support.per_class(weights, p.shape[-1])
  total = below = 0.0
  for place in np.ndindex(labels.shape):
    k = labels[place]
    if w[place][k] > 0:
      total -= w[place][k] * alpha[k] * (1 - p[place][k]) ** gamma * np.log(p[place][k])
      below += w[place][k]
  return total / below


def numpy_ohem(logits, labels, weights, threshold=0.9, min_kept=131072):
  each = sorted(voxels(logits, labels, weights))
  rank = int(min_kept * len(each)) if min_kept < 1 else min_kept
  limit = max(threshold, each[min(rank, len(each) - 1)][0])
  kept = [(p, w) for p, w in each if p < limit]
  return sum(-w * np.log(p) for p, w in kept) / sum(w for _, w in kept)


@ANY_WEIGHTS
@NORMALISED
def test_cross_entropy_is_the_weighted_mean_of_minus_log_p(weights, normalise):
  options = {'normalise': normalise}
  pair = with_options(cross_entropy, options), with_options(numpy_cross_entropy, options)
  support.check_against(*pair, weights=weights)


@ANY_WEIGHTS
@NORMALISED
def test_binary_cross_entropy_follows_its_equation_class_by_class(weights, normalise):
  options = {'normalise': normalise}
  pair = (
    with_options(binary_cross_entropy, options),
    with_options(numpy_binary_cross_entropy, options),
  )
  support.check_against(*pair, weights=weights)


@ANY_WEIGHTS
@pytest.mark.parametrize(
  'options',
  [{}, {'gamma': 0.5}, {'gamma': 1.0, 'alpha': (0.25, 0.5, 2.0)}],
  ids=['default', 'root', 'alpha'],
)
def test_focal_follows_its_equation(weights, options):
  pair = with_options(focal, options), with_options(numpy_focal, options)
  support.check_against(*pair, weights=weights)


@ANY_WEIGHTS
@pytest.mark.parametrize(
  'options',
  [
    {},  # fewer voxels than min_kept
    {'threshold': 0.5, 'min_kept': 0},  # the threshold decides
    {'threshold': 0.1, 'min_kept': 10},  # the number decides
    {'threshold': 0.1, 'min_kept': 0.6},
    {'threshold': 0.999, 'min_kept': 3},
  ],
  ids=str,
)
def test_mining_keeps_the_voxels_that_its_definition_keeps(weights, options):
  pair = with_options(ohem_cross_entropy, options), with_options(numpy_ohem, options)
  support.check_against(*pair, weights=weights)


def test_mining_of_four_voxels_by_hand():
  p = np.array([0.95, 0.2, 0.92, 0.6])  # of the label, which is 1
  logits = np.log(np.stack([1 - p, p], axis=-1))[None].astype(np.float32)
  labels, weights = np.ones((1, 4), np.int32), np.ones((1, 4), np.float32)

  def mined(**options):
    return evaluate(ohem_cross_entropy, logits, labels, weights, **options)

  hard, harder = -np.log([0.2, 0.6]).mean(), -np.log(0.2)
  np.testing.assert_allclose(mined(threshold=0.9, min_kept=1), hard, rtol=1e-5)
  np.testing.assert_allclose(mined(threshold=0.5, min_kept=0), harder, rtol=1e-5)
  np.testing.assert_allclose(mined(threshold=0.5, min_kept=1), harder, rtol=1e-5)
  np.testing.assert_allclose(mined(threshold=0.5, min_kept=2), hard, rtol=1e-5)
  np.testing.assert_allclose(mined(threshold=0.5, min_kept=0.5), hard, rtol=1e-5)
  # Three are kept, and no more however many are asked for: the limit is the easiest, 0.95.
  three = -np.log([0.2, 0.6, 0.92]).mean()
  np.testing.assert_allclose(mined(threshold=0.5, min_kept=100), three, rtol=1e-5)
  assert mined(threshold=0.1, min_kept=0) == 0  # nothing is hard


def test_mining_has_no_gradient_at_easy_voxels():
  gradient = jax.jit(jax.grad(MINED))(LOGITS, LABELS, VALID)
  p = np.take_along_axis(support.softmax(LOGITS), LABELS[..., None], axis=-1)[..., 0]
  counted = VALID > 0
  limit = max(0.5, np.sort(p[counted])[int(0.6 * counted.sum())])
  np.testing.assert_array_equal(np.any(gradient != 0, axis=-1), counted & (p < limit))


def test_cross_entropy_of_an_undecided_network_is_log_k():
  ones = jnp.ones((1, 4, 4))
  value = evaluate(cross_entropy, jnp.zeros((1, 4, 4, 5)), ones.astype(int), ones)
  np.testing.assert_allclose(value, np.log(5), rtol=1e-6)  # p = 1/5 everywhere


def test_one_output_gives_the_same_by_either_cross_entropy():
  z, y = LOGITS[..., 0].astype(float), np.minimum(LABELS, 1)
  each = np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z)))  # SegET eq. 2
  by_label = np.where(y == 1, 3.0, 0.5)  # two weights [..., 2]: that of the label counts
  two = np.broadcast_to(np.float32([0.5, 3.0]), (*y.shape, 2))
  for loss in (cross_entropy, binary_cross_entropy):
    for normalise, below in (('weight', WEIGHTS.sum()), ('voxels', (WEIGHTS > 0).sum())):
      value = evaluate(loss, LOGITS[..., :1], y, WEIGHTS, normalise=normalise)
      np.testing.assert_allclose(value, (WEIGHTS * each).sum() / below, rtol=1e-5)
    value = evaluate(loss, LOGITS[..., :1], y, two)
    np.testing.assert_allclose(value, (by_label * each).sum() / by_label.sum(), rtol=1e-5)


def test_binary_cross_entropy_of_a_sure_right_voxel_is_not_rounded_away():
  value = evaluate(
    binary_cross_entropy, jnp.full((1, 1, 1), 30.0), jnp.ones((1, 1), int), jnp.ones((1, 1))
  )
  np.testing.assert_allclose(value, np.log1p(np.exp(-30.0)), rtol=1e-5)


def test_focal_without_exponent_is_cross_entropy():
  value = evaluate(focal, LOGITS, LABELS, WEIGHTS, gamma=0)
  np.testing.assert_allclose(value, evaluate(cross_entropy, LOGITS, LABELS, WEIGHTS), rtol=1e-6)


@pytest.mark.parametrize('loss', [cross_entropy, focal, MINED], ids=['ce', 'focal', 'ohem'])
def test_one_sigmoid_output_equals_two_softmax_classes(loss):
  support.check_one_output(loss)


@SUMMED
def test_voxels_of_weight_zero_change_neither_value_nor_gradient(loss):
  support.check_ignores_weight_zero(loss)


@SUMMED
def test_value_and_gradient_are_finite_at_the_extremes(loss):
  support.check_extremes(loss)
  support.check_extremes(loss, logits=LOGITS[..., :1], labels=np.minimum(LABELS, 1))


def test_focal_with_an_exponent_below_one_is_finite_at_the_extremes():
  support.check_extremes(with_options(focal, {'gamma': 0.5}))


@SUMMED
def test_half_precision_logits_are_computed_in_float32(loss):
  support.check_float32(loss)


@SUMMED
def test_volumes_are_taken_like_images(loss):
  support.check_volumes(loss)


@SUMMED
def test_shapes_that_do_not_belong_together_are_refused(loss):
  support.check_shapes_refused(loss)


@pytest.mark.parametrize(
  ('loss', 'options', 'message'),
  [
    (cross_entropy, {'normalise': 'mean'}, "normalise is 'mean', must be weight or voxels"),
    (binary_cross_entropy, {'normalise': None}, 'normalise is None'),
    (focal, {'gamma': -1}, 'gamma is -1, must be 0 or more'),
    (focal, {'alpha': (0.25, 0.75)}, r'alpha is \(0.25, 0.75\), must have 3 entries'),
    (ohem_cross_entropy, {'threshold': 0}, 'threshold is 0, must be above 0'),
    (ohem_cross_entropy, {'threshold': 1.5}, 'threshold is 1.5, must be above 0'),
    (ohem_cross_entropy, {'min_kept': -1}, 'min_kept is -1, must be 0 or more'),
  ],
)
def test_impossible_options_are_refused(loss, options, message):
  with pytest.raises(ValueError, match=message):
    loss(LOGITS, LABELS, WEIGHTS, **options)
