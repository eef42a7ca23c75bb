"""The sum of terms by hand, what is refused, and what every registered loss must keep to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emseg_jax import config as config_lib
from emseg_jax import losses

RNG = np.random.default_rng(0)
HALVES = np.repeat([[0, 1]], 8, axis=1).reshape(1, 4, 4).astype(np.int32)  # 8 voxels per class
BATCH = {'label': HALVES, 'weight': np.ones((1, 4, 4), np.float32)}
UNDECIDED = {'logits': jnp.zeros((1, 4, 4, 2))}


def section(**terms):
  aux = {'aux_weight': terms.pop('aux_weight')} if 'aux_weight' in terms else {}
  return config_lib.Loss(terms=terms, **aux)


def total(loss, outputs, batch=BATCH, params=None, **kwargs):
  return losses.total_loss(outputs, batch, params or {}, loss=loss, **kwargs)


def test_the_total_is_the_weighted_sum_of_terms_and_auxiliary_heads():
  outputs = UNDECIDED | {'aux/a': jnp.full((1, 4, 4, 2), jnp.log(jnp.array([3.0, 1.0])))}
  params = {'head': {'kernel': jnp.array([1.0, 2.0]), 'bias': jnp.array([9.0])}}
  loss = section(ce={}, dice={'weight': 3.0}, decay={'loss': 'l2', 'weight': 0.1})
  value, parts = jax.jit(lambda o, p: total(loss, o, params=p))(outputs, params)
  expected = {
    'ce': np.log(2),
    # Of both classes sum(p g) = 4, sum(p^2) = 4, sum(g) = 8: 1 - (2·4 + 1) / (4 + 8 + 1).
    'dice': 4 / 13,
    'decay': 5.0,
    # p is 3/4 on the eight voxels of class 0 and 1/4 on the others.
    'aux/a': -(np.log(3 / 4) + np.log(1 / 4)) / 2,
  }
  assert parts.keys() == expected.keys()
  for name, part in expected.items():
    np.testing.assert_allclose(parts[name], part, rtol=1e-6)
  sum_by_hand = expected['ce'] + 3 * 4 / 13 + 0.1 * 5 + 0.4 * expected['aux/a']
  np.testing.assert_allclose(value, sum_by_hand, rtol=1e-6)


def test_auxiliary_heads_may_have_weights_of_their_own():
  outputs = UNDECIDED | {'aux/a': UNDECIDED['logits'], 'aux/b': UNDECIDED['logits']}
  value, _ = total(section(ce={}, aux_weight={'a': 0.5, 'b': 2.0}), outputs)
  np.testing.assert_allclose(value, 3.5 * np.log(2), rtol=1e-6)
  with pytest.raises(ValueError, match="no weight for the auxiliary head 'b'"):
    total(section(ce={}, aux_weight={'a': 0.5}), outputs)


def test_a_term_may_be_for_another_output_and_have_options():
  # p of the label is 9/10 and 1/10: OHEM with threshold 0.5 keeps the latter.
  outputs = UNDECIDED | {'early': jnp.full((1, 4, 4, 2), jnp.log(jnp.array([9.0, 1.0])))}
  term = {'loss': 'ohem_ce', 'output': 'early', 'options': {'threshold': 0.5, 'min_kept': 0}}
  value, _ = total(section(hard=term), outputs)
  np.testing.assert_allclose(value, np.log(10), rtol=1e-5)
  with pytest.raises(ValueError, match="hard: the network has no output 'early'; it has logits"):
    total(section(hard=term), UNDECIDED)


def test_a_term_may_weight_voxels():
  labels = np.array([[[0, 0, 0, 1]]], np.int32)
  batch = {'label': labels, 'weight': np.ones(labels.shape, np.float32)}
  outputs = {'logits': jnp.log(jnp.full((1, 1, 4, 1), 3.0))}  # sigmoid 3/4
  low, high = np.log(4 / 3), np.log(4)
  weighted = {'loss': 'bce', 'weighting': {'name': 'adaptive'}}
  loss = section(
    plain={'loss': 'bce'},
    adaptive=weighted,  # 3 : 1, the foreground has the weight 3
    keras=weighted | {'options': {'normalise': 'voxels'}},
    auto={'loss': 'bce', 'weighting': {'name': 'class'}},  # counts 6 and 2, their median 4
  )
  counts = jnp.array([6.0, 2.0])
  _, parts = total(loss, outputs, batch, class_counts=counts)
  np.testing.assert_allclose(parts['plain'], (3 * high + low) / 4, rtol=1e-5)
  np.testing.assert_allclose(parts['adaptive'], (3 * high + 3 * low) / 6, rtol=1e-5)
  np.testing.assert_allclose(parts['keras'], (3 * high + 3 * low) / 4, rtol=1e-5)
  np.testing.assert_allclose(parts['auto'], (3 * 2 / 3 * high + 2 * low) / 4, rtol=1e-5)


def test_maps_are_compared_with_the_targets_that_the_host_computed():
  outputs = UNDECIDED | {'centreline': jnp.zeros((1, 4, 4, 1))}
  batch = BATCH | {'proximity': np.full((1, 4, 4), 0.75, np.float32)}
  value, _ = total(section(mse={'weight': 2.0}), outputs, batch)
  np.testing.assert_allclose(value, 2 * 0.25**2, rtol=1e-6)


def test_a_pattern_that_finds_no_parameter_of_the_network_is_refused():
  loss = section(l2={'options': {'pattern': 'head/kernel'}})
  losses.validate_terms(loss)
  with pytest.raises(ValueError, match=r"loss.terms.l2: pattern is 'head/kernel'"):
    total(loss, UNDECIDED, params={'tail': {'kernel': jnp.ones(3)}})


def test_what_the_data_have_to_bring_along_is_known():
  loss = section(ce={}, line={'loss': 'mse'}, l2={})
  assert losses.host_targets(loss) == ('proximity',)
  assert losses.host_targets(section(ce={})) == ()
  assert not losses.needs_class_counts(loss)
  for options in ({}, {'values': 'auto'}):
    assert losses.needs_class_counts(
      section(dice={}, ce={'weighting': {'name': 'class', 'options': options}})
    )
  for weighting in ({'name': 'class', 'options': {'values': [1.0, 2.0]}}, {'name': 'contour'}):
    assert not losses.needs_class_counts(section(ce={'weighting': weighting}))


@pytest.mark.parametrize(
  ('terms', 'message'),
  [
    ({'dise': {}}, "loss.terms.dise: unknown loss 'dise'; did you mean 'dice'"),
    ({'a': {'loss': 'ohem'}}, "loss.terms.a: unknown loss 'ohem'; did you mean 'ohem_ce'"),
    ({'dice': {'options': {'smoth': 1}}}, "unknown option 'smoth'; did you mean 'smooth'"),
    ({'ce': {'options': {'gamma': 1}}}, 'loss.terms.ce.options: unknown option'),
    ({'dice': {'options': {'smooth': 0.0}}}, 'loss.terms.dice: smooth is 0.0, must be above 0'),
    ({'dice': {'options': {'exponent': 'two'}}}, "loss.terms.dice: {'exponent': 'two'} fails"),
    ({'l2': {'options': {'pattern': '('}}}, 'loss.terms.l2: pattern is'),
    ({'l2': {'output': 'logits'}}, 'loss.terms.l2.output: must be left out'),
    ({'atm': {'output': 'logits'}}, 'atm takes atm/class and atm/mask'),
    ({'l2': {'weighting': {}}}, 'loss.terms.l2.weighting: must be left out'),
    ({'affinity_bce': {}}, "'offsets'"),
    ({'affinity_bce': {'options': {'offsets': [[1, 0, 0]]}}}, 'must have 2 numbers'),
    ({'boundary_bce': {'weighting': {'name': 'contour'}}}, 'loss.terms.boundary_bce: '),
    (
      {'ce': {'weighting': {'name': 'adaptive', 'options': {'kap': 2}}}},
      "loss.terms.ce.weighting.options: unknown option 'kap'; did you mean 'cap'",
    ),
    ({'ce': {'weighting': {'options': {'class_counts': [1, 2]}}}}, 'known: values'),
    ({'ce': {'weighting': {'options': {'values': [1, 2, 3]}}}}, 'must be 2 numbers'),
  ],
)
def test_impossible_terms_are_refused_with_what_is_allowed(terms, message):
  with pytest.raises(ValueError) as error:
    losses.validate_terms(config_lib.Loss(terms=terms))
  assert message in str(error.value)
  assert '\n' not in str(error.value)


def every_loss(axes):
  """A section with all losses; few repetitions of what is slow to compile."""
  options = {
    'affinity_bce': {'offsets': np.eye(axes, dtype=int).tolist()},
    'cldice': {'iterations': 0},
  }
  return section(**{name: {'options': options.get(name, {})} for name in losses.LOSSES})


@pytest.mark.parametrize('axes', [2, 3])
@pytest.mark.parametrize('num_logits', [1, 2, 5])
def test_every_loss_is_valid_with_its_defaults(axes, num_logits):
  losses.validate_terms(every_loss(axes), num_logits=num_logits, axes=axes)
  values = {'options': {'values': [1.0] * max(2, num_logits)}}
  rules = {name: values if name == 'class' else {} for name in losses.WEIGHTINGS}
  terms = {n: {'loss': 'tanimoto', 'weighting': {'name': n} | v} for n, v in rules.items()}
  losses.validate_terms(config_lib.Loss(terms=terms), num_logits=num_logits, axes=axes)


def test_the_losses_of_the_papers_are_valid():
  adaptive = {'name': 'adaptive', 'options': {'cap': 2000}}
  keras = {'normalise': 'voxels'}
  for loss in (
    config_lib.Loss(),  # PmcaNet
    section(
      bce={'weighting': adaptive, 'options': keras},  # SegET
      jaccard={'options': {'smooth': 1.0}},
      l2={'weight': 1e-5},
    ),
    section(tanimoto={'weighting': {'name': 'contour'}}),  # Res-CR-Net
    section(ohem_ce={}, boundary_bce={'weight': 20}, boundary_ce={}),  # PIDNet
    section(atm={}),  # SegViT
  ):
    losses.validate_terms(loss)
  emnet = section(jaccard={'weight': 0.7}, mse={'weight': 0.3})
  losses.validate_terms(emnet, axes=3)


def random_outputs(size, classes):
  """All outputs that a loss is for, in bfloat16."""
  shapes = {
    'logits': (2, *size, classes),
    'centreline': (2, *size, 1),
    'boundary': (2, *size, 1),
    'affinities': (2, *size, len(size)),
    'atm/class': (2, 2, classes, classes + 1),
    'atm/mask': (2, 2, *size, classes),
  }
  return {
    name: jnp.asarray(3 * RNG.normal(size=shape), jnp.bfloat16) for name, shape in shapes.items()
  }


@pytest.mark.parametrize(
  ('size', 'classes'), [((6, 8), 3), ((2, 4, 6), 1)], ids=['softmax', 'sigmoid']
)
def test_every_loss_and_its_gradient_are_finite(size, classes):
  terms = every_loss(len(size)).terms
  params = {'kernel': jnp.ones(2)}

  @jax.jit
  def run(outputs, label, weight):
    batch = {'label': label, 'weight': weight, 'proximity': proximity}

    def value(outputs, params, name):
      part = total(section(**{name: terms[name]}), outputs, batch, params)[0]
      assert part.dtype == jnp.float32
      return part

    return {
      name: jax.value_and_grad(value, argnums=(0, 1))(outputs, params, name) for name in terms
    }

  outputs = random_outputs(size, classes)
  random = RNG.integers(0, max(2, classes), (2, *size)).astype(np.int32)
  some = (RNG.random(random.shape) < 0.7).astype(np.float32)
  empty, full, every, none = 0 * random, 0 * random + 1, 0 * some + 1, 0 * some
  proximity = RNG.random(random.shape).astype(np.float32)

  extreme = {name: 1e4 * z for name, z in outputs.items()}
  for z in (outputs, extreme):
    for label, weight in ((random, some), (empty, every), (full, every), (random, none)):
      for name, (part, gradients) in run(z, label, weight).items():
        assert np.isfinite(part), name
        assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients)), name
        if weight is none and name != 'l2':
          assert part == 0, name

  expected = run(outputs, random, some)
  for name, (_, gradients) in expected.items():
    assert any(np.any(g != 0) for g in jax.tree.leaves(gradients)), name
  # What stands at ignored voxels has no effect.
  ignored = some == 0
  unseen = {
    name: jnp.where((ignored[:, None] if name == 'atm/mask' else ignored)[..., None], jnp.nan, z)
    for name, z in outputs.items()
    if name != 'atm/class'
  }
  found = run(outputs | unseen, np.where(ignored, 255, random), some)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
