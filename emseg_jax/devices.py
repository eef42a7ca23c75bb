"""What must be settled before JAX touches a device."""

import logging
import os

from emseg_jax import processes
from emseg_jax.config import Config

__all__ = ['prepare_devices']

LOGGER = logging.getLogger('emseg_jax')


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
  processes.join(group, lost_after=config.run.lost_after)
  if group is not None and not processes.is_first():
    LOGGER.setLevel(logging.WARNING)  # the first one says it all
  if os.path.exists('/proc/driver/nvidia/version') and jax.default_backend() == 'cpu':
    LOGGER.warning(
      'There is an NVIDIA GPU, but this jax runs on the CPU; install it with '
      'pip install ".[cuda13]" (or cuda12)'
    )
