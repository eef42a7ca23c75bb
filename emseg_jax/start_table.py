"""What a network starts from where model.init_from is set, tensor by tensor."""

import jax
import jax.numpy as jnp

from emseg_jax import config as config_lib
from emseg_jax import experiment, freezing, pretrained
from emseg_jax.errors import ConfigError
from emseg_jax.pretrained import own

__all__ = ['describe_start']


def describe_start(config: config_lib.Config) -> str:
  """The table of what model.init_from puts where, and of what stays frozen; touches no device.

  Raises:
    ConfigError: the network has no encoder that could start from the file, or what is to be frozen
      is not in it.
    DataError: the file cannot be read, or has too few or too many tensors.
  """
  model = experiment.make_model(config, dtype=jnp.dtype('float32'))
  image = jax.ShapeDtypeStruct((2, *config.data.patch, config.data.input_channels), jnp.float32)
  keys = {'params': jax.random.key(0), 'dropout': jax.random.key(0)}
  variables = jax.eval_shape(lambda x: model.init(keys, x, train=True), image)
  _, rows = pretrained.load_pretrained(variables, config.model.init_from)
  table = pretrained.format_table(rows)
  if not config.model.freeze:
    return table
  fresh = tuple(row.target for row in rows if row.status == 'fresh')
  leaves = own.flat(variables)
  frozen = own.flat({name: freezing.mask(t, config.model.freeze) for name, t in variables.items()})
  names = [name for name, is_frozen in frozen.items() if is_frozen]
  for name in names:
    if any(name == target or name.startswith(f'{target}/') for target in fresh):
      raise ConfigError(
        f'config.model.freeze: {name.partition("/")[2]} is to stay as it is, but '
        f'{config.model.init_from} has nothing for it'
      )
  values = sum(leaves[name].size for name in names)
  return f'{table}\nfrozen   {len(names)} tensors of {values:,} values, of those loaded or adapted'
