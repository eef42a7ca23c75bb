"""Losses of affinities: one task of yes and no per offset, made from ids after augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emseg_jax import augment, losses
from emseg_jax import config as config_lib
from emseg_jax.losses import label_maps, maps, tasks

OFFSETS = ((0, 1), (1, 0), (0, -3))
# Two objects beside each other, and background; the last column is not scored.
IDS = jnp.array([[[1, 1, 2, 2, 0, 9], [1, 1, 2, 2, 0, 9]]])
WEIGHT = jnp.array([[[1.0] * 5 + [0.0]] * 2])


def total(terms, logits, *, ids=IDS, weight=WEIGHT, offsets=OFFSETS, more=None):
  loss = config_lib.Loss.model_validate({'terms': terms})
  losses.validate_terms(loss, num_logits=len(offsets), axes=ids.ndim - 1, offsets=offsets)
  outputs = {'logits': logits, **(more or {})}
  return losses.total_loss(
    outputs, {'label': ids, 'weight': weight}, {}, loss=loss, offsets=offsets
  )


def logits_of(ids, weight, *, sure=30.0):
  same, _ = label_maps.affinities(ids, weight, offsets=OFFSETS)
  return sure * (2 * same - 1)


def test_the_tasks_are_those_of_a_table_by_hand():
  found = tasks.tasks(
    jnp.zeros((1, 2, 6, 3)), {'label': IDS, 'weight': WEIGHT}, None, tasks.Labels(offsets=OFFSETS)
  )
  row = [t.label[0, 0].tolist() for t in found]
  assert row == [[1, 0, 1, 0, 0, 0], [1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0]]
  # To the right of column 4 nothing is scored; below row 1, and left of column 0, there is nothing.
  weights = [t.weight[0].tolist() for t in found]
  assert weights[0] == [[1, 1, 1, 1, 0, 0]] * 2
  assert weights[1] == [[1, 1, 1, 1, 1, 0], [0] * 6]
  assert weights[2] == [[0, 0, 0, 1, 1, 0]] * 2


def test_a_loss_is_the_mean_over_the_offsets():
  logits = jax.random.normal(jax.random.key(0), (1, 2, 6, 3))
  same, counted = label_maps.affinities(IDS, WEIGHT, offsets=OFFSETS)
  for name in ('ce', 'dice'):
    function = losses.LOSSES[name].function
    each = [
      function(logits[..., k : k + 1], same[..., k].astype(int), counted[..., k]) for k in range(3)
    ]
    _, parts = total({name: {}}, logits)
    np.testing.assert_allclose(parts[name], np.mean(each), rtol=1e-6)


def test_affinity_bce_takes_the_logits_and_the_offsets_of_the_task():
  logits = jax.random.normal(jax.random.key(1), (1, 2, 6, 3))
  _, parts = total({'affinity_bce': {'weight': 2}}, logits)
  expected = maps.affinity_bce(logits, IDS, WEIGHT, offsets=OFFSETS)
  np.testing.assert_allclose(parts['affinity_bce'], expected, rtol=1e-6)


def test_auxiliary_heads_have_an_output_per_offset_as_well():
  logits = logits_of(IDS, WEIGHT)
  right, _ = total({'ce': {}}, logits, more={'aux/a': logits})
  wrong, parts = total({'ce': {}}, logits, more={'aux/a': -logits})
  assert right < 1e-6
  np.testing.assert_allclose(wrong, 0.4 * parts['aux/a'])
  np.testing.assert_allclose(parts['aux/a'], 30.0, rtol=1e-6)


def test_a_boundary_is_where_ids_differ():
  _, parts = total(
    {'boundary_bce': {'options': {'width': 1}}},
    logits_of(IDS, WEIGHT),
    more={'boundary': jnp.zeros((1, 2, 6, 1))},
  )
  expected = maps.boundary_bce(jnp.zeros((1, 2, 6, 1)), IDS, WEIGHT, width=1)
  np.testing.assert_allclose(parts['boundary_bce'], expected)
  assert expected > 0


@pytest.mark.parametrize('axis', ['y', 'x'])
def test_targets_are_made_after_flips(axis):
  """A map of affinities that is flipped as an image would be wrong: its offsets point elsewhere."""
  ids = jnp.asarray(np.random.default_rng(0).integers(0, 3, (1, 8, 8)))
  batch = {
    'image': jnp.zeros((1, 8, 8, 1)),
    'label': ids,
    'weight': jnp.ones((1, 8, 8)),
    'index': jnp.zeros(1, jnp.int32),
    'valid': jnp.full((1, 2), 8, jnp.int32),
  }
  turn = (lambda a: a[:, ::-1]) if axis == 'y' else (lambda a: a[:, :, ::-1])
  flipped = None
  for seed in range(20):
    options = config_lib.Augment(flip=axis, rotate90=False)
    out = augment.augment(batch, jax.random.key(seed), options=options, patch=(8, 8))
    if (out['label'] == turn(ids)).all():
      flipped = out
      break
  assert flipped is not None
  offset = ((1, 0),) if axis == 'y' else ((0, 1),)
  of_image, _ = label_maps.affinities(ids, batch['weight'], offsets=offset)
  truth, weight = label_maps.affinities(turn(ids), batch['weight'], offsets=offset)
  sure = {'ids': flipped['label'], 'weight': flipped['weight'], 'offsets': offset}
  right, _ = total({'ce': {}}, 30.0 * (2 * truth - 1), **sure)
  wrong, _ = total({'ce': {}}, 30.0 * (2 * turn(of_image) - 1), **sure)
  assert right < 1e-6
  assert wrong > 1
  assert weight.sum() == 56  # the last row, or column, has no neighbour


def test_numbers_of_outputs_and_offsets_must_agree():
  with pytest.raises(ValueError, match='2 outputs for 3 offsets'):
    total({'ce': {}}, jnp.zeros((1, 2, 6, 2)))
