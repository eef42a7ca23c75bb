"""Losses where classes overlap: a label is a bit mask, and each class a task with one output.

Those of one class are tested elsewhere; here they are summed up over the bits of the mask.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emseg_jax import config as config_lib
from emseg_jax import losses

RNG = np.random.default_rng(0)
OF_LOGITS = [name for name, kind in losses.LOSSES.items() if kind.outputs == ('logits',)]
OPTIONS = {'cldice': {'iterations': 1}, 'tanimoto': {}}
LOGITS = RNG.normal(0, 2, (2, 4, 5, 3)).astype(np.float32)
BITS = RNG.integers(0, 2, LOGITS.shape)
MASK = (BITS @ [1, 2, 4]).astype(np.int32)
WEIGHT = (RNG.random(MASK.shape) < 0.7) * RNG.uniform(0.2, 3, MASK.shape).astype(np.float32)


def make_loss(weighting=None, **terms) -> config_lib.Loss:
  fields = {} if weighting is None else {'weighting': weighting}
  return config_lib.Loss(terms={name: fields | term for name, term in terms.items()})


def test_the_loss_of_masks_by_hand():
  # Class a: p = 3/4 and labels 1 0; class b: p = 1/5 and labels 1 1.
  logits = jnp.broadcast_to(jnp.log(jnp.array([3.0, 1 / 4])), (1, 1, 2, 2))
  batch = {'label': np.array([[[3, 2]]], np.int32), 'weight': np.ones((1, 1, 2), np.float32)}
  outputs = {'logits': logits, 'aux/x': 0 * logits}
  loss = make_loss(bce={}, auto={'loss': 'bce', 'weighting': {'name': 'class'}})
  counts = jnp.array([[6.0, 2.0], [4.0, 4.0]])  # without and with a, b; medians 4 and 4
  value, parts = losses.total_loss(
    outputs, batch, {}, loss=loss, class_counts=counts, multilabel=True
  )
  a = np.array([np.log(4 / 3), np.log(4)])  # of the voxels with and without a
  b = np.log(5)
  np.testing.assert_allclose(parts['bce'], (a.mean() + b) / 2, rtol=1e-6)
  balanced = (2 * a[0] + 2 / 3 * a[1]) / (2 + 2 / 3)  # weights 4 / 2 and 4 / 6
  np.testing.assert_allclose(parts['auto'], (balanced + b) / 2, rtol=1e-6)
  np.testing.assert_allclose(parts['aux/x'], np.log(2), rtol=1e-6)
  by_hand = parts['bce'] + parts['auto'] + 0.4 * np.log(2)
  np.testing.assert_allclose(value, by_hand, rtol=1e-6)


@pytest.mark.parametrize('weighting', [None, {'name': 'contour'}], ids=['plain', 'contour'])
def test_a_loss_of_masks_is_the_mean_of_those_of_single_classes(weighting):
  terms = {name: {'options': OPTIONS.get(name, {})} for name in OF_LOGITS}
  if weighting:
    terms = {name: terms[name] for name in ('bce', 'tanimoto')}

  def run(logits, label, multilabel):
    batch = {'label': label, 'weight': WEIGHT}
    section = make_loss(weighting, **terms)
    return losses.total_loss({'logits': logits}, batch, {}, loss=section, multilabel=multilabel)

  @jax.jit
  def together(logits, label):
    (_, parts), gradient = jax.value_and_grad(run, has_aux=True)(logits, label, True)
    return parts, gradient

  @jax.jit
  def alone(logits, label):
    (_, parts), gradient = jax.value_and_grad(run, has_aux=True)(logits, label, False)
    return parts, gradient

  parts, gradient = together(LOGITS, MASK)
  single = [alone(LOGITS[..., k : k + 1], BITS[..., k].astype(np.int32)) for k in range(3)]
  for name in terms:
    expected = np.mean([found[name] for found, _ in single])
    assert expected != 0
    np.testing.assert_allclose(parts[name], expected, rtol=1e-5, err_msg=name)
  expected = np.concatenate([g for _, g in single], axis=-1) / 3
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
  # Where the weight is 0, neither label nor logits are seen.
  ignored = WEIGHT == 0
  unseen = together(np.where(ignored[..., None], np.nan, LOGITS), np.where(ignored, 255, MASK))
  jax.tree.map(np.testing.assert_array_equal, unseen, (parts, gradient))
  empty, gradient = together(LOGITS, 0 * MASK)
  assert all(np.isfinite(part) for part in empty.values())
  assert np.isfinite(gradient).all()


def test_other_terms_see_the_mask_as_it_is():
  outputs = {'logits': jnp.zeros((1, 4, 4, 2)), 'centreline': jnp.zeros((1, 4, 4, 1))}
  label, weight = np.zeros((1, 4, 4), np.int32), np.ones((1, 4, 4), np.float32)
  batch = {'label': label, 'weight': weight, 'proximity': np.full((1, 4, 4), 0.75, np.float32)}
  loss = make_loss(mse={}, l2={})
  losses.validate_terms(loss, multilabel=True)
  params = {'kernel': jnp.array([2.0])}
  _, parts = losses.total_loss(outputs, batch, params, loss=loss, multilabel=True)
  np.testing.assert_allclose(parts['mse'], 0.25**2, rtol=1e-6)
  np.testing.assert_allclose(parts['l2'], 4.0, rtol=1e-6)


@pytest.mark.parametrize(
  ('term', 'message'),
  [
    ({'atm': {}}, 'loss.terms.atm: atm needs one class per voxel'),
    ({'edge': {'loss': 'boundary_ce'}}, 'loss.terms.edge: boundary_ce needs one class'),
    ({'affinity_bce': {'options': {'offsets': [[1, 0]]}}}, 'affinity_bce needs one class'),
    ({'mse': {'weighting': {'name': 'adaptive'}}}, 'mse.weighting: must be left out'),
    ({'focal': {'options': {'alpha': [1, 1, 1]}}}, 'must have 2 entries'),
    ({'ce': {'weighting': {'options': {'values': [1, 1, 1]}}}}, 'must be 2 numbers'),
  ],
)
def test_terms_that_are_not_for_masks_are_refused(term, message):
  loss = config_lib.Loss(terms=term)
  with pytest.raises(ValueError, match=message):
    losses.validate_terms(loss, num_logits=3, multilabel=True)


def test_all_losses_of_logits_and_their_weightings_are_valid():
  terms = {name: {} for name in OF_LOGITS} | {'boundary_bce': {}, 'mse': {}, 'l2': {}}
  weightings = {n: {'loss': 'bce', 'weighting': {'name': n}} for n in losses.WEIGHTINGS}
  for axes in (2, 3):
    loss = config_lib.Loss(terms=terms | weightings)
    losses.validate_terms(loss, num_logits=3, axes=axes, multilabel=True)
