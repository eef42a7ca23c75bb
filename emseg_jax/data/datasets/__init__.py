"""Builders of the papers' data sets as TFDS data sets in array_record files, without TensorFlow.

Importing a builder imports TFDS, hence only `builder_class` does.
"""

import difflib
import importlib
from typing import Any

from emseg_jax.errors import ConfigError

__all__ = ['BUILDERS', 'builder_class']

# Data set -> module and class.
BUILDERS = {
  'isbi2012': ('isbi2012', 'Isbi2012'),
  'epfl': ('epfl', 'Epfl'),
  'cardiac': ('cardiac', 'Cardiac'),
  'sem_material': ('sem_material', 'SemMaterial'),
  'ctl_synapse': ('ctl_synapse', 'CtlSynapse'),
  'rat_liver': ('res_cr_net', 'RatLiver'),
  'muscle_fm': ('res_cr_net', 'MuscleFm'),
  'kasthuripp': ('kasthuripp', 'Kasthuripp'),
  'snemi3d': ('snemi3d', 'Snemi3d'),
}


def builder_class(name: str) -> type[Any]:
  """The builder of a published data set. Raises ConfigError if there is none of that name."""
  if name not in BUILDERS:
    close = difflib.get_close_matches(name, BUILDERS, n=1)
    hint = f'; did you mean {close[0]}?' if close else ''
    raise ConfigError(f'{name!r} is no published data set, only {", ".join(BUILDERS)} are{hint}')
  module, cls = BUILDERS[name]
  return getattr(importlib.import_module(f'emseg_jax.data.datasets.{module}'), cls)
