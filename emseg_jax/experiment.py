"""A configuration turned into objects: mesh, network, optimiser, and the shapes of the state.

Everything that restores a checkpoint (training, evaluation, prediction) starts here, so that all
see the same network.
"""

import dataclasses
from importlib import metadata

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from emseg_jax import augment, losses, metrics, models, optim, pretrained, sharding, train_state
from emseg_jax import config as config_lib
from emseg_jax.errors import ConfigError

__all__ = [
  'Experiment',
  'check_tile',
  'equal_counts',
  'make_model',
  'set_up',
  'split_divisor',
  'validate',
  'validate_network',
  'versions',
]

COMPETING = ('segmenter', 'segvit')  # their logits are normalised over the classes


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Attributes:
  config: what it was built from.
  mesh: all devices.
  model: the network.
  schedule: update -> learning rate.
  optimizer: the optax transformation.
  """

  config: config_lib.Config
  mesh: Mesh
  model: nn.Module
  schedule: optax.Schedule
  optimizer: optax.GradientTransformation

  def _create(self) -> train_state.TrainState:
    return _create(self.config, self.model, self.optimizer)

  def abstract_state(self) -> train_state.TrainState:
    """Shapes, dtypes and shardings of the state, nothing computed."""
    state = jax.eval_shape(self._create)
    return jax.tree.map(
      lambda x, placed: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
      state,
      sharding.state_shardings(state, self.mesh, split=self.config.mesh.shard_state),
    )

  def initial_state(self) -> train_state.TrainState:
    """The state before the first step, created on the devices; the encoder from its file, if any.

    Raises:
      ConfigError, DataError: see `pretrained.load_pretrained`.
    """
    shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state())
    state = jax.jit(self._create, out_shardings=shardings)()
    if self.config.model.init_from is None:
      return state
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    filled, _ = pretrained.load_pretrained(variables, self.config.model.init_from)
    if state.ema:  # a copy: the state is donated, no array may be in it twice
      filled |= {'ema': jax.tree.map(jnp.copy, filled['params'])}
    placed = {name: getattr(shardings, name) for name in filled}
    return state.replace(**jax.device_put(filled, placed))


def _create(
  config: config_lib.Config, model: nn.Module, optimizer: optax.GradientTransformation
) -> train_state.TrainState:
  return train_state.create(
    model,
    optimizer,
    seed=config.train.seed,
    # Parameters do not depend on the batch.
    shape=(2, *config.data.patch, config.data.input_channels),
    ema=config.optim.ema is not None,
  )


def _make_optimizer(config: config_lib.Config) -> optax.GradientTransformation:
  return optim.make_optimizer(config.optim, steps=config.train.steps, freeze=config.model.freeze)


def compute_dtype(name: str) -> jnp.dtype:
  """'auto' is bfloat16 on accelerators and float32 on CPU, where bfloat16 is emulated and slow."""
  if name == 'auto':
    name = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
  return jnp.dtype(name)


def make_model(config: config_lib.Config, *, dtype: jnp.dtype) -> nn.Module:
  """Builds the network.

  Raises:
    ConfigError: model.name or one of model.options is not known or not allowed.
  """
  for option, field in (('dtype', 'model.dtype'), ('num_classes', 'task.classes')):
    if option in config.model.options:
      raise ConfigError(f'config.model.options.{option}: is not an option; set {field} instead')
  try:
    return models.create_model(
      config.model.name, num_classes=config.task.num_logits, dtype=dtype, **config.model.options
    )
  except ValueError as error:
    raise ConfigError(f'config.model: {error}') from error


def validate_network(config: config_lib.Config) -> nn.Module:
  """Builds the network, touching no device, and checks that it fits the patch.

  Raises:
    ConfigError: see `make_model`; or the patch has another number of axes than the network, or the
      network cannot do without a single class per voxel.
  """
  model = make_model(config, dtype=jnp.dtype('float32'))
  if config.task.independent and config.model.name in COMPETING:
    raise ConfigError(
      f'config.model.name={config.model.name!r}: its classes compete for every voxel, '
      f'task.activation={config.task.activation} needs another network'
    )
  rank, patch = len(model.divisor), config.data.patch
  if rank != len(patch):
    raise ConfigError(
      f'config.model.name={config.model.name!r}: needs {rank} axes, data.patch={patch} has '
      f'{len(patch)}; set for example data.patch={(64, 64, 64)[:rank]}'
    )
  return model


def validate(config: config_lib.Config) -> list[str]:
  """Checks what the configuration's types cannot; touches no device.

  Returns:
    Remarks that a user should see, such as a patch that the network has to pad.

  Raises:
    ConfigError: a network or loss option is unknown or impossible.
  """
  model = validate_network(config)
  _validate_loss(config)
  try:
    augment.validate(config.augment, config.data.patch)
  except ValueError as error:
    raise ConfigError(f'config.{error}') from error
  task = config.task
  known = metrics.known_scores(task.classes, config.eval.metrics, task.offset_names)
  if config.eval.best not in known:
    raise ConfigError(
      f'config.eval.best={config.eval.best!r}: is not one of the scores {", ".join(known)}; '
      'eval.metrics adds others'
    )
  tile = config.predict.tile
  if tile and len(tile) != len(config.data.patch):
    raise ConfigError(
      f'config.predict.tile={tile}: needs as many axes as data.patch={config.data.patch}'
    )
  _validate_prediction(config, model)
  optimizer = _make_optimizer(config)
  if (
    config.model.freeze
    or config.optim.groups
    or config.optim.decay_on != config_lib.Optim().decay_on
  ):
    jax.eval_shape(lambda: _create(config, model, optimizer))  # patterns have to match something
  remarks = []
  sizes = {'data.patch': config.data.patch, 'predict.tile': config.predict.tile}
  for field, size in sizes.items():
    if size and any(s % d for s, d in zip(size, model.divisor, strict=True)):
      padded = tuple(-(-s // d) * d for s, d in zip(size, model.divisor, strict=True))
      remarks.append(
        f'{field}={size} is not a multiple of {model.divisor}, the stride of {config.model.name}; '
        f'the network pads it with zeros to {padded}.'
      )
  expected = pretrained.trained_with(config.model.init_from) if config.model.init_from else None
  if config.model.init_from and config.data.normalisation != expected:
    remarks.append(
      f'data.normalisation={config.data.normalisation}: the weights of model.init_from were '
      f'trained with {expected}.'
    )
  _check_split(config, model, 'data.patch', config.data.patch[:1])
  return remarks


def split_divisor(config: config_lib.Config, model: nn.Module) -> tuple[int, ...]:
  """What sizes have to be a multiple of, so that the network can take them over mesh.space."""
  first, *others = model.divisor
  # With a single row per device at the coarsest level XLA partitions gradients wrongly (jax 0.10).
  return (first * 2 * config.mesh.space if config.mesh.space > 1 else first, *others)


def check_tile(config: config_lib.Config, model: nn.Module, tile: tuple[int, ...]) -> None:
  """Checks that devices can share a tile of this size.

  Raises:
    ConfigError: they cannot.
  """
  turned = {'rotations', 'views'} & set(config.predict.augment)  # any axis may become the first
  _check_split(config, model, 'predict.tile', tile if turned else tile[:1])


def _check_split(
  config: config_lib.Config, model: nn.Module, field: str, sizes: tuple[int, ...]
) -> None:
  least = split_divisor(config, model)[0]
  if config.mesh.space > 1 and any(size % least for size in sizes):
    raise ConfigError(
      f'config.{field}: with mesh.space={config.mesh.space}, {" and ".join(map(str, sizes))} must '
      f'be a multiple of 2 x mesh.space x the stride of {config.model.name} = {least}'
    )


def _validate_prediction(config: config_lib.Config, model: nn.Module) -> None:
  if config.predict.blend == 'exact' and model.receptive_field is None:
    raise ConfigError(
      f'config.predict.blend=exact: {config.model.name} sees its whole input, whatever its size; '
      'gaussian suits all networks'
    )
  if 'views' in config.predict.augment and len(config.data.patch) == 2:
    raise ConfigError('config.predict.augment=views: needs a network for volumes')


def _validate_loss(config: config_lib.Config) -> None:
  """Checks the loss terms, and that the network has the outputs they are for."""
  try:
    losses.validate_terms(
      config.loss,
      num_logits=config.task.num_logits,
      axes=len(config.data.patch),
      **losses.label_options(config.task),
    )
    of_logits = all(
      losses.LOSSES[t.loss or n].outputs == ('logits',) and t.output in (None, 'logits')
      for n, t in config.loss.terms.items()
    )
    if not of_logits or isinstance(config.loss.aux_weight, dict):
      jax.eval_shape(lambda: _one_loss(config))
  except ValueError as error:
    raise ConfigError(f'config.{error}') from error


def _one_loss(config: config_lib.Config) -> jax.Array:
  """The loss of one empty batch in training; only its shape is asked for."""
  model = make_model(config, dtype=jnp.dtype('float32'))
  shape = (2, *config.data.patch)
  keys = {'params': jax.random.key(0), 'dropout': jax.random.key(0)}
  outputs, variables = model.init_with_output(
    keys, jnp.zeros((*shape, config.data.input_channels)), train=True
  )
  targets = {name: jnp.zeros(shape) for name in losses.host_targets(config.loss)}
  batch = {'label': jnp.zeros(shape, jnp.int32), 'weight': jnp.ones(shape), **targets}
  total, _ = losses.total_loss(
    outputs,
    batch,
    variables['params'],
    loss=config.loss,
    class_counts=jnp.asarray(equal_counts(config.task)),
    **losses.label_options(config.task),
  )
  return total


def equal_counts(task: config_lib.Task) -> np.ndarray:
  """Class counts as `losses.total_loss` takes them, all 1."""
  classes = len(task.classes)
  return np.ones((classes, 2) if task.multilabel else classes, np.float32)


def set_up(config: config_lib.Config, *, batch_size: int | None = None) -> Experiment:
  """Builds mesh, network and optimiser.

  Args:
    config: the validated configuration.
    batch_size: examples per training step, to be checked against the mesh; None outside training.

  Raises:
    ConfigError, DeviceError: see `make_model`, `sharding.make_mesh`.
  """
  model = make_model(config, dtype=compute_dtype(config.model.dtype))
  _validate_prediction(config, model)
  return Experiment(
    config=config,
    mesh=sharding.make_mesh(config.mesh, batch_size=batch_size),
    model=model,
    schedule=optim.make_schedule(config.optim, steps=config.train.steps),
    optimizer=_make_optimizer(config),
  )


def versions() -> dict[str, str]:
  """Versions of the packages that decide what a run computes."""
  names = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
  found = {name: metadata.version(name) for name in names}
  try:
    found['emseg_jax'] = metadata.version('emseg_jax')
  except metadata.PackageNotFoundError:
    found['emseg_jax'] = 'checkout'
  return found
