"""What training carries from step to step, and how it starts."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

__all__ = ['TrainState', 'create', 'parameter_count', 'seed_key']


@flax.struct.dataclass
class TrainState:
  """Attributes:
  step: int32 scalar, updates done so far.
  params: trainable parameters, float32.
  batch_stats: running statistics of normalisation layers; empty where there are none.
  opt_state: state of the optimiser.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: optax.OptState


def seed_key(seed: int, stream: str) -> jax.Array:
  """The root key of one stream of randomness: 'init', 'augment' or 'dropout'."""
  return jax.random.fold_in(jax.random.key(seed), ('init', 'augment', 'dropout').index(stream))


def create(
  model: nn.Module, optimizer: optax.GradientTransformation, *, seed: int, shape: tuple[int, ...]
) -> TrainState:
  """Initialises the state; pure, so that it can be jitted with sharded outputs or shape-evaluated.

  Args:
    model: the network.
    optimizer: its optimiser.
    seed: of the run.
    shape: [B, Y, X, C] of one input batch.
  """
  variables = model.init(
    {'params': seed_key(seed, 'init'), 'dropout': seed_key(seed, 'dropout')},
    jnp.zeros(shape, jnp.float32),
    train=True,
  )
  params = variables['params']
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=variables.get('batch_stats', {}),
    opt_state=optimizer.init(params),
  )


def parameter_count(params: Any) -> int:
  """Number of trainable scalars."""
  return sum(int(leaf.size) for leaf in jax.tree.leaves(params))
