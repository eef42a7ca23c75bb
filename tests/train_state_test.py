"""The state before the first step, and the independence of its streams of randomness."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emseg_jax import errors, optim, train_state
from emseg_jax.config import Optim


class Small(nn.Module):
  """One convolution, with or without normalisation, and dropout."""

  norm: bool = True

  @nn.compact
  def __call__(self, x, *, train):
    x = nn.Conv(4, (3, 3))(x)
    if self.norm:
      x = nn.BatchNorm(use_running_average=not train)(x)
    return nn.Dropout(0.5, deterministic=not train)(x)


@functools.cache
def create(*, seed=0, norm=True, shape=(2, 8, 8, 3), ema=False):
  model, optimizer = Small(norm=norm), optax.sgd(0.1, 0.9)
  return jax.jit(lambda: train_state.create(model, optimizer, seed=seed, shape=shape, ema=ema))()


def test_the_first_state_is_step_zero_with_untouched_statistics():
  state = create()
  assert state.step.dtype == jnp.int32
  assert int(state.step) == 0
  stats = state.batch_stats['BatchNorm_0']
  np.testing.assert_array_equal(stats['mean'], np.zeros(4))
  np.testing.assert_array_equal(stats['var'], np.ones(4))
  momentum = state.opt_state[0].trace
  assert jax.tree.map(jnp.shape, momentum) == jax.tree.map(jnp.shape, state.params)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))


def test_a_network_without_normalisation_has_empty_statistics():
  assert create(norm=False).batch_stats == {}


def test_the_learning_rate_is_scaled_by_one_until_it_is_reduced():
  state = create()
  assert state.rate_scale.dtype == jnp.float32
  assert float(state.rate_scale) == 1.0
  reduced = train_state.reduce_rate(train_state.reduce_rate(state, 0.5), 0.25)
  assert reduced.rate_scale.dtype == jnp.float32
  assert float(reduced.rate_scale) == 0.125
  assert reduced.params is state.params


def test_the_average_starts_as_a_copy_that_shares_no_memory_with_the_parameters():
  assert create().ema == {}
  state = create(ema=True)
  for average, leaf in zip(jax.tree.leaves(state.ema), jax.tree.leaves(state.params), strict=True):
    np.testing.assert_array_equal(average, leaf)
  pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((state.ema, state.params))]
  assert len(set(pointers)) == len(pointers) == 8


def test_parameters_are_counted_by_hand():
  # 3 * 3 * 3 * 4 kernel + 4 bias + 4 scale + 4 bias of the normalisation
  assert train_state.parameter_count(create().params) == 108 + 4 + 8


def test_the_state_depends_on_the_seed_alone():
  kernel = create(seed=0).params['Conv_0']['kernel']
  again = create.__wrapped__(seed=0).params['Conv_0']['kernel']
  np.testing.assert_array_equal(again, kernel)
  assert not np.array_equal(create(seed=4).params['Conv_0']['kernel'], kernel)


def test_parameters_do_not_depend_on_batch_or_extent():
  one, other = create(), create(shape=(1, 16, 24, 3))
  for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
    np.testing.assert_array_equal(a, b)


def test_the_state_can_be_described_without_computing_it():
  abstract = jax.eval_shape(create.__wrapped__)
  assert jax.tree.leaves(abstract)
  for described, computed in zip(jax.tree.leaves(abstract), jax.tree.leaves(create()), strict=True):
    assert (described.shape, described.dtype) == (computed.shape, computed.dtype)


@pytest.mark.parametrize(
  ('options', 'per_parameter'),
  [  # arrays shaped like the parameters that the optimiser keeps
    ({'optimizer': 'sgd'}, 1),
    ({'optimizer': 'adam'}, 2),
    ({'optimizer': 'adamw', 'clip_norm': 1.0}, 2),
    ({'optimizer': 'radam', 'groups': {'Conv_0': 10.0}}, 2),
    ({'optimizer': 'adagrad', 'decay': 'decoupled'}, 1),
    ({'optimizer': 'adam', 'accumulate': 4}, 3),  # and the mean gradient
  ],
)
def test_the_state_of_every_optimiser_can_be_described(options, per_parameter):
  optimizer = optim.make_optimizer(Optim(**options), steps=20)
  abstract = jax.eval_shape(
    lambda: train_state.create(Small(), optimizer, seed=0, shape=(2, 8, 8, 3), ema=True)
  )
  arrays = [x for x in jax.tree.leaves(abstract.opt_state) if x.ndim > 0]
  assert sum(x.size for x in arrays) == per_parameter * 120
  counters = [x for x in jax.tree.leaves(abstract.opt_state) if x.ndim == 0]
  assert {x.dtype for x in arrays} == {jnp.dtype('float32')}
  assert {x.dtype for x in counters} == {jnp.dtype('int32')}  # checkpoints digest 32 bits
  assert jax.tree.map(jnp.shape, abstract.ema) == jax.tree.map(jnp.shape, abstract.params)


def test_a_learning_rate_for_parameters_that_are_not_there_is_refused_before_any_is_made():
  optimizer = optim.make_optimizer(Optim(groups={'decoder': 10.0}), steps=20)
  with pytest.raises(errors.ConfigError, match="groups: 'decoder' matches no parameter"):
    jax.eval_shape(lambda: train_state.create(Small(), optimizer, seed=0, shape=(2, 8, 8, 3)))


def test_streams_of_randomness_differ_by_name_and_by_seed():
  names = ('init', 'augment', 'dropout')
  keys = {
    tuple(jax.random.key_data(train_state.seed_key(seed, name)).tolist())
    for seed in (0, 1, 2**31 - 1)
    for name in names
  }
  assert len(keys) == 9
  again = train_state.seed_key(1, 'augment')
  assert jnp.array_equal(
    jax.random.key_data(again), jax.random.key_data(train_state.seed_key(1, 'augment'))
  )


def test_an_unknown_stream_is_refused():
  with pytest.raises(ValueError, match='not in tuple'):
    train_state.seed_key(0, 'noise')
