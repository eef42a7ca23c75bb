"""Overlap losses against loops in numpy, written from the equations, in float64."""

import jax
import jax.numpy as jnp
import loss_support as support
import numpy as np
import pytest
from loss_support import ANY_WEIGHTS, LABELS, LOGITS, WEIGHTS, evaluate, with_options

from emseg_jax.losses.overlap import dice, jaccard, tanimoto, tversky

ALL = pytest.mark.parametrize(
  'loss',
  [dice, jaccard, tanimoto, tversky, with_options(tversky, {'gamma': 0.75})],
  ids=['dice', 'jaccard', 'tanimoto', 'tversky', 'focal_tversky'],
)


def sums(term, logits, labels, weights, over):
  """Sum of w term(p, g) over voxels, per image (or one for the batch) and class: [B or 1, K]."""
  p = support.softmax(logits)
  w = support.per_class(weights, p.shape[-1])
  result = np.zeros((len(labels), p.shape[-1]))
  for *place, k in np.ndindex(p.shape):
    place = tuple(place)
    if w[(*place, k)] > 0:
      result[place[0], k] += w[(*place, k)] * term(p[(*place, k)], float(labels[place] == k))
  return result if over == 'image' else result.sum(axis=0, keepdims=True)


def numpy_dice(*arrays, smooth=1.0, exponent=2, include_background=True, over='image'):
  overlap = sums(lambda p, g: p * g, *arrays, over)
  below = sums(lambda p, g: p**exponent + g**exponent, *arrays, over)
  return (1 - (2 * overlap + smooth) / (below + smooth))[:, not include_background :].mean()


def numpy_jaccard(*arrays, smooth=1e-5, include_background=False, over='batch'):
  overlap = sums(lambda p, g: p * g, *arrays, over)
  both = sums(lambda p, g: p + g, *arrays, over)
  value = 1 - (overlap + smooth) / (both - overlap + smooth)
  return value[:, not include_background :].mean()


def numpy_tanimoto(*arrays, smooth=1.0, complement=True):
  def coefficient(turn):
    overlap = sums(lambda p, g: turn(p) * turn(g), *arrays, 'batch').sum()
    squares = sums(lambda p, g: turn(p) ** 2 + turn(g) ** 2, *arrays, 'batch').sum()
    return (overlap + smooth) / (squares - overlap + smooth)

  if not complement:
    return 1 - coefficient(lambda x: x)
  return 1 - 0.5 * (coefficient(lambda x: x) + coefficient(lambda x: 1 - x))


def numpy_tversky(
  *arrays, alpha=0.3, beta=0.7, gamma=1.0, smooth=1.0, include_background=False, over='batch'
):
  overlap = sums(lambda p, g: p * g, *arrays, over)
  false_positive = sums(lambda p, g: p * (1 - g), *arrays, over)
  false_negative = sums(lambda p, g: (1 - p) * g, *arrays, over)
  below = overlap + alpha * false_positive + beta * false_negative
  value = (1 - (overlap + smooth) / (below + smooth)) ** gamma
  return value[:, not include_background :].mean()


CASES = [
  (dice, numpy_dice, {}),
  (dice, numpy_dice, {'smooth': 0.1}),
  (dice, numpy_dice, {'exponent': 1}),
  (dice, numpy_dice, {'include_background': False}),
  (dice, numpy_dice, {'exponent': 1, 'include_background': False, 'over': 'batch'}),
  (jaccard, numpy_jaccard, {}),
  (jaccard, numpy_jaccard, {'smooth': 1.0, 'include_background': True}),
  (jaccard, numpy_jaccard, {'over': 'image'}),
  (tanimoto, numpy_tanimoto, {}),
  (tanimoto, numpy_tanimoto, {'smooth': 1e-5, 'complement': False}),
  (tversky, numpy_tversky, {}),
  (tversky, numpy_tversky, {'gamma': 0.75, 'alpha': 0.6, 'beta': 0.4, 'over': 'image'}),
  (tversky, numpy_tversky, {'gamma': 2, 'smooth': 1e-3, 'include_background': True}),
]


@ANY_WEIGHTS
@pytest.mark.parametrize(
  ('loss', 'reference', 'options'), CASES, ids=[f'{c[0].__name__}-{c[2]}' for c in CASES]
)
def test_value_and_gradient_follow_the_equation(loss, reference, options, weights):
  pair = with_options(loss, options), with_options(reference, options)
  support.check_against(*pair, weights=weights, places=8)


def sure(found):
  """Logits so sure that p is 0 or 1."""
  return 50.0 * jax.nn.one_hot(jnp.array(found), 2)


def test_sure_predictions_give_the_indices_of_sets():
  labels = jnp.array([[0, 0, 1, 1, 1]])
  logits, ones = sure([[0, 1, 0, 1, 1]]), jnp.ones((1, 5))  # 2 hits, 1 missed, 1 false, 1 rejected
  tiny = {'smooth': 1e-6}
  foreground = evaluate(dice, logits, labels, ones, include_background=False, **tiny)
  np.testing.assert_allclose(foreground, 1 - 2 * 2 / (3 + 3), atol=1e-5)
  np.testing.assert_allclose(evaluate(jaccard, logits, labels, ones, **tiny), 1 - 2 / 4, atol=1e-5)
  both = evaluate(jaccard, logits, labels, ones, include_background=True, **tiny)
  np.testing.assert_allclose(both, 1 - (2 / 4 + 1 / 3) / 2, atol=1e-5)
  # Over both classes: 3 right of 5, union 3 + 2 + 2; the complement of two classes is the same.
  np.testing.assert_allclose(evaluate(tanimoto, logits, labels, ones, **tiny), 1 - 3 / 7, atol=1e-5)
  value = evaluate(tversky, logits, labels, ones, alpha=0.25, beta=2.0, **tiny)
  np.testing.assert_allclose(value, 1 - 2 / (2 + 0.25 + 2), atol=1e-5)
  value = evaluate(tversky, logits, labels, ones, alpha=0.25, beta=2.0, gamma=0.5, **tiny)
  np.testing.assert_allclose(value, (2.25 / 4.25) ** 0.5, atol=1e-5)


def test_tversky_contains_jaccard_and_dice():
  arrays = (LOGITS, LABELS, WEIGHTS)
  value = evaluate(tversky, *arrays, alpha=1, beta=1, smooth=0.3)
  np.testing.assert_allclose(value, evaluate(jaccard, *arrays, smooth=0.3), rtol=1e-5)
  # Twice the numerator and denominator of Tversky: smooth is doubled.
  value = evaluate(tversky, *arrays, alpha=0.5, beta=0.5, smooth=0.3)
  plain = evaluate(dice, *arrays, exponent=1, smooth=0.6, include_background=False, over='batch')
  np.testing.assert_allclose(value, plain, rtol=1e-5)


@pytest.mark.parametrize('loss', [dice, jaccard, tversky])
def test_an_absent_class_that_is_not_predicted_costs_nothing(loss):
  labels, ones = jnp.zeros((1, 4), int), jnp.ones((1, 4))
  assert evaluate(loss, sure([[0, 0, 0, 0]]), labels, ones) < 1e-6
  assert evaluate(loss, sure([[0, 1, 0, 0]]), labels, ones) > 0.1


@pytest.mark.parametrize('loss', [dice, jaccard, tversky])
def test_images_that_are_padding_are_left_out(loss):
  padded = [np.concatenate([a, a]) for a in (LOGITS, LABELS)]
  weights = np.concatenate([WEIGHTS, np.zeros_like(WEIGHTS)])
  for over in ('image', 'batch'):
    expected = evaluate(loss, LOGITS, LABELS, WEIGHTS, over=over)
    np.testing.assert_allclose(evaluate(loss, *padded, weights, over=over), expected, rtol=1e-6)


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


@pytest.mark.parametrize(
  ('loss', 'options', 'message'),
  [
    (dice, {'smooth': 0}, 'smooth is 0, must be above 0'),
    (dice, {'exponent': 0.5}, 'exponent is 0.5, must be 1 or more'),
    (dice, {'over': 'voxel'}, "over is 'voxel', must be image or batch"),
    (jaccard, {'smooth': -1}, 'smooth is -1, must be above 0'),
    (tanimoto, {'smooth': float('nan')}, 'smooth is nan, must be above 0'),
    (tversky, {'alpha': -0.1}, 'alpha is -0.1 and beta is 0.7, must be 0 or more'),
    (tversky, {'gamma': 0}, 'gamma is 0, must be above 0'),
  ],
)
def test_impossible_options_are_refused(loss, options, message):
  with pytest.raises(ValueError, match=message):
    loss(LOGITS, LABELS, WEIGHTS, **options)
