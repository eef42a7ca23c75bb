"""Optimisers against loops in float64 from their papers, and against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from emseg_jax import errors, optim
from emseg_jax.config import Optim

PARAMS = {
  'conv/kernel': np.array([[1.0, -2.0], [0.5, 3.0]]),
  'conv/bias': np.array([1.0, 2.0]),
  'norm/scale': np.array([1.0, 4.0]),
  'norm/bias': np.array([-1.0, 0.5]),
}
STEPS = 10
OPTIMIZERS = ('sgd', 'adam', 'adamw', 'radam', 'adagrad')


def gradients(step):
  """Other gradients at each step, for every leaf."""
  rng = np.random.default_rng(step)
  return {name: rng.normal(size=value.shape) for name, value in PARAMS.items()}


def nested(flat):
  return unflatten_dict({n: jnp.asarray(v, jnp.float32) for n, v in flat.items()}, sep='/')


def run(options, batches, *, steps=STEPS):
  """Parameters after these gradients, batch by batch."""
  optimizer = optim.make_optimizer(options, steps=steps)

  @jax.jit
  def update(params, state, grads):
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  params = nested(PARAMS)
  state = optimizer.init(params)
  for grads in batches:
    params, state = update(params, state, nested(grads))
  return flatten_dict(params, sep='/')


def check(params, expected):
  assert set(params) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(params[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def poly(step, options):
  return options.learning_rate * (1 - step / STEPS) ** options.power


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'accumulate': 11}, 'accumulate=11: must be at most train.steps=10'),
    ({'warmup_steps': 5, 'accumulate': 2}, r'warmup_steps=5: must be below train.steps=10 / optim'),
    ({'floor': 0.5, 'learning_rate': 0.1}, 'floor=0.5: must be at most learning_rate=0.1'),
    ({'decay_on': '('}, r"decay_on: '\(' is not a regular expression"),
    ({'groups': {'head': 2.0, '[': 1.0}}, r"groups: '\[' is not a regular expression"),
  ],
)
def test_what_cannot_be_is_refused_by_name(options, message):
  with pytest.raises(errors.ConfigError, match=message):
    optim.make_optimizer(Optim(**options), steps=STEPS)


# ---- optimisers ---------------------------------------------------------------------------------


def rule(options, memory, g, n):
  """One step's direction from the papers, in float64; n counts from 1."""
  m, v = memory
  b1, b2 = options.betas
  if options.optimizer == 'sgd':  # Sutskever 2013 as PyTorch writes it: the rate outside
    memory[0] = options.momentum * m + g
    return memory[0]
  if options.optimizer == 'adagrad':  # Duchi 2011, sums starting at Keras's 0.1
    memory[1] = v + g**2
    return g / np.sqrt(0.1 + memory[1] + options.epsilon)
  memory[:] = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
  m_hat, v_hat = memory[0] / (1 - b1**n), memory[1] / (1 - b2**n)
  if options.optimizer == 'radam':  # Liu 2020, algorithm 2; 5 instead of 4, as in their code
    rho_inf = 2 / (1 - b2) - 1
    rho = rho_inf - 2 * n * b2**n / (1 - b2**n)
    if rho < 5:
      return m_hat
    m_hat *= np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
  return m_hat / (np.sqrt(v_hat) + options.epsilon)  # Kingma and Ba 2015, algorithm 1


def reference(options, updates, *, decoupled, decayed=('conv/kernel',), factors=None):
  """Parameters after these updates, in float64."""
  params = dict(PARAMS)
  memory = {name: [0.0, 0.0] for name in PARAMS}
  for n, grads in enumerate(updates):
    for name, g in grads.items():
      p, rate = params[name], poly(n, options) * (factors or {}).get(name, 1.0)
      decay = options.weight_decay * p if name in decayed else 0.0
      direction = rule(options, memory[name], g + (0 if decoupled else decay), n + 1)
      params[name] = p - rate * (direction + (decay if decoupled else 0))
  return params


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('decay', ['auto', 'coupled', 'decoupled'])
def test_optimisers_follow_their_papers(optimizer, decay):
  options = Optim(
    optimizer=optimizer, momentum=0.8, betas=(0.8, 0.95), weight_decay=0.3, decay=decay
  )
  decoupled = decay == 'decoupled' or (decay == 'auto' and optimizer == 'adamw')
  # RAdam's rho is 39 - 2n 0.95^n / (1 - 0.95^n): 4.8 at n = 5 and 5.7 at n = 6, so both branches.
  updates = [gradients(n) for n in range(8)]
  check(run(options, updates), reference(options, updates, decoupled=decoupled))


@pytest.mark.parity
@pytest.mark.parametrize(
  ('options', 'name', 'arguments'),
  [
    ({'optimizer': 'sgd', 'momentum': 0.8}, 'SGD', {'momentum': 0.8}),
    ({'optimizer': 'adam'}, 'Adam', {'betas': (0.8, 0.95), 'eps': 1e-3}),
    ({'optimizer': 'adamw'}, 'AdamW', {'betas': (0.8, 0.95), 'eps': 1e-3}),
    # epsilon is added before or after the correction of the second moment, hence a negligible one
    ({'optimizer': 'radam', 'epsilon': 1e-12}, 'RAdam', {'betas': (0.8, 0.95), 'eps': 1e-12}),
    (
      {'optimizer': 'radam', 'epsilon': 1e-12, 'decay': 'decoupled'},
      'RAdam',
      {'betas': (0.8, 0.95), 'eps': 1e-12, 'decoupled_weight_decay': True},
    ),
    # epsilon is outside of PyTorch's root
    (
      {'optimizer': 'adagrad', 'epsilon': 1e-12},
      'Adagrad',
      {'initial_accumulator_value': 0.1, 'eps': 1e-12},
    ),
  ],
)
def test_optimisers_are_those_of_pytorch(options, name, arguments):
  torch = pytest.importorskip('torch')
  options = Optim(**{'betas': (0.8, 0.95), 'epsilon': 1e-3, 'weight_decay': 0.3} | options)
  tensors = {n: torch.tensor(p, requires_grad=True) for n, p in PARAMS.items()}
  kernel, *others = tensors.values()
  optimizer = getattr(torch.optim, name)(
    [{'params': [kernel], 'weight_decay': 0.3}, {'params': others, 'weight_decay': 0.0}],
    lr=1.0,
    **arguments,
  )
  for step in range(8):
    for group in optimizer.param_groups:
      group['lr'] = poly(step, options)
    for n, g in gradients(step).items():
      tensors[n].grad = torch.tensor(g)
    optimizer.step()
  check(
    run(options, [gradients(n) for n in range(8)]),
    {n: p.detach().numpy() for n, p in tensors.items()},
  )


# ---- which parameters ---------------------------------------------------------------------------


def test_decay_falls_on_the_parameters_that_the_expression_finds():
  def decayed(pattern):
    mask = flatten_dict(optim.decay_mask(nested(PARAMS), pattern=pattern), sep='/')
    return {name for name, marked in mask.items() if marked}

  assert decayed(Optim().decay_on) == {'conv/kernel'}
  assert decayed('^conv/|scale') == {'conv/kernel', 'conv/bias', 'norm/scale'}
  assert decayed('') == set(PARAMS)
  options = Optim(optimizer='adamw', weight_decay=0.3, decay_on='^norm/')
  updates = [gradients(n) for n in range(2)]
  expected = reference(options, updates, decoupled=True, decayed=('norm/scale', 'norm/bias'))
  check(run(options, updates), expected)


@pytest.mark.parametrize('decay', ['coupled', 'decoupled'])
def test_groups_scale_the_learning_rate_and_the_first_that_matches_wins(decay):
  options = Optim(
    optimizer='adam',
    weight_decay=0.3,
    decay=decay,
    groups={'conv/bias': 0.0, 'conv': 10.0, 'bias$': 0.5},
  )
  updates = [gradients(n) for n in range(3)]
  factors = {'conv/kernel': 10.0, 'conv/bias': 0.0, 'norm/scale': 1.0, 'norm/bias': 0.5}
  expected = reference(options, updates, decoupled=decay == 'decoupled', factors=factors)
  found = run(options, updates)
  check(found, expected)
  np.testing.assert_array_equal(found['conv/bias'], PARAMS['conv/bias'])  # frozen by the 0


@pytest.mark.parametrize(
  ('options', 'field'),
  [({'groups': {'conv': 2.0, 'hed': 10.0}}, 'groups'), ({'decay_on': 'hed'}, 'decay_on')],
)
def test_an_expression_without_parameters_is_refused_by_name(options, field):
  optimizer = optim.make_optimizer(Optim(accumulate=2, **options), steps=STEPS)
  with pytest.raises(
    errors.ConfigError, match=f"optim.{field}: 'hed' matches no parameter; .*conv"
  ):
    jax.eval_shape(optimizer.init, nested(PARAMS))


# ---- clipping and accumulation ------------------------------------------------------------------

PLAIN = {'learning_rate': 1.0, 'momentum': 0.0, 'schedule': 'constant'}


def test_clipping_scales_the_gradient_to_the_norm_before_the_decay():
  options = Optim(weight_decay=0.25, clip_norm=1.0, **PLAIN)
  grads = gradients(0)
  norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
  assert norm > 1
  expected = {name: p - grads[name] / norm for name, p in PARAMS.items()}
  expected['conv/kernel'] -= 0.25 * PARAMS['conv/kernel']
  check(run(options, [grads]), expected)


def test_a_gradient_within_the_norm_is_not_clipped():
  options = Optim(weight_decay=0.0, clip_norm=1e3, **PLAIN)
  check(run(options, [gradients(0)]), {name: p - gradients(0)[name] for name, p in PARAMS.items()})


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_accumulated_batches_make_one_update_with_their_mean_gradient(optimizer):
  options = Optim(optimizer=optimizer, weight_decay=0.3, accumulate=3)
  batches = [gradients(n) for n in range(8)]  # two updates, and two batches without a third
  means = [
    {name: np.mean([b[name] for b in batches[i : i + 3]], axis=0) for name in PARAMS}
    for i in (0, 3)
  ]
  expected = reference(options, means, decoupled=optimizer == 'adamw')
  check(run(options, batches, steps=3 * STEPS), expected)
  check(run(options, batches[:2], steps=3 * STEPS), PARAMS)


def test_it_is_the_mean_gradient_that_is_clipped():
  options = Optim(weight_decay=0.0, clip_norm=1.0, accumulate=2, **PLAIN)
  small = {name: 0.1 * g for name, g in gradients(0).items()}
  assert np.sqrt(sum((g**2).sum() for g in small.values())) < 1
  batches = [
    {name: sign * gradients(1)[name] + g for name, g in small.items()} for sign in (1, -1)
  ]  # each of a norm above 1, their mean is the small one
  assert all(np.sqrt(sum((g**2).sum() for g in b.values())) > 1 for b in batches)
  check(run(options, batches), {name: p - small[name] for name, p in PARAMS.items()})
