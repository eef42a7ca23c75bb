"""Schedules against their formulas, optimisers against loops in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from emseg_jax import optim
from emseg_jax.config import Optim

PARAMS = {
  'conv/kernel': np.array([[1.0, -2.0], [0.5, 3.0]]),
  'conv/bias': np.array([1.0, 2.0]),
  'norm/scale': np.array([1.0, 4.0]),
  'norm/bias': np.array([-1.0, 0.5]),
}
STEPS = 10


def decay_of(name, options):
  return options.weight_decay if name == 'conv/kernel' else 0.0


def gradients(step):
  """Other gradients at each step, for every leaf."""
  rng = np.random.default_rng(step)
  return {name: rng.normal(size=value.shape) for name, value in PARAMS.items()}


def nested(flat):
  return unflatten_dict({n: jnp.asarray(v, jnp.float32) for n, v in flat.items()}, sep='/')


def run(options, count):
  """Parameters after `count` updates with `gradients`."""
  optimizer = optim.make_optimizer(options, steps=STEPS)

  @jax.jit
  def update(params, state, grads):
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  params = nested(PARAMS)
  state = optimizer.init(params)
  for step in range(count):
    params, state = update(params, state, nested(gradients(step)))
  return flatten_dict(params, sep='/')


def check(params, expected):
  assert set(params) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(params[name], value, rtol=2e-5, atol=1e-7, err_msg=name)


def poly(step, options):
  return options.learning_rate * (1 - step / STEPS) ** options.power


# ---- schedules ----------------------------------------------------------------------------------


def test_poly_follows_its_formula():
  schedule = optim.make_schedule(Optim(learning_rate=0.01, power=0.9), steps=40_000)
  for step in (0, 1, 17, 20_000, 39_000):
    np.testing.assert_allclose(schedule(step), 0.01 * (1 - step / 40_000) ** 0.9, rtol=1e-5)
  assert float(schedule(20_000)) == pytest.approx(0.01 * 0.535887, rel=1e-5)  # 0.5^0.9 = 0.535887
  assert float(schedule(40_000)) == float(schedule(50_000)) == 0.0


def test_warm_up_rises_linearly_from_zero_and_poly_starts_behind_it():
  options = Optim(learning_rate=0.2, power=0.9, warmup_steps=4)
  schedule = optim.make_schedule(options, steps=24)
  # 0.2 t/4, then 0.2 (1 - (t - 4)/20)^0.9 with T = 24 - 4
  for step, expected in [(0, 0.0), (1, 0.05), (3, 0.15), (4, 0.2), (14, 0.2 * 0.5**0.9), (24, 0)]:
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-9)


def test_constant_stays_constant_behind_its_warm_up():
  schedule = optim.make_schedule(Optim(learning_rate=0.3, schedule='constant'), steps=5)
  assert [float(schedule(s)) for s in (0, 4, 100)] == pytest.approx([0.3] * 3)
  options = Optim(learning_rate=0.3, schedule='constant', warmup_steps=2)
  schedule = optim.make_schedule(options, steps=5)
  assert [float(schedule(s)) for s in (0, 1, 2, 9)] == pytest.approx([0.0, 0.15, 0.3, 0.3])


# ---- decay --------------------------------------------------------------------------------------


def test_only_kernels_are_decayed():
  mask = flatten_dict(optim.decay_mask(nested(PARAMS)), sep='/')
  assert mask == {
    'conv/kernel': True, 'conv/bias': False, 'norm/scale': False, 'norm/bias': False
  }  # fmt: skip


@pytest.mark.parametrize('optimizer', ['sgd', 'adamw'])
def test_without_gradient_the_decay_moves_kernels_alone(optimizer):
  options = Optim(optimizer=optimizer, learning_rate=0.1, weight_decay=0.5, schedule='constant')
  tx = optim.make_optimizer(options, steps=STEPS)
  params = nested(PARAMS)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  # -lr * decay * p
  check(
    flatten_dict(updates, sep='/'),
    {name: -0.1 * decay_of(name, options) * p for name, p in PARAMS.items()},
  )


# ---- optimisers ---------------------------------------------------------------------------------


def test_sgd_adds_the_decay_to_the_gradient_before_momentum():
  """As torch.optim.SGD: g += λp, m = μm + g, p -= lr·m."""
  options = Optim(momentum=0.8, weight_decay=0.3)
  expected = dict(PARAMS)
  m = dict.fromkeys(PARAMS, 0.0)
  for step in range(3):
    for name, g in gradients(step).items():
      m[name] = 0.8 * m[name] + g + decay_of(name, options) * expected[name]
      expected[name] = expected[name] - poly(step, options) * m[name]
  check(run(options, 3), expected)


def test_adamw_decouples_the_decay_from_the_gradient():
  """Loshchilov and Hutter 2019, algorithm 2, with the rate also on the decay, as in torch."""
  options = Optim(optimizer='adamw', betas=(0.8, 0.95), weight_decay=0.3)
  expected = dict(PARAMS)
  m, v = dict.fromkeys(PARAMS, 0.0), dict.fromkeys(PARAMS, 0.0)
  for step in range(3):
    for name, g in gradients(step).items():
      p = expected[name]
      m[name] = 0.8 * m[name] + 0.2 * g
      v[name] = 0.95 * v[name] + 0.05 * g**2
      m_hat, v_hat = m[name] / (1 - 0.8 ** (step + 1)), v[name] / (1 - 0.95 ** (step + 1))
      change = m_hat / (np.sqrt(v_hat) + 1e-8) + decay_of(name, options) * p
      expected[name] = p - poly(step, options) * change
  check(run(options, 3), expected)


def test_clipping_scales_the_gradient_to_the_norm_before_the_decay():
  options = Optim(
    learning_rate=1.0, momentum=0.0, weight_decay=0.25, schedule='constant', clip_norm=1.0
  )
  grads = gradients(0)
  norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
  assert norm > 1
  check(
    run(options, 1),
    {name: p - grads[name] / norm - decay_of(name, options) * p for name, p in PARAMS.items()},
  )


def test_a_gradient_within_the_norm_is_not_clipped():
  options = Optim(
    learning_rate=1.0, momentum=0.0, weight_decay=0.0, schedule='constant', clip_norm=1e3
  )
  check(run(options, 1), {name: p - gradients(0)[name] for name, p in PARAMS.items()})
