"""Test set-up: eight virtual CPU devices, strict rank promotion, and a compilation cache shared by
runs.
"""

import importlib.metadata
import os
import pathlib
import signal
import sys
import tempfile

# Both must be in the environment before jax starts its backend.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Tests compile a lot and compute little: less optimisation makes them three times as quick.
COMPILE_FLAGS = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
# Halves that again, at the price of other roundings: for tests of networks, not for those of equal
# bits. XLA aborts at a flag it does not know, and only this version is known to have it.
if 'EMSEG_TEST_QUICK_COMPILE' in os.environ and importlib.metadata.version('jaxlib')[:5] == '0.10.':
  COMPILE_FLAGS += ' --xla_cpu_use_fusion_emitters=false'
if 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
  flags = [os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=8']
  os.environ['XLA_FLAGS'] = ' '.join([*flags, COMPILE_FLAGS]).strip()

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

COMPILE_CACHE = os.environ.get(
  'EMSEG_TEST_CACHE', os.path.join(tempfile.gettempdir(), 'emseg_jax_test_cache')
)


def pytest_configure(config: pytest.Config) -> None:
  del config
  # A busy machine is no defect of what is tested.
  hypothesis.settings.register_profile('emseg', deadline=None)
  hypothesis.settings.load_profile('emseg')
  # Shells start what runs in their background with Ctrl-C ignored, and the tests send it.
  if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  jax.config.update('jax_numpy_rank_promotion', 'raise')
  jax.config.update('jax_compilation_cache_dir', COMPILE_CACHE)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
