"""Whether a training step fits into the memory of its devices, and what to change if it does not.

The numbers are those of compiled steps (`memory.step_bytes`), for the step at hand as for what is
proposed in its place.
"""

import logging
import math
import shlex
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp

from emseg_jax import config as config_lib
from emseg_jax import config_io, experiment, losses, memory, sharding, train_step
from emseg_jax.augment import read_size
from emseg_jax.errors import ConfigError, DeviceError
from emseg_jax.memory import format_bytes

__all__ = ['check_training', 'explain_training', 'propose_training', 'training_bytes']

LOGGER = logging.getLogger(__name__)


def training_bytes(config: config_lib.Config) -> float | None:
  """What the training step of a configuration needs on each device; compiles it.

  Returns:
    As `memory.bytes_to_compile`; infinite also if the configuration is impossible.
  """
  try:
    experiment.validate(config)
    setup = experiment.set_up(config, batch_size=config.train.batch_size)
  except ConfigError:
    return math.inf
  step = train_step.make_train_step(
    setup.model,
    setup.optimizer,
    setup.schedule,
    config,
    setup.mesh,
    class_counts=experiment.equal_counts(config.task),
  )
  state, batch = setup.abstract_state(), _abstract_batch(setup)
  return memory.bytes_to_compile(
    lambda: train_step.compile_train_step(step, state, batch, setup.mesh)
  )


def _abstract_batch(setup: experiment.Experiment) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of what the data pipeline delivers."""
  config = setup.config
  region, count = read_size(config.augment, config.data.patch), config.train.batch_size
  kinds = {
    'image': ((*region, config.data.input_channels), jnp.float32),
    'label': (region, jnp.int32),
    'weight': (region, jnp.float32),
    'index': ((), jnp.int32),
    'valid': ((len(region),), jnp.int32),
    **dict.fromkeys(losses.host_targets(config.loss), (region, jnp.float32)),
  }
  split = sharding.batch_sharding(setup.mesh)
  return {
    name: jax.ShapeDtypeStruct((count, *shape), dtype, sharding=split)
    for name, (shape, dtype) in kinds.items()
  }


def check_training(setup: experiment.Experiment, compiled: Any) -> None:
  """Logs what the compiled training step needs, before it runs.

  Raises:
    DeviceError: an accelerator has less. (A host may swap; there it is only a warning.)
  """
  needed, limit = memory.step_bytes(compiled), memory.device_memory()
  if needed is None or limit is None:
    return
  LOGGER.info(
    'The training step needs %s of %s on each device.', format_bytes(needed), format_bytes(limit)
  )
  if needed <= limit:
    return
  if jax.default_backend() == 'cpu':
    LOGGER.warning('That is more than there is: training may be killed, or be very slow.')
    return
  raise DeviceError(f'the training step does not fit: {propose_training(setup, needed=needed)}')


def explain_training(
  setup: experiment.Experiment, compiled: Any | None = None
) -> AbstractContextManager[None]:
  """Turns running out of memory inside into a `DeviceError` that says what would fit.

  Args:
    setup: of the run.
    compiled: the training step; None while it is being compiled.
  """

  def propose() -> str:
    needed = None if compiled is None else memory.step_bytes(compiled)
    return propose_training(setup, needed=needed)

  return memory.explain_out_of_memory('the training step', propose)


def propose_training(setup: experiment.Experiment, *, needed: float | None) -> str:
  """The end of a sentence: the largest batch that fits, or else the largest patch.

  A smaller batch comes with more of them per update and in all, so that updates see as many patches
  as before, and are as many.

  Args:
    setup: of the run.
    needed: bytes of its step; None if unknown.
  """
  config, shards = setup.config, setup.mesh.shape['data']
  size, limit = config.train.batch_size, memory.usable(needed)
  numbers = memory.compare(needed)
  if limit is None or jax.process_count() > 1:  # processes would compile different programs
    return f'{numbers}lower train.batch_size={size} or data.patch={config.data.patch}'
  whole = size * config.optim.accumulate
  batches = [
    (
      f'train.batch_size={n}',
      f'optim.accumulate={whole // n}',
      f'train.steps={math.ceil(config.train.steps * size / n)}',
    )
    for n in range(shards, size, shards)
    if whole % n == 0
  ]
  patches = [
    (f'data.patch=({",".join(map(str, patch))})', *(batches[0] if batches else ()))
    for patch in memory.smaller(config.data.patch, _multiples(setup))
  ]
  for choices in batches, patches:
    changed = {choice: config_io.apply_overrides(config, choice) for choice in choices}
    found = memory.largest_fitting(
      choices,
      lambda choice, changed=changed: training_bytes(changed[choice]),
      limit=limit,
      size_of=lambda choice, changed=changed: _voxels(changed[choice]),
    )
    if found is not None:
      choice, fitting = found
      flags = ' '.join(shlex.quote(f'--config.{override}') for override in choice)
      return f'{numbers}start anew with {flags}, which needs {format_bytes(fitting)}'
  return f'{numbers}no smaller batch or patch fits either; take a smaller network'


def _multiples(setup: experiment.Experiment) -> tuple[int, ...]:
  """What the sides of a patch are multiples of, as `experiment.validate` wants it."""
  space, (first, *others) = setup.mesh.shape['space'], setup.model.divisor
  return (2 * space * first if space > 1 else first, *others)


def _voxels(config: config_lib.Config) -> int:
  """Of a batch of patches."""
  return config.train.batch_size * math.prod(config.data.patch)
