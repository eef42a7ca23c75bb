"""What programs need and what devices have; the search for what fits; running out for real."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emseg_jax import memory, sharding
from emseg_jax.config import Mesh
from emseg_jax.errors import DeviceError

ROOT = Path(__file__).parent.parent


def _compile(function, *shapes, **options):
  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return jax.jit(function, **options).lower(*arrays).compile()


def test_arguments_and_results_count_once_each():
  # 1000 floats of 4 bytes in, as many in, as many out.
  assert memory.step_bytes(_compile(jnp.add, (1000,), (1000,))) == 12000


def test_a_result_in_the_place_of_a_donated_argument_counts_once():
  assert memory.step_bytes(_compile(jnp.add, (1000,), (1000,), donate_argnums=0)) == 8000


def test_temporary_arrays_count():
  # The product, 1000 x 1000 floats, is neither an argument nor the result.
  compiled = _compile(lambda x, y: jnp.sort(x @ y, axis=0)[0], (1000, 10), (10, 1000))
  assert memory.step_bytes(compiled) >= 4 * (2 * 10_000 + 1000) + 4_000_000


def test_bytes_are_those_of_one_device():
  mesh = sharding.make_mesh(Mesh(data=8))
  rows = jax.ShapeDtypeStruct((80, 25), jnp.float32, sharding=sharding.batch_sharding(mesh))
  compiled = jax.jit(lambda x: 2 * x).lower(rows).compile()
  assert memory.step_bytes(compiled) == 2 * 4 * 80 * 25 // 8


@pytest.mark.parametrize(
  'sizes',
  [None, {}, {'argument': 1, 'output': 1, 'temp': None, 'alias': 0}, {'argument': 5, 'output': 5}]
  + [dict.fromkeys(('argument', 'output', 'temp', 'alias'), n) for n in (0, -1)],
)
def test_a_backend_that_does_not_say_gives_none(sizes):
  found = None
  if sizes is not None:
    found = SimpleNamespace(**{f'{name}_size_in_bytes': n for name, n in sizes.items()})
  assert memory.step_bytes(SimpleNamespace(memory_analysis=lambda: found)) is None


def _device(monkeypatch, platform, stats):
  device = SimpleNamespace(platform=platform, memory_stats=lambda: stats)
  monkeypatch.setattr(jax, 'local_devices', lambda: [device])


@pytest.mark.parametrize(
  ('platform', 'stats', 'expected'),
  [
    ('gpu', {'bytes_limit': 15_000, 'bytes_in_use': 3}, 15_000),
    ('gpu', {}, None),
    ('tpu', None, None),
    ('cpu', None, 1_000),  # an eighth of the host's
  ],
)
def test_a_device_has_what_it_says_and_a_cpu_device_its_share(
  monkeypatch, platform, stats, expected
):
  assert jax.local_device_count() == 8
  monkeypatch.setattr(memory, 'host_memory', lambda: 8_000)
  monkeypatch.setattr(jax, 'local_device_count', lambda: 8)
  _device(monkeypatch, platform, stats)
  assert memory.device_memory() == expected


PHYSICAL = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
V1 = 'sys/fs/cgroup/memory/job/step/memory.limit_in_bytes'


@pytest.mark.parametrize(
  ('groups', 'files', 'expected'),
  [
    (None, {}, PHYSICAL),  # no /proc
    ('0::/', {}, PHYSICAL),
    ('0::/', {'sys/fs/cgroup/memory.max': '2000'}, 2000),  # a container with its own view
    ('0::/a/b', {'sys/fs/cgroup/memory.max': '2000'}, 2000),  # and without
    ('0::/a/b', {'sys/fs/cgroup/a/memory.max': '300', 'sys/fs/cgroup/a/b/memory.max': 'max'}, 300),
    ('0::/a', {'sys/fs/cgroup/memory.max': str(2**62)}, PHYSICAL),
    ('7:cpu:/x\n4:memory,hugetlb:/job/step\n0::/', {V1: '500'}, 500),
    ('7:cpu:/job/step', {V1: '500'}, PHYSICAL),  # memory is not limited there
    ('5:cpu:/a:b\n0::/a:b', {'sys/fs/cgroup/a:b/memory.max': '70'}, 70),
  ],
)
def test_control_groups_limit_the_memory_of_the_host(tmp_path, groups, files, expected):
  texts = {name: f'{text}\n' for name, text in files.items()}
  if groups is not None:
    texts['proc/self/cgroup'] = f'{groups}\n'
  for name, text in texts.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
  assert memory.host_memory(tmp_path) == expected


# As reported by users of GPUs, TPUs and CPUs; the last one is a driver's.
MESSAGES = (
  'RESOURCE_EXHAUSTED: Out of memory allocating 20029400304 bytes.',
  'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 7406166528 bytes.\nBufferAssignment',
  'RESOURCE_EXHAUSTED: Failed to allocate request for 176.00MiB (184549376B) on device ordinal 0',
  'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. '
  'Used 21.95G of 15.48G hbm. Exceeded hbm capacity by 6.47G.',
  'RESOURCE_EXHAUSTED: Attempting to reserve 3.95G at the bottom of memory. That was not possible.',
  'INTERNAL: Failed to load in-memory CUBIN: CUDA_ERROR_OUT_OF_MEMORY: out of memory',
)
OTHERS = (
  jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Received message larger than max (5 vs. 4)'),
  jax.errors.JaxRuntimeError('INVALID_ARGUMENT: Executable expected shape f32[2]'),
  jax.errors.JaxRuntimeError('INTERNAL: Failed to load cuDNN'),
  RuntimeError('out of memory'),  # not a device's
  MemoryError('out of memory'),
  KeyError('memory'),
)


@pytest.mark.parametrize('message', MESSAGES)
def test_running_out_ends_with_the_proposal(message):
  error = jax.errors.JaxRuntimeError(message)
  with (
    pytest.raises(DeviceError, match=r'^the step ran out of memory: buy more$') as caught,
    memory.explain_out_of_memory('the step', lambda: 'buy more'),
  ):
    raise error
  assert caught.value.__cause__ is error


@pytest.mark.parametrize('error', OTHERS, ids=str)
def test_other_errors_are_left_alone(error):
  with (
    pytest.raises(type(error)) as caught,
    memory.explain_out_of_memory('the step', lambda: pytest.fail('nothing is to be proposed')),
  ):
    raise error
  assert caught.value is error


def test_a_program_refused_as_too_large_needs_infinitely_much():
  def refuse():
    raise jax.errors.JaxRuntimeError(MESSAGES[3])

  def fail():
    raise OTHERS[1]

  assert memory.bytes_to_compile(refuse) == np.inf
  with pytest.raises(jax.errors.JaxRuntimeError, match='INVALID_ARGUMENT'):
    memory.bytes_to_compile(fail)


RISING = st.lists(st.integers(1, 1000), min_size=1, max_size=12, unique=True).map(sorted)


@given(RISING, st.integers(0, 10**9), st.integers(1, 10**6), st.integers(0, 2 * 10**9))
def test_of_sizes_that_need_memory_in_proportion_the_largest_is_found(sizes, base, each, limit):
  asked = []

  def bytes_of(size):
    asked.append(size)
    return base + each * size

  found = memory.largest_fitting(sizes, bytes_of, limit=limit, size_of=lambda n: n)
  fitting = [n for n in sizes if base + each * n <= limit]
  assert found == ((fitting[-1], base + each * fitting[-1]) if fitting else None)
  assert len(asked) == len(set(asked)) <= 3  # the largest, the smallest, the one between


@given(RISING, st.data())
def test_what_is_found_fits_whatever_memory_depends_on(sizes, data):
  number = st.one_of(st.none(), st.just(float('inf')), st.integers(0, 1000))
  needed = {n: data.draw(number) for n in sizes}
  found = memory.largest_fitting(sizes, needed.get, limit=500, size_of=lambda n: n)
  if found is not None:
    assert needed[found[0]] == found[1] <= 500
  elif sizes:
    assert not all(needed[n] is not None and needed[n] <= 500 for n in sizes)


def test_where_the_largest_cannot_be_compiled_the_search_bisects():
  needed = {1: 10, 2: 20, 4: 40, 8: 80, 16: float('inf')}
  found = memory.largest_fitting(list(needed), needed.get, limit=50, size_of=lambda n: n)
  assert found == (4, 40)
  assert memory.largest_fitting([], needed.get, limit=50, size_of=lambda n: n) is None


def test_smaller_patches_are_multiples_along_all_axes():
  # Eighths of 64: 8, 16, ... 56; rounded down to 16, and 8 up to it.
  assert memory.smaller((64, 64), (16, 16)) == [(16, 16), (32, 32), (48, 48)]
  assert memory.smaller((16, 16), (16, 16)) == []
  # 20/8 = 2.5, 5, 7.5, ... beside eighths of 64, each 8.
  expected = [(2, 8), (5, 16), (7, 24), (10, 32), (12, 40), (15, 48), (17, 56)]
  assert memory.smaller((20, 64), (1, 8)) == expected


def test_numbers_are_put_into_words(monkeypatch):
  monkeypatch.setattr(memory, 'device_memory', lambda: 15_000_000_000)
  assert memory.compare(1_340_000_000) == 'it needs 1.34 GB of 15 GB on each device; '
  assert memory.compare(2_500_000) == 'it needs 2.5 MB of 15 GB on each device; '
  assert memory.compare(None) == memory.compare(float('inf')) == ''
  assert memory.usable(None) == 0.9 * 15e9
  assert memory.usable(1e9) == 0.9 * 1e9
  monkeypatch.setattr(memory, 'device_memory', lambda: None)
  assert memory.compare(1.0) == ''
  assert memory.usable(None) is None


# The outer product of 20 000 numbers takes 1.6 GB; 400 MB are left.
RUN_OUT = """
import resource
import jax, jax.numpy as jnp
from emseg_jax import memory

step = jax.jit(lambda x: jnp.sort(jnp.sin(x)[:, None] * jnp.cos(x)[None], axis=0).sum())
step(jnp.ones(10)).block_until_ready()
x = jnp.ones(20_000)
compiled = step.lower(x).compile()
used = next(l for l in open('/proc/self/status') if l.startswith('VmSize')).split()[1]
resource.setrlimit(resource.RLIMIT_AS, (1024 * int(used) + 400_000_000,) * 2)
try:
  with memory.explain_out_of_memory('it', lambda: memory.format_bytes(memory.step_bytes(compiled))):
    step(x).block_until_ready()
except Exception as error:
  print(type(error).__name__, error)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='limits memory as Linux does')
def test_a_cpu_that_runs_out_of_memory_is_recognised():
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(
    [sys.executable, '-c', RUN_OUT], env=environment, capture_output=True, text=True, check=False
  )
  assert done.stdout == 'DeviceError it ran out of memory: 1.6 GB\n', done.stderr
