"""What training carries from step to step, and how it starts."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

__all__ = ['TrainState', 'create', 'parameter_count', 'reduce_rate', 'seed_key']


@flax.struct.dataclass
class TrainState:
  """Attributes:
  step: int32 scalar, batches done so far.
  params: trainable parameters, float32.
  batch_stats: running statistics of normalisation layers; empty where there are none.
  opt_state: state of the optimiser.
  ema: average of the parameters, shaped like them; empty where none is kept.
  rate_scale: float32 scalar, factor of the learning rate; falls when validation stagnates.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: optax.OptState
  ema: Any = flax.struct.field(default_factory=dict)
  rate_scale: jax.Array = flax.struct.field(default_factory=lambda: jnp.ones((), jnp.float32))


def seed_key(seed: int, stream: str) -> jax.Array:
  """The root key of one stream of randomness: 'init', 'augment' or 'dropout'."""
  return jax.random.fold_in(jax.random.key(seed), ('init', 'augment', 'dropout').index(stream))


def create(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  *,
  seed: int,
  shape: tuple[int, ...],
  ema: bool = False,
) -> TrainState:
  """Initialises the state; pure, so that it can be jitted with sharded outputs or shape-evaluated.

  Args:
    model: the network.
    optimizer: its optimiser.
    seed: of the run.
    shape: [B, *spatial, C] of one input batch.
    ema: whether an average of the parameters is kept; it starts as a copy of them.

  Raises:
    ConfigError: the optimiser is told of parameters that the network does not have.
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
    # A copy, since the training step is given both buffers to overwrite.
    ema=jax.tree.map(jnp.copy, params) if ema else {},
  )


def reduce_rate(state: TrainState, factor: float) -> TrainState:
  """The state with a learning rate, and so a decoupled weight decay, `factor` times as large."""
  return state.replace(rate_scale=state.rate_scale * factor)


def parameter_count(params: Any) -> int:
  """Number of trainable scalars."""
  return sum(int(leaf.size) for leaf in jax.tree.leaves(params))
