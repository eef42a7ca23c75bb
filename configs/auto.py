"""A configuration made by looking at a folder of images and labels.

    python -m emseg_jax.main --config=auto:FOLDER --mode=check
    python -m emseg_jax.main --config=auto:FOLDER --workdir=runs/mine

The only file here that imports more than `emseg_jax.config`: classes, label mapping and patch
depend on the files, so they have to be read.
"""

from emseg_jax import auto
from emseg_jax.config import Config
from emseg_jax.errors import ConfigError


def get_config(arg: str = '') -> Config:
  """`arg` is the folder; `emseg_jax.auto.suggest` says which layouts are recognised."""
  if not arg:
    raise ConfigError('--config=auto: needs a folder, as in --config=auto:FOLDER')
  return auto.suggest(arg)
