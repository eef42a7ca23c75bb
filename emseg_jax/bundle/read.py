"""Reads a bundle and checks that its parts belong together."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from emseg_jax import config as config_lib
from emseg_jax import config_io, experiment
from emseg_jax.bundle import reduced, schema
from emseg_jax.data import normalise
from emseg_jax.errors import BundleError, ConfigError, DataError
from emseg_jax.pretrained import own

__all__ = ['RECORD', 'Bundle', 'is_bundle', 'read_bundle', 'read_config', 'variable_shapes']

RECORD = 'model.json'
LARGEST_RECORD = 10**7  # bytes
LARGEST_SAMPLE = 10**9


@dataclasses.dataclass(frozen=True)
class Bundle:
  """A trained network.

  Attributes:
    record: what model.json says.
    config: of the training run.
    normalisation: of the training images.
    variables: 'params' and 'batch_stats', float32 of numpy.
    sample: (input, output) of the exported function; see the package's docstring.
  """

  record: schema.Record
  config: config_lib.Config
  normalisation: normalise.Normalisation
  variables: dict[str, Any]
  sample: tuple[np.ndarray, np.ndarray]

  @property
  def model(self) -> nn.Module:
    """The network, computing in float32."""
    return experiment.make_model(self.config, dtype=jnp.dtype('float32'))


def is_bundle(path: str | Path) -> bool:
  """Whether this is the folder of a bundle, intact or not."""
  return (Path(path) / RECORD).is_file()


def read_bundle(path: str | Path, *, params: str = 'float32') -> Bundle:
  """Reads a bundle of this or an older version.

  Args:
    path: its folder.
    params: 'float32', or one of `reduced.KINDS` to read that form of the parameters instead, as
      float32 again; the folder need not have the others then.

  Raises:
    BundleError: a file is missing or damaged, they do not belong together, or the bundle is of a
      newer version.
  """
  path = Path(path)
  record = _record(path)
  config = _config(record, path)
  known = record.parameters if params == 'float32' else _reduced(record, path, params)
  file = path / known.file
  try:
    if hashlib.sha256(file.read_bytes()).hexdigest() != known.sha256:
      raise BundleError(
        f'{file}: is damaged or was changed, its checksum is not that of {RECORD}; copy the folder '
        'again'
      )
    if params == 'float32':
      arrays, _ = own.read(file)
    else:
      stored_as = functools.partial(reduced.stored_as, kind=params)
      arrays = reduced.expand(own.read(file, stored_as=stored_as)[0], params)
  except OSError as error:
    raise BundleError(f'{file}: cannot be read: {error.strerror}') from error
  except DataError as error:
    raise BundleError(str(error)) from error
  except ValueError as error:
    raise BundleError(f'{file}: {error}; copy the folder again') from error
  _check_arrays(arrays, own.flat(variable_shapes(config)), file)
  stored = record.input.normalisation.model_dump()
  fields = [f.name for f in dataclasses.fields(normalise.Normalisation)]
  return Bundle(
    record=record,
    config=config,
    normalisation=normalise.Normalisation(**{name: stored[name] for name in fields}),
    variables={'params': {}, 'batch_stats': {}} | own.nested(arrays),
    sample=(_array(path / record.sample.input), _array(path / record.sample.output)),
  )


def read_config(path: str | Path) -> config_lib.Config:
  """The training configuration of a bundle; no parameters are read.

  Raises:
    BundleError: see `read_bundle`.
  """
  return _config(_record(Path(path)), Path(path))


def variable_shapes(config: config_lib.Config) -> dict[str, Any]:
  """Shapes of 'params' and, where there are any, 'batch_stats'; nothing is computed.

  Raises:
    ConfigError: see `experiment.make_model`.
  """
  model = experiment.make_model(config, dtype=jnp.dtype('float32'))
  keys = {'params': jax.random.key(0), 'dropout': jax.random.key(0)}
  image = jax.ShapeDtypeStruct((2, *config.data.patch, config.data.input_channels), jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(keys, x, train=True), image)
  return {name: variables[name] for name in ('params', 'batch_stats') if name in variables}


def _record(path: Path) -> schema.Record:
  where = path / RECORD
  if not where.is_file():
    raise BundleError(f'{path}: is no exported model, it has no {RECORD}')
  try:
    if where.stat().st_size > LARGEST_RECORD:
      raise BundleError(f'{where}: is larger than {LARGEST_RECORD / 1e6:g} MB; it is damaged')
    raw = json.loads(where.read_text(encoding='utf-8'))
  except OSError as error:
    raise BundleError(f'{where}: cannot be read: {error.strerror}') from error
  except (ValueError, RecursionError) as error:
    raise BundleError(f'{where}: is not JSON ({error}); copy the folder again') from error
  try:
    # As JSON, whose lists may stand for tuples.
    return schema.Record.model_validate(schema.parse(raw, where=str(where)))
  except pydantic.ValidationError as error:
    first = error.errors()[0]
    field = '.'.join(map(str, first['loc']))
    raise BundleError(f'{where}: {field}: {first["msg"].lower()}') from error


def _reduced(record: schema.Record, path: Path, kind: str) -> schema.Parameters:
  """File and checksum of parameters in fewer bits."""
  if kind not in record.forms:
    there = ', '.join(['float32', *(k for k in reduced.KINDS if k in record.forms)])
    raise BundleError(
      f'{path}: has no parameters {kind!r} (there are: {there}); --mode=export --forms={kind} '
      'writes them'
    )
  form = record.forms[kind]
  try:
    return schema.Parameters(file=form.get('file'), sha256=form.get('sha256'))
  except pydantic.ValidationError as error:
    first = error.errors()[0]
    raise BundleError(
      f'{path / RECORD}: forms.{kind}.{first["loc"][0]}: {first["msg"].lower()}'
    ) from error


def _config(record: schema.Record, path: Path) -> config_lib.Config:
  """The configuration, which the rest of the record must agree with."""
  where = path / RECORD
  try:
    config = config_lib.Config.model_validate(record.training.config)
    experiment.validate_network(config)
  except pydantic.ValidationError as error:
    raise BundleError(f'{where}: training.config: {config_io.describe(error)}') from error
  except ConfigError as error:
    raise BundleError(f'{where}: training.{error}') from error
  pairs = {
    'network.name': (record.network.name, config.model.name),
    'network.options': (record.network.options, config.model.options),
    'network.outputs': (record.network.outputs, config.task.num_logits),
    'classes': (record.classes, config.task.channels),
    'activation': (record.activation, config.task.activation),
    'input.planes': (record.input.planes, 2 * config.data.neighbours + 1),
    'input.normalisation.kind': (record.input.normalisation.kind, config.data.normalisation),
    'input.normalisation.channels': (record.input.normalisation.channels, config.data.channels),
  }
  for field, (said, configured) in pairs.items():
    if said != configured:
      raise BundleError(
        f'{where}: {field} is {said!r:.100}, but training.config says {configured!r:.100}'
      )
  return config


def _check_arrays(arrays: dict[str, np.ndarray], expected: dict[str, Any], file: Path) -> None:
  for name in sorted(arrays.keys() | expected.keys()):
    given = arrays[name].shape if name in arrays else None
    wanted = tuple(expected[name].shape) if name in expected else None
    if given != wanted:
      what = 'is missing' if given is None else f'has shape {list(given)}'
      allowed = 'no such array' if wanted is None else f'one of {list(wanted)}'
      raise BundleError(f'{file}: {name} {what}, the network of {RECORD} has {allowed}')


def _array(path: Path) -> np.ndarray:
  try:
    if path.stat().st_size > LARGEST_SAMPLE:
      raise BundleError(f'{path}: is larger than {LARGEST_SAMPLE / 1e9:g} GB; it is damaged')
    return np.load(path, allow_pickle=False)
  except OSError as error:
    raise BundleError(f'{path}: cannot be read: {error.strerror or error}') from error
  except (ValueError, EOFError) as error:
    raise BundleError(f'{path}: is no array of numpy, or cut short ({error})') from error
