"""Soft clDice against scipy's grey morphology in float64, and skeletons known by hand."""

import jax
import loss_support as support
import numpy as np
import pytest
import scipy.ndimage
from loss_support import LABELS, LOGITS, VALID, WEIGHTS, evaluate, with_options

from emseg_jax.losses.cldice import soft_cldice, soft_skeleton

RNG = np.random.default_rng(2)
VOLUME = {  # [2, 3, 4, 5]
  'logits': RNG.normal(0, 2, (2, 3, 4, 5, 2)).astype(np.float32),
  'labels': (RNG.random((2, 3, 4, 5)) < 0.4).astype(np.int32),
  'weights': (RNG.random((2, 3, 4, 5)) < 0.8).astype(np.float32),
}


def numpy_skeleton(x, valid, iterations):
  """Shit et al. 2021, algorithm 1, of one image; faces erode, the whole block dilates."""
  faces = scipy.ndimage.generate_binary_structure(x.ndim, 1)
  outside = {'mode': 'constant'}

  def erode(x):
    x = np.where(valid, x, np.inf)
    return scipy.ndimage.minimum_filter(x, footprint=faces, cval=np.inf, **outside)

  def opened(x):
    x = np.where(valid, erode(x), -np.inf)
    return scipy.ndimage.maximum_filter(x, size=3, cval=-np.inf, **outside)

  def ridge(x):
    return np.where(valid, np.maximum(np.where(valid, x, 0) - opened(x), 0), 0)

  skeleton = ridge(x)
  for _ in range(iterations):
    x = erode(x)
    skeleton += (1 - skeleton) * ridge(x)
  return skeleton


def numpy_cldice(logits, labels, weights, iterations=3, smooth=1.0, over='batch'):
  p = 1 - support.softmax(logits)[..., 0]
  g = (labels != 0).astype(float)
  if weights.ndim > labels.ndim:
    weights = np.take_along_axis(weights, labels[..., None], axis=-1)[..., 0]
  skeletons = [
    np.stack([numpy_skeleton(*image, iterations) for image in zip(x, weights > 0, strict=True)])
    for x in (p, g)
  ]

  def value(w, p, g, skeleton_p, skeleton_g):
    precision = ((w * skeleton_p * g).sum() + smooth) / ((w * skeleton_p).sum() + smooth)
    sensitivity = ((w * skeleton_g * p).sum() + smooth) / ((w * skeleton_g).sum() + smooth)
    return 1 - 2 * precision * sensitivity / (precision + sensitivity)

  arrays = (weights.astype(float), p, g, *skeletons)
  if over == 'batch':
    return value(*arrays)
  return np.mean([value(*image) for image in zip(*arrays, strict=True)])


@support.ANY_WEIGHTS
@pytest.mark.parametrize(
  'options',
  [{}, {'iterations': 0, 'smooth': 0.1}, {'iterations': 1, 'over': 'image'}],
  ids=str,
)
def test_images_follow_the_algorithm(weights, options):
  pair = with_options(soft_cldice, options), with_options(numpy_cldice, options)
  support.check_against(*pair, weights=weights)


@pytest.mark.parametrize('options', [{}, {'iterations': 1, 'over': 'image'}], ids=str)
def test_volumes_follow_the_algorithm(options):
  pair = with_options(soft_cldice, options), with_options(numpy_cldice, options)
  support.check_against(*pair, **VOLUME)


def test_the_skeleton_of_a_bar_is_its_middle_line():
  bar = np.zeros((1, 7, 11), np.float32)
  bar[0, 2:5, 2:9] = 1
  middle = np.zeros_like(bar)
  middle[0, 3, 3:8] = 1  # the bar loses one voxel all round, then nothing is left
  skeleton = jax.jit(with_options(soft_skeleton, {'iterations': 2}))(bar, bar >= 0)
  np.testing.assert_array_equal(skeleton, middle)
  early = jax.jit(with_options(soft_skeleton, {'iterations': 0}))(bar, bar >= 0)
  np.testing.assert_array_equal(early, np.zeros_like(bar))  # opening restores the bar


def line_and_block():
  """Labels [1, 7, 11]: a line of five voxels. And a foreground three voxels thicker all round."""
  line, block = np.zeros((2, 1, 7, 11), np.int32)
  line[0, 3, 3:8] = 1
  block[0, 2:5, 2:9] = 1
  return line, block


def test_thickness_costs_nothing_and_a_missed_line_does():
  line, block = line_and_block()
  ones = np.ones(line.shape, np.float32)

  def loss(found, labels):
    sure = 50 * np.eye(2, dtype=np.float32)[found]
    return evaluate(soft_cldice, sure, labels, ones)

  for found, labels in ((line, line), (block, line), (line, block)):
    np.testing.assert_allclose(loss(found, labels), 0, atol=1e-6)
  # Nothing found: precision (0 + 1) / (0 + 1), sensitivity (0 + 1) / (5 + 1).
  np.testing.assert_allclose(loss(0 * line, line), 1 - 2 * (1 / 6) / (1 + 1 / 6), rtol=1e-5)
  # Nothing there: the other way round.
  np.testing.assert_allclose(loss(line, 0 * line), 1 - 2 * (1 / 6) / (1 + 1 / 6), rtol=1e-5)
  # A gap of one voxel: all found is right, 4 of 5 voxels are found.
  broken = line.copy()
  broken[0, 3, 5] = 0
  np.testing.assert_allclose(loss(broken, line), 1 - 2 * (5 / 6) / (1 + 5 / 6), rtol=1e-5)


def test_all_classes_but_the_first_are_foreground():
  two = np.stack([LOGITS[..., 0], np.logaddexp(LOGITS[..., 1], LOGITS[..., 2])], axis=-1)
  value = evaluate(soft_cldice, two, np.minimum(LABELS, 1), WEIGHTS)
  np.testing.assert_allclose(evaluate(soft_cldice, LOGITS, LABELS, WEIGHTS), value, rtol=1e-5)


def test_ignored_voxels_are_like_those_outside_the_image():
  rim = ((0, 0), (2, 3), (1, 2))
  padded = (
    np.pad(LOGITS, (*rim, (0, 0)), constant_values=7.0),
    np.pad(LABELS, rim, constant_values=255),
    np.pad(np.ones_like(VALID), rim),
  )
  value = evaluate(soft_cldice, LOGITS, LABELS, np.ones_like(VALID))
  np.testing.assert_allclose(evaluate(soft_cldice, *padded), value, rtol=1e-6)


def test_images_that_are_padding_are_left_out():
  padded = [np.concatenate([a, a]) for a in (LOGITS, LABELS)]
  weights = np.concatenate([WEIGHTS, np.zeros_like(WEIGHTS)])
  for over in ('image', 'batch'):
    expected = evaluate(soft_cldice, LOGITS, LABELS, WEIGHTS, over=over)
    value = evaluate(soft_cldice, *padded, weights, over=over)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_one_sigmoid_output_equals_two_softmax_classes():
  support.check_one_output(soft_cldice)


def test_voxels_of_weight_zero_change_neither_value_nor_gradient():
  support.check_ignores_weight_zero(soft_cldice)
  support.check_ignores_weight_zero(soft_cldice, **VOLUME)


def test_value_and_gradient_are_finite_at_the_extremes():
  support.check_extremes(soft_cldice)
  support.check_extremes(soft_cldice, logits=VOLUME['logits'][..., :1], labels=VOLUME['labels'])


def test_half_precision_logits_are_computed_in_float32():
  support.check_float32(soft_cldice)


def test_shapes_that_do_not_belong_together_are_refused():
  support.check_shapes_refused(soft_cldice)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'iterations': -1}, 'iterations is -1, must be 0 or more'),
    ({'smooth': 0}, 'smooth is 0, must be above 0'),
    ({'over': 'voxel'}, "over is 'voxel', must be image or batch"),
  ],
)
def test_impossible_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    soft_cldice(LOGITS, LABELS, WEIGHTS, **options)
