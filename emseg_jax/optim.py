"""Learning-rate schedule and optimiser, built with optax from the configuration.

Time t is counted in optimiser updates, of which there are T = train.steps // optim.accumulate.
Regular expressions are searched for (`re.search`) in the paths of parameters, 'a/b/kernel'.
"""

import functools
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from emseg_jax import config as config_lib
from emseg_jax import freezing
from emseg_jax.errors import ConfigError

__all__ = ['decay_mask', 'group_factors', 'make_optimizer', 'make_schedule']


def make_schedule(options: config_lib.Optim, *, steps: int) -> optax.Schedule:
  """Returns t -> learning rate, with lr0 = learning_rate.

  A linear warm-up from 0 comes first; then, with t and T counted from its end:

      constant: lr0
      poly:     floor + (lr0 - floor) (1 - t/T)^power            (PmcaNet §4.2, power 0.9)
      cosine:   floor + (lr0 - floor) (1 + cos(π t/T)) / 2       (Loshchilov and Hutter 2017, eq. 5)
      step:     max(floor, lr0 decay_factor^n), n = t // decay_every, or how many of decay_at are
                at most t                                        (StepLR, MultiStepLR of PyTorch)
      time:     max(floor, lr0 / (1 + decay_factor t))           (`decay` of Keras 2)

  Args:
    options: the section of the configuration.
    steps: batches of the run.

  Raises:
    ConfigError: no update is left for the schedule, or floor is above learning_rate.
  """
  updates = steps // options.accumulate
  if updates < 1:
    raise ConfigError(
      f'config.optim.accumulate={options.accumulate}: must be at most train.steps={steps}'
    )
  if options.warmup_steps >= updates:
    raise ConfigError(
      f'config.optim.warmup_steps={options.warmup_steps}: must be below train.steps={steps} / '
      f'optim.accumulate={options.accumulate}'
    )
  if options.schedule != 'constant' and options.floor > options.learning_rate:
    raise ConfigError(
      f'config.optim.floor={options.floor}: must be at most learning_rate={options.learning_rate}'
    )
  main = _main_schedule(options, updates=updates - options.warmup_steps)
  if options.warmup_steps == 0:
    return main
  warmup = optax.linear_schedule(0.0, options.learning_rate, options.warmup_steps)
  return optax.join_schedules([warmup, main], [options.warmup_steps])


def _main_schedule(options: config_lib.Optim, *, updates: int) -> optax.Schedule:
  """What follows the warm-up, over T = `updates`."""
  rate, floor, factor = options.learning_rate, options.floor, options.decay_factor
  if options.schedule == 'constant':
    return optax.constant_schedule(rate)
  if options.schedule == 'poly':
    return optax.polynomial_schedule(rate, floor, options.power, updates)
  if options.schedule == 'cosine':
    return optax.cosine_decay_schedule(rate, updates, alpha=floor / rate)
  if options.schedule == 'time':
    return lambda t: jnp.maximum(floor, rate / (1.0 + factor * t))

  def step(t: jax.Array) -> jax.Array:
    if options.decay_every is not None:
      decays = t // options.decay_every
    else:
      decays = sum(jnp.asarray(t >= at, jnp.int32) for at in options.decay_at)
    return jnp.maximum(floor, rate * jnp.power(factor, decays))

  return step


def make_optimizer(
  options: config_lib.Optim, *, steps: int, freeze: Sequence[str] = ()
) -> optax.GradientTransformation:
  """Clipping, coupled decay, rule, decoupled decay, group factors and learning rate, in this order.

  With g the mean gradient of `accumulate` batches, clipped to a global norm of `clip_norm`, λ the
  weight decay of the parameters p that `decay_on` matches, and f the factor of p's group:

      coupled:    p -= rate f rule(g + λ p)
      decoupled:  p -= rate f (rule(g) + λ p)                     (Loshchilov and Hutter 2019)

  The rules and the place of epsilon are PyTorch's; Adagrad's are those of Keras, which starts its
  sum of squares at 0.1 and has epsilon under the root. Batches that do not complete a mean change
  nothing but that mean. All counters are in the optimiser's state.

  Args:
    options: the section of the configuration.
    steps: batches of the run.
    freeze: patterns of modules, see `freezing`; their gradients, which are 0, pass as they are, and
      the optimiser keeps no state for them.

  Raises:
    ConfigError: see `make_schedule`; or a regular expression is not one. Its `init` raises it where
      an expression matches no parameter.
  """
  schedule = make_schedule(options, steps=steps)
  for field, pattern in [('decay_on', options.decay_on), *(('groups', p) for p in options.groups)]:
    try:
      re.compile(pattern)
    except re.error as error:
      raise ConfigError(
        f'config.optim.{field}: {pattern!r} is not a regular expression: {error}'
      ) from error
  parts = []
  if options.clip_norm is not None:
    parts.append(optax.clip_by_global_norm(options.clip_norm))
  parts.append(_rule(options))
  if options.weight_decay:
    mask = functools.partial(decay_mask, pattern=options.decay_on)
    decay = optax.add_decayed_weights(options.weight_decay, mask=mask)
    decoupled = options.decay == 'decoupled' or (
      options.decay == 'auto' and options.optimizer == 'adamw'
    )
    parts.insert(len(parts) if decoupled else -1, decay)
  if options.groups:
    parts.append(_scale_by_group(options.groups))
  parts.append(optax.scale_by_learning_rate(schedule))
  optimizer = optax.chain(*parts)
  if options.accumulate > 1:
    optimizer = optax.MultiSteps(optimizer, options.accumulate).gradient_transformation()
  if not freeze:
    return optimizer

  def learnt(params: optax.Params) -> optax.Params:
    freezing.check(params, freeze)
    return jax.tree.map(lambda frozen: not frozen, freezing.mask(params, freeze))

  return optax.masked(optimizer, learnt)


def _rule(options: config_lib.Optim) -> optax.GradientTransformation:
  """Gradient -> direction, at a learning rate of 1."""
  b1, b2 = options.betas
  if options.optimizer == 'sgd':
    return optax.trace(options.momentum)
  if options.optimizer == 'radam':
    return optax.scale_by_radam(b1, b2, options.epsilon)
  if options.optimizer == 'adagrad':
    return optax.scale_by_rss(initial_accumulator_value=0.1, eps=options.epsilon)
  return optax.scale_by_adam(b1, b2, options.epsilon)


def decay_mask(params: optax.Params, *, pattern: str) -> optax.Params:
  """True for the parameters whose paths `pattern` matches.

  Raises:
    ConfigError: it matches none.
  """
  mask = jax.tree_util.tree_map_with_path(
    lambda path, _: re.search(pattern, _name(path)) is not None, params
  )
  if not any(jax.tree.leaves(mask)):
    raise _matches_none('decay_on', pattern, params)
  return mask


def group_factors(params: optax.Params, groups: Mapping[str, float]) -> optax.Params:
  """The learning-rate factor of every parameter: that of the first pattern that matches, or 1.

  Raises:
    ConfigError: a pattern matches no parameter.
  """
  names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  for pattern in groups:
    if not any(re.search(pattern, name) for name in names):
      raise _matches_none('groups', pattern, params)
  return jax.tree_util.tree_map_with_path(
    lambda path, _: next((f for p, f in groups.items() if re.search(p, _name(path))), 1.0), params
  )


def _scale_by_group(groups: Mapping[str, float]) -> optax.GradientTransformation:
  def init(params: optax.Params) -> optax.EmptyState:
    group_factors(params, groups)  # refuses patterns without parameters
    return optax.EmptyState()

  def update(
    updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
  ) -> tuple[optax.Updates, optax.EmptyState]:
    del params
    return jax.tree.map(jnp.multiply, updates, group_factors(updates, groups)), state

  return optax.GradientTransformation(init, update)


def _name(path: tuple) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _matches_none(field: str, pattern: str, params: optax.Params) -> ConfigError:
  path, _ = jax.tree_util.tree_leaves_with_path(params)[0]
  return ConfigError(
    f'config.optim.{field}: {pattern!r} matches no parameter; they have paths such as {_name(path)}'
  )
