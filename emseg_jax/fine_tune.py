"""What `--config=auto:FOLDER` takes over from the exported model that a run is to start from.

Its weights fit no other network, and expect images prepared and cut as they were for it.
"""

import logging
from collections.abc import Sequence

from emseg_jax import bundle
from emseg_jax.config import Config

__all__ = ['take_over']

LOGGER = logging.getLogger(__name__)
FIELD = 'model.init_from='
NETWORK = ('model.name', 'model.options')
DATA = ('channels', 'neighbours', 'patch')


def take_over(config: Config, overrides: Sequence[str]) -> Config:
  """The configuration with network, patch, channels and normalisation of the model to start from.

  Args:
    config: as `auto` proposes it.
    overrides: `section.field=value`, which are applied afterwards; one of them names the model.

  Returns:
    `config` itself where no override names the folder of an exported model, or one of them chooses
    a network. A normalisation other than the default is one that the images need, and stays.

  Raises:
    BundleError: the model cannot be read.
  """
  folder = next((o.removeprefix(FIELD) for o in reversed(overrides) if o.startswith(FIELD)), None)
  if folder is None or not bundle.is_bundle(folder):
    return config
  if any(override.startswith(NETWORK) for override in overrides):
    return config
  known = bundle.read_config(folder)
  data = {name: getattr(known.data, name) for name in DATA}
  if config.data.normalisation == Config().data.normalisation:
    data['normalisation'] = known.data.normalisation
  model = {'name': known.model.name, 'options': known.model.options}
  LOGGER.info(
    '%s: its network, %s, patch, channels and normalisation are taken over',
    folder,
    known.model.name,
  )
  return config.model_copy(
    update={
      'data': config.data.model_copy(update=data),
      'model': config.model.model_copy(update=model),
    }
  )
