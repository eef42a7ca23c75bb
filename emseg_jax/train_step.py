"""The jitted steps: pure functions of arrays, closed over frozen options. No I/O, no clocks.

`make_train_step` returns (state, batch) -> (state, metrics); `make_predict_step` returns
(variables, image) -> class probabilities.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from emseg_jax import augment, losses, sharding
from emseg_jax import config as config_lib
from emseg_jax.train_state import TrainState, seed_key

__all__ = ['compile_train_step', 'make_predict_step', 'make_train_step', 'predict_variables']

Metrics = dict[str, jax.Array]
StepFn = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]


def make_train_step(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  config: config_lib.Config,
  mesh: Mesh,
  *,
  augmented: bool = True,
) -> StepFn:
  """Builds the training step: augment, forward, loss, backward, update.

  The batch is what `data.pipeline` yields, split over `data`. Random numbers depend on (seed, step,
  example index) only. Under one jit BatchNorm's batch statistics are those of the global batch,
  however many devices share it. Without `augmented` the batch must have the size of the patch.

  Returns:
    A function of (state, batch) to be jitted with the state donated. Its metrics are scalars:
    'loss', each loss term, 'learning_rate' and 'grad_norm' (global, before clipping).
  """
  terms = {name: (term.weight, term.options) for name, term in config.loss.terms.items()}
  augment_key = seed_key(config.train.seed, 'augment')
  dropout_key = seed_key(config.train.seed, 'dropout')

  def step_fn(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
    if augmented:
      key = jax.random.fold_in(augment_key, state.step)
      batch = augment.augment(batch, key, options=config.augment, patch=config.data.patch)
    batch = sharding.constrain_patches(batch, mesh)

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
      outputs, updates = model.apply(
        {'params': params, 'batch_stats': state.batch_stats},
        batch['image'],
        train=True,
        mutable=['batch_stats'],
        rngs={'dropout': jax.random.fold_in(dropout_key, state.step)},
      )
      loss, parts = losses.total_loss(
        outputs, batch['label'], batch['weight'], terms=terms, aux_weight=config.loss.aux_weight
      )
      return loss, (parts, updates.get('batch_stats', {}))

    (loss, (parts, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {
      'loss': loss,
      **parts,
      'learning_rate': jnp.asarray(schedule(state.step), jnp.float32),
      'grad_norm': optax.tree.norm(grads),
    }
    state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats,
      opt_state=opt_state,
    )
    return state, metrics

  return step_fn


def compile_train_step(
  step_fn: StepFn, state: TrainState, batch: dict[str, jax.Array], mesh: Mesh
) -> StepFn:
  """Compiles the step ahead of time for one shape of batch, the state donated.

  The result refuses other shapes, so a run has one compilation or an error, never a silent
  recompilation.
  """
  replicated = sharding.replicated(mesh)
  jitted = jax.jit(step_fn, donate_argnums=0, out_shardings=(replicated, replicated))
  return jitted.lower(state, batch).compile()


def predict_variables(state: TrainState) -> dict[str, Any]:
  """The collections that a forward pass in evaluation mode needs."""
  return {'params': state.params, 'batch_stats': state.batch_stats}


def make_predict_step(model: nn.Module) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
  """Builds (variables, image [B, Y, X, C] f32) -> probabilities [B, Y, X, num_classes] f32."""

  def predict_fn(variables: dict[str, Any], image: jax.Array) -> jax.Array:
    logits = model.apply(variables, image, train=False)['logits']
    return jax.nn.softmax(losses.as_class_logits(logits), axis=-1)

  return predict_fn
