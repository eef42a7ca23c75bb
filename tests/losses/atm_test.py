"""SegViT's loss against loops over taps, images and queries in float64, and against torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emseg_jax import config as config_lib
from emseg_jax import sharding
from emseg_jax.losses.atm import atm

RNG = np.random.default_rng(0)
B, T, K = 2, 2, 3
CLASSES = RNG.normal(0, 2, (B, T, K, K + 1)).astype(np.float32)
MASKS = RNG.normal(0, 2, (B, T, 5, 6, K)).astype(np.float32)
LABELS = RNG.integers(0, K, (B, 5, 6)).astype(np.int32)
LABELS[1][LABELS[1] == 2] = 0  # the second image has no class 2
WEIGHTS = (RNG.random(LABELS.shape) < 0.8).astype(np.float32)

value_and_grad = jax.jit(
  jax.value_and_grad(atm, argnums=(0, 1)),
  static_argnames=('class_weight', 'focal_weight', 'dice_weight'),
)


def numpy_atm(classes, masks, labels, weights, ce=1.0, focal=20.0, dice=1.0):
  classes, masks = classes.astype(np.float64), masks.astype(np.float64)
  k = masks.shape[-1]
  first = 1 if k == 1 else 0
  total = 0.0
  for t in range(masks.shape[1]):
    entropies, factors, mask_losses = [], [], []
    for b in range(len(labels)):
      w = weights[b] > 0
      for q in range(k):
        y = (labels[b] == q + first)[w].astype(float)
        target, factor = (q, 1.0) if y.any() else (k, 0.1)
        e = np.exp(classes[b, t, q])
        entropies.append(-factor * np.log(e[target] / e.sum()))
        factors.append(factor)
        if y.any():
          p = 1 / (1 + np.exp(-masks[b, t, ..., q][w]))
          right = np.where(y == 1, p, 1 - p)
          f = -np.where(y == 1, 0.25, 0.75) * (1 - right) ** 2 * np.log(right)
          d = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
          mask_losses.append(focal * f.mean() + dice * d)
    total += ce * sum(entropies) / sum(factors) + sum(mask_losses) / max(1, len(mask_losses))
  return total


@pytest.mark.parametrize('factors', [(1.0, 20.0, 1.0), (1.0, 0.0, 0.0), (0.5, 2.0, 3.0)])
def test_the_loss_follows_its_equation(factors):
  names = ('class_weight', 'focal_weight', 'dice_weight')
  value, _ = value_and_grad(
    CLASSES, MASKS, LABELS, WEIGHTS, **dict(zip(names, factors, strict=True))
  )
  expected = numpy_atm(CLASSES, MASKS, LABELS, WEIGHTS, *factors)
  np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_gradients_agree_with_finite_differences_of_the_numpy_form():
  _, gradients = value_and_grad(CLASSES, MASKS, LABELS, WEIGHTS)
  step = 1e-5
  for i, (array, gradient) in enumerate(zip((CLASSES, MASKS), gradients, strict=True)):
    for place in list(np.ndindex(array.shape))[::7]:
      sides = []
      for sign in (1, -1):
        moved = [CLASSES.astype(np.float64), MASKS.astype(np.float64)]
        moved[i][place] += sign * step
        sides.append(numpy_atm(*moved, LABELS, WEIGHTS))
      difference = (sides[0] - sides[1]) / (2 * step)
      np.testing.assert_allclose(gradient[place], difference, rtol=1e-3, atol=1e-7)


def test_one_query_stands_for_label_one():
  classes, masks = CLASSES[:, :, :1, :2], MASKS[..., :1]
  labels = np.minimum(LABELS, 1)
  value, _ = value_and_grad(classes, masks, labels, WEIGHTS)
  np.testing.assert_allclose(value, numpy_atm(classes, masks, labels, WEIGHTS), rtol=1e-5)


def test_a_query_of_an_absent_class_has_no_loss_on_its_mask():
  _, (_, gradient) = value_and_grad(CLASSES, MASKS, LABELS, WEIGHTS)
  assert np.all(gradient[1, ..., 2] == 0)
  assert np.any(gradient[0, ..., 2] != 0)


def test_ignored_voxels_and_images_change_neither_value_nor_gradient():
  expected = numpy_atm(CLASSES, MASKS, LABELS, WEIGHTS)
  padded = [np.concatenate([a, a]) for a in (CLASSES, MASKS, LABELS, 0 * WEIGHTS)]
  padded[3][:B] = WEIGHTS
  ignored = padded[3] == 0
  padded[0][B:] = np.nan
  padded[1] = np.where(ignored[:, None, ..., None], np.nan, padded[1])
  clean = value_and_grad(CLASSES, MASKS, LABELS, WEIGHTS)[1]
  for label in (255, 2):  # the second image has no 2 that counts
    value, gradients = value_and_grad(
      *padded[:2], np.where(ignored, label, padded[2]).astype(np.int32), padded[3]
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient, same in zip(gradients, clean, strict=True):
      assert np.all(gradient[B:] == 0)
      np.testing.assert_allclose(gradient[:B], same, rtol=1e-4, atol=1e-8)


def test_value_and_gradient_are_finite_at_the_extremes():
  for labels in (0 * LABELS, 0 * LABELS + K - 1):
    for scale in (0.0, 1e4):
      for weights in (WEIGHTS, 0 * WEIGHTS):
        value, gradients = value_and_grad(scale * CLASSES, scale * MASKS, labels, weights)
        assert np.isfinite(value)
        assert all(np.all(np.isfinite(g)) for g in gradients)
  assert value_and_grad(CLASSES, MASKS, LABELS, 0 * WEIGHTS)[0] == 0


def test_a_perfect_answer_costs_nothing():
  masks = np.repeat(60.0 * (2 * np.eye(K)[LABELS] - 1)[:, None], T, axis=1)
  answer = np.array([[0, 1, 2], [0, 1, K]])  # no object for class 2 of the second image
  classes = np.repeat(60.0 * np.eye(K + 1)[answer][:, None], T, axis=1)
  value, _ = value_and_grad(classes, masks, LABELS, 0 * WEIGHTS + 1)
  np.testing.assert_allclose(value, 0, atol=1e-6)


def test_half_precision_and_volumes():
  half = [jnp.asarray(a, jnp.bfloat16) for a in (CLASSES, MASKS)]
  value, _ = value_and_grad(*half, LABELS, WEIGHTS)
  assert value.dtype == jnp.float32
  rounded = [np.asarray(a, np.float32) for a in half]
  np.testing.assert_allclose(value, numpy_atm(*rounded, LABELS, WEIGHTS), rtol=1e-5)
  volume = [a.reshape(B, 5, 2, 3) for a in (LABELS, WEIGHTS)]
  value, _ = value_and_grad(CLASSES, MASKS.reshape(B, T, 5, 2, 3, K), *volume)
  np.testing.assert_allclose(value, numpy_atm(CLASSES, MASKS, LABELS, WEIGHTS), rtol=1e-5)


def test_the_loss_of_a_batch_on_many_devices_is_that_of_one():
  mesh = sharding.make_mesh(config_lib.Mesh(data=2, space=1))
  names = ('classes', 'masks', 'labels', 'weights')
  arrays = dict(zip(names, (CLASSES, MASKS, LABELS, WEIGHTS), strict=True))
  value = jax.jit(lambda a: atm(**a))(sharding.put_batch(arrays, mesh))
  np.testing.assert_allclose(value, numpy_atm(*arrays.values()), rtol=1e-5)


def test_shapes_that_do_not_belong_together_are_refused():
  with pytest.raises(ValueError, match='must have one shape'):
    atm(CLASSES, MASKS, LABELS[:, 1:], WEIGHTS)
  with pytest.raises(ValueError, match='must be'):
    atm(CLASSES[..., :-1], MASKS, LABELS, WEIGHTS)


@pytest.mark.parity
def test_the_class_term_is_torchs_weighted_cross_entropy():
  torch = pytest.importorskip('torch')
  entropy = functools.partial(
    torch.nn.functional.cross_entropy, weight=torch.tensor([1.0, 1.0, 1.0, 0.1])
  )
  target = torch.tensor([[0, 1, 2], [0, 1, K]])
  z = torch.tensor(CLASSES).permute(1, 0, 3, 2)  # [T, B, K + 1, K]
  expected = sum(entropy(z[t], target) for t in range(T))
  value = atm(CLASSES, MASKS, LABELS, 0 * WEIGHTS + 1, focal_weight=0.0, dice_weight=0.0)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
