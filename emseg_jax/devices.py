"""What must be settled before JAX touches a device, and what is said where a GPU is left idle."""

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator

from emseg_jax import processes
from emseg_jax.config import Config

__all__ = ['prepare_devices']

LOGGER = logging.getLogger('emseg_jax')
DRIVER = '/proc/driver/nvidia/version'
PLUGINS = ('jax_plugins.xla_cuda13', 'jax_plugins.xla_cuda12')


def prepare_devices(config: Config, group: processes.Group | None = None) -> None:
  """Sets what must be in the environment before jax starts, meets the other processes of the group
  if there is one, and warns of an idle GPU.
  """
  if config.run.deterministic:
    flag = '--xla_gpu_deterministic_ops=true'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}'.strip()
  import jax

  if config.run.compile_cache:
    jax.config.update('jax_compilation_cache_dir', os.path.expanduser(config.run.compile_cache))
  with _plugin_failures() as failures:
    processes.join(group, lost_after=config.run.lost_after)
    if group is not None and not processes.is_first():
      LOGGER.setLevel(logging.WARNING)  # the first one says it all
    on_cpu = jax.default_backend() == 'cpu'
  if on_cpu and jax.config.jax_platforms != 'cpu':  # else the user asked for it
    _warn_of_idle_gpu(failures)


def _warn_of_idle_gpu(failures: list[str]) -> None:
  """Says why jax runs on the CPU where somebody meant it not to."""
  if any(map(_is_installed, PLUGINS)):
    reason = f' ({"; ".join(failures)})' if failures else ''
    LOGGER.warning(
      'jax for CUDA is installed, but finds no GPU and runs on the CPU%s; nvidia-smi shows whether '
      'there is one, and a container needs --gpus=all',
      reason,
    )
  elif os.path.exists(DRIVER):
    LOGGER.warning(
      'There is an NVIDIA GPU, but this jax runs on the CPU; install it with '
      'pip install ".[cuda13]" (or cuda12)'
    )


def _is_installed(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # its parent is not
    return False


@contextlib.contextmanager
def _plugin_failures() -> Iterator[list[str]]:
  """Within, a plugin of jax that cannot start is noted in a line and not logged as a traceback."""
  found: list[str] = []

  def note(record: logging.LogRecord) -> bool:
    if not (record.exc_info and record.exc_info[1]):
      return True
    found.append(str(record.exc_info[1]).rstrip('.'))
    return False

  bridge = logging.getLogger('jax._src.xla_bridge')
  bridge.addFilter(note)
  try:
    yield found
  finally:
    bridge.removeFilter(note)
