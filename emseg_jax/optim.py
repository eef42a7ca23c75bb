"""Learning-rate schedule and optimiser, built with optax from the configuration."""

import jax
import optax

from emseg_jax import config as config_lib

__all__ = ['decay_mask', 'make_optimizer', 'make_schedule']


def make_schedule(options: config_lib.Optim, *, steps: int) -> optax.Schedule:
  """Returns step -> learning rate.

  poly: lr0 · (1 - t/T)^power with T = steps - warmup_steps (PmcaNet §4.2, power 0.9), after a
    linear warm-up from 0.
  """
  if options.schedule == 'poly':
    transition = max(1, steps - options.warmup_steps)
    main = optax.polynomial_schedule(options.learning_rate, 0.0, options.power, transition)
  else:
    main = optax.constant_schedule(options.learning_rate)
  if options.warmup_steps == 0:
    return main
  warmup = optax.linear_schedule(0.0, options.learning_rate, options.warmup_steps)
  return optax.join_schedules([warmup, main], [options.warmup_steps])


def decay_mask(params: optax.Params) -> optax.Params:
  """True for the leaves that are decayed: kernels. Norm scales and all biases are left alone."""

  def is_kernel(path: tuple, _: jax.Array) -> bool:
    return getattr(path[-1], 'key', None) == 'kernel'

  return jax.tree_util.tree_map_with_path(is_kernel, params)


def make_optimizer(options: config_lib.Optim, *, steps: int) -> optax.GradientTransformation:
  """Clipping, then the optimiser with masked weight decay.

  SGD adds the decay to the gradient before momentum (torch's and the papers' coupled form); AdamW
  decouples it.
  """
  schedule = make_schedule(options, steps=steps)
  parts = []
  if options.clip_norm is not None:
    parts.append(optax.clip_by_global_norm(options.clip_norm))
  if options.optimizer == 'sgd':
    parts.append(optax.add_decayed_weights(options.weight_decay, mask=decay_mask))
    parts.append(optax.sgd(schedule, momentum=options.momentum))
  else:
    b1, b2 = options.betas
    parts.append(
      optax.adamw(schedule, b1=b1, b2=b2, weight_decay=options.weight_decay, mask=decay_mask)
    )
  return optax.chain(*parts)
