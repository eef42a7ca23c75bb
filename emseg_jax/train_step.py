"""The jitted steps: pure functions of arrays, closed over frozen options. No I/O, no clocks.

`make_train_step` returns (state, batch) -> (state, metrics); `make_predict_step` returns
(variables, image) -> class probabilities.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from emseg_jax import augment, freezing, losses, norm_statistics, sharding
from emseg_jax import config as config_lib
from emseg_jax.train_state import TrainState, seed_key

__all__ = [
  'compile_train_step',
  'make_predict_step',
  'make_train_step',
  'predict_variables',
  'with_stop_flag',
]

Metrics = dict[str, jax.Array]
StepFn = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]


def make_train_step(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  config: config_lib.Config,
  mesh: Mesh,
  *,
  class_counts: np.ndarray | None = None,
) -> StepFn:
  """Builds the training step: augment, forward, loss, backward, update, average.

  The batch is what `data.pipeline` yields, split over `data`. Random numbers depend on (seed, step,
  example index) only. Under one jit BatchNorm's batch statistics are those of the global batch,
  however many devices share it; they move at every batch, also where several batches make one
  update of the parameters.

  Args:
    model, optimizer, schedule, config, mesh: of the run; the schedule is over updates.
    class_counts: what `train_input.class_counts` returns, for losses that weight classes by them.

  Returns:
    A function of (state, batch) to be jitted with the state donated. Its metrics are scalars:
    'loss', each loss term, 'learning_rate' (of this batch's update, or of the one that it will be
    part of) and 'grad_norm' (global, of this batch, before clipping).
  """
  augment_key = seed_key(config.train.seed, 'augment')
  dropout_key = seed_key(config.train.seed, 'dropout')

  def step_fn(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(augment_key, state.step)
    batch = augment.augment(batch, key, options=config.augment, patch=config.data.patch)
    batch = sharding.constrain_patches(batch, mesh)
    counts = None if class_counts is None else jnp.asarray(class_counts, jnp.float32)
    options = {'loss': config.loss, 'class_counts': counts, **losses.label_options(config.task)}

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
      with norm_statistics.record_momenta() as momenta, freezing.evaluating(config.model.freeze):
        outputs, updates = model.apply(
          {'params': params, 'batch_stats': state.batch_stats},
          batch['image'],
          train=True,
          mutable=['batch_stats'],
          rngs={'dropout': jax.random.fold_in(dropout_key, state.step)},
        )
      loss, parts = losses.total_loss(outputs, batch, params, **options)
      batch_stats = norm_statistics.grown_into(
        state.batch_stats, updates.get('batch_stats', {}), momenta, state.step
      )
      return loss, (parts, batch_stats)

    (loss, (parts, batch_stats)), grads = _gradient(loss_fn, state.params, mesh, config)
    metrics = {
      'loss': loss,
      **parts,
      'learning_rate': state.rate_scale * schedule(state.step // config.optim.accumulate),
      'grad_norm': optax.tree.norm(grads),
    }
    return _update(state, grads, batch_stats, optimizer, config), metrics

  return step_fn


def _gradient(
  loss_fn: Callable[[Any], tuple[jax.Array, Any]],
  params: Any,
  mesh: Mesh,
  config: config_lib.Config,
) -> tuple[tuple[jax.Array, Any], Any]:
  """((loss, more), gradient, which is 0 where parameters are frozen).

  Where parameters are split over the devices, the network needs the whole of them, but what follows
  from the gradient is again computed split. All of this is void where they are whole.
  """
  params = sharding.constrain(params, sharding.replicated(mesh))

  def learning(params: Any) -> tuple[jax.Array, Any]:
    return loss_fn(freezing.stop(params, config.model.freeze))

  value, grads = jax.value_and_grad(learning, has_aux=True)(params)
  return value, sharding.constrain(
    grads, sharding.state_shardings(grads, mesh, split=config.mesh.shard_state)
  )


def _update(
  state: TrainState,
  grads: Any,
  batch_stats: Any,
  optimizer: optax.GradientTransformation,
  config: config_lib.Config,
) -> TrainState:
  """The state after one more batch."""
  options, freeze = config.optim, config.model.freeze
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  updates = jax.tree.map(lambda u: state.rate_scale * u, updates)
  params, step, ema = optax.apply_updates(state.params, updates), state.step + 1, {}
  if options.ema is not None:
    ema = _average(state.ema, params, step, options.accumulate, options.ema)
  changed = {'params': params, 'batch_stats': batch_stats, 'ema': ema}
  if freeze:  # bit by bit: adding 0 or averaging equal numbers would round
    changed = {n: freezing.keep(new, getattr(state, n), freeze) for n, new in changed.items()}
  return state.replace(step=step, opt_state=opt_state, **changed)


def _average(ema: Any, params: Any, step: jax.Array, accumulate: int, decay: float) -> Any:
  """The average e_n of the parameters p_1 ... p_n after n updates, unchanged between updates.

      e_n = sum_k decay^(n - k) p_k / sum_k decay^(n - k),   k = 1 ... n

  It is the exponential moving average with Adam's correction (Kingma and Ba 2015, §3): without it
  the random start would still weigh decay^n, which is much where a run is short.
  """
  n = step // accumulate
  share = (1.0 - decay) / -jnp.expm1(n * math.log(decay))  # (1 - d) / (1 - d^n)
  share = jnp.where(step % accumulate == 0, share, 0.0)
  return optax.incremental_update(params, ema, share)


def compile_train_step(
  step_fn: StepFn, state: TrainState, batch: dict[str, jax.Array], mesh: Mesh
) -> StepFn:
  """Compiles the step ahead of time for one shape of batch, the state donated and staying in place.

  The result refuses other shapes, so a run has one compilation or an error, never a silent
  recompilation.
  """
  kept = jax.tree.map(lambda x: x.sharding, state)
  jitted = jax.jit(step_fn, donate_argnums=0, out_shardings=(kept, sharding.replicated(mesh)))
  return jitted.lower(state, batch).compile()


def with_stop_flag(step_fn: StepFn) -> StepFn:
  """The step, of a batch with 'stop' int32 [B]: its largest value is one more metric.

  So every process learns at the same step that one of them is to end, without a message more.
  """

  def flagged_fn(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
    stop = jnp.max(batch['stop'])
    state, metrics = step_fn(state, {k: v for k, v in batch.items() if k != 'stop'})
    return state, {**metrics, 'stop': stop}

  return flagged_fn


def predict_variables(state: TrainState) -> dict[str, Any]:
  """The collections that a forward pass in evaluation mode needs; the average where one is kept."""
  return {'params': state.ema or state.params, 'batch_stats': state.batch_stats}


def make_predict_step(
  model: nn.Module, *, independent: bool = False, mesh: Mesh | None = None
) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
  """Builds (variables, image [B, *spatial, C] f32) -> probabilities [B, *spatial, K] f32.

  They add up to one; K = 2 also where the network has one sigmoid output. With
  `independent` each of the K outputs has a probability of its own. Over a mesh the images are split
  as in training, and the network gets the whole of variables that are split.
  """

  def predict_fn(variables: dict[str, Any], image: jax.Array) -> jax.Array:
    if mesh is not None:
      variables = sharding.constrain(variables, sharding.replicated(mesh))
      image = sharding.constrain(image, sharding.patch_sharding(mesh))
    logits = model.apply(variables, image, train=False)['logits']
    if independent:
      return jax.nn.sigmoid(logits.astype(jnp.float32))
    return jax.nn.softmax(losses.as_class_logits(logits), axis=-1)

  return predict_fn
