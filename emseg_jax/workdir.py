"""The work directory of a run: its configuration, who may use it again, and where things lie.

`config.json`, `version.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `evaluation/`,
`report.html`, `log.txt`.
"""

import contextlib
import fcntl
import json
import logging
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from emseg_jax import config_io
from emseg_jax.config import Config
from emseg_jax.errors import CheckpointError, ConfigError, EmsegError, OutputError

__all__ = ['LAYOUT', 'check_same_network', 'claim', 'occupy', 'read_config']

# Of the files of a work directory; to be raised where an older package would misread them.
LAYOUT = 1
VERSION = 'version.json'

# What a checkpoint's arrays depend on: evaluation and prediction may not change it.
NETWORK_FIELDS = (
  'data.channels',
  'data.neighbours',
  'model.freeze',
  'model.name',
  'model.options',
  'optim',
  'task.activation',
  'task.classes',
  'task.offsets',
)


def read_config(workdir: Path) -> Config:
  """Reads the configuration of an existing run.

  Raises:
    CheckpointError: it is of a newer package.
    ConfigError: there is none.
  """
  path = workdir / 'config.json'
  if not path.is_file():
    raise ConfigError(
      f'--workdir={workdir}: holds no run (no config.json); train one first, or give --config'
    )
  _check_version(workdir)
  return config_io.from_json(path)


def _check_version(workdir: Path) -> None:
  """Refuses what a newer package wrote; a run without the file is of layout 1."""
  path = workdir / VERSION
  if not path.exists():
    return
  try:
    record = json.loads(path.read_text(encoding='utf-8'))
    layout, package = record['layout'], record['emseg_jax']
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise CheckpointError(
      f'{path}: cannot be read ({error}); remove it if the run is of this version'
    ) from error
  if type(layout) is not int or not 1 <= layout <= LAYOUT:
    raise CheckpointError(
      f'--workdir={workdir}: is a run of emseg_jax {package}, layout {layout}; this one '
      f'({_own_version()}) reads up to layout {LAYOUT}: install a newer emseg_jax'
    )


def _own_version() -> str:
  try:
    return metadata.version('emseg_jax')
  except metadata.PackageNotFoundError:
    return 'checkout'


def claim(workdir: Path, config: Config, *, extend: bool, write: bool = True) -> None:
  """Makes `workdir` this run's, or checks that it already is.

  Args:
    workdir: created if missing.
    config: the run's configuration.
    extend: allow more train.steps than before.
    write: False only checks, as those of several processes do that write nothing.

  Raises:
    CheckpointError: the folder holds a run of a newer package.
    ConfigError: it belongs to a run with another configuration.
    OutputError: the folder cannot be written.
  """
  path = workdir / 'config.json'
  _check_version(workdir)
  if path.is_file():
    old = config_io.from_json(path)
    if extend and config.train.steps >= old.train.steps:
      old = old.model_copy(
        update={'train': old.train.model_copy(update={'steps': config.train.steps})}
      )
    changed = config_io.differences(old, config)
    if changed:
      raise ConfigError(
        f'--workdir={workdir}: belongs to a run with another configuration: {"; ".join(changed)}; '
        'use another --workdir, or the old values'
        + (' (--extend allows more train.steps)' if 'train.steps' in str(changed) else '')
      )
  if write:
    config_io.write_text(path, config_io.to_json(config))
    about = {'layout': LAYOUT, 'emseg_jax': _own_version()}
    config_io.write_text(workdir / VERSION, json.dumps(about) + '\n')


def check_same_network(config: Config, trained: Config, folder: Path) -> None:
  """Makes sure that a configuration describes the network that there is.

  Args:
    config: what is asked for.
    trained: of the training.
    folder: work directory or exported model, for the message.

  Raises:
    ConfigError: it does not.
  """
  changed = config_io.differences(trained, config)
  network = [c for c in changed if c.startswith(NETWORK_FIELDS)]
  if network:
    raise ConfigError(f'{folder}: holds another network: {"; ".join(network)}')


@contextlib.contextmanager
def occupy(workdir: Path) -> Iterator[None]:
  """Keeps other processes out, and adds the package's messages and a final error to log.txt.

  The lock is on log.txt and ends with the process, however it ends.

  Raises:
    OutputError: another process is training in this folder, or log.txt cannot be written.
  """
  path = workdir / 'log.txt'
  try:
    handler = logging.FileHandler(path, encoding='utf-8')
  except OSError as error:
    raise OutputError(f'{path}: cannot be written: {error.strerror}') from error
  try:
    fcntl.flock(handler.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    handler.close()
    raise OutputError(
      f'--workdir={workdir}: another process is training in it; wait for it, or use another folder'
    ) from error
  handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(message)s'))
  package = logging.getLogger('emseg_jax')
  package.addHandler(handler)
  try:
    yield
  except EmsegError as error:
    record = package.makeRecord(
      package.name, logging.ERROR, __file__, 0, '%s: %s', (type(error).__name__, error), None
    )
    handler.emit(record)
    raise
  finally:
    package.removeHandler(handler)
    handler.close()
