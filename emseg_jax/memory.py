"""Device memory: how much there is, what a compiled program needs of it, and what fits.

Sizes are bytes on one device. What a program needs is XLA's own plan (`memory_analysis`), known as
soon as it is compiled, so nothing has to run out of memory to find out what fits.
"""

import contextlib
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import jax

from emseg_jax.errors import DeviceError

__all__ = [
  'bytes_to_compile',
  'compare',
  'device_memory',
  'explain_out_of_memory',
  'format_bytes',
  'host_memory',
  'is_out_of_memory',
  'largest_fitting',
  'smaller',
  'step_bytes',
  'usable',
]

LOGGER = logging.getLogger(__name__)
# Words of CPU, GPU and TPU runtimes. RESOURCE_EXHAUSTED alone is also said of messages too long.
OUT_OF_MEMORY = re.compile(
  r'out.of.memory|resource.exhausted.*(memory|alloc|reserv)', re.IGNORECASE | re.DOTALL
)

USABLE = 0.9  # of the memory: some is lost between arrays
EIGHTHS = range(1, 8)  # of a patch or tile, along all axes

T = TypeVar('T')


def device_memory() -> int | None:
  """What one device may use; None if it does not say.

  On GPUs it is what the allocator may take, three quarters by default. CPU devices share the memory
  of the host.
  """
  device = jax.local_devices()[0]
  stats = device.memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit']
  return host_memory() // jax.local_device_count() if device.platform == 'cpu' else None


def host_memory(root: Path = Path('/')) -> int:
  """What this process may use of the host's memory: all of it, or what its control groups allow.

  Args:
    root: where /proc and /sys are.
  """
  sizes = [os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')]
  with contextlib.suppress(FileNotFoundError):  # another system than Linux
    for line in (root / 'proc/self/cgroup').read_text().splitlines():
      _, controllers, path = line.split(':', 2)
      if controllers == '':
        folder, name = root / 'sys/fs/cgroup', 'memory.max'
      elif 'memory' in controllers.split(','):
        folder, name = root / 'sys/fs/cgroup/memory', 'memory.limit_in_bytes'
      else:
        continue
      # A group may take no more than those it is in. In a container only the root may be there.
      inside = PurePosixPath(path.lstrip('/'))
      files = (folder / group / name for group in (inside, *inside.parents))
      limits = [file.read_text().strip() for file in files if file.is_file()]
      sizes += [int(limit) for limit in limits if limit != 'max']
  return min(sizes)


def step_bytes(compiled: Any) -> int | None:
  """What a compiled program needs on each device at once; None if the backend does not say.

  Arguments, results and temporary arrays; results that take the place of donated arguments count
  once.
  """
  found = compiled.memory_analysis()
  names = ('argument', 'output', 'temp', 'alias')
  sizes = [getattr(found, f'{name}_size_in_bytes', None) for name in names]
  if any(size is None for size in sizes):
    return None
  arguments, results, temporary, shared = sizes
  # Some runtimes fill in 0 or -1 where they do not know.
  return arguments + results + temporary - shared if min(sizes) >= 0 and any(sizes) else None


def bytes_to_compile(compile_fn: Callable[[], Any]) -> float | None:
  """`step_bytes` of what `compile_fn` compiles; infinite if it is refused as too large."""
  try:
    return step_bytes(compile_fn())
  except jax.errors.JaxRuntimeError as error:
    if is_out_of_memory(error):
      return math.inf
    raise


def largest_fitting(
  candidates: Sequence[T],
  bytes_of: Callable[[T], float | None],
  *,
  limit: float,
  size_of: Callable[[T], float],
) -> tuple[T, int] | None:
  """The largest candidate that fits, and its bytes; None if none is known to.

  Memory is about affine in the size of a batch or patch, a + b n. The largest candidate is tried
  first, then the smallest; between the two the line through them says which one to try.

  Args:
    candidates: by rising size.
    bytes_of: compiles one; None if unknown, infinite if impossible.
    limit: bytes that it may take.
    size_of: n.
  """
  if not candidates:
    return None
  needed = [math.inf] * len(candidates)

  def fits(index: int) -> bool:
    found = bytes_of(candidates[index])
    needed[index] = math.inf if found is None else found
    return needed[index] <= limit

  low, high = 0, len(candidates) - 1
  if fits(high):
    return candidates[high], int(needed[high])
  if high == 0 or not fits(low):
    return None
  sizes = [size_of(c) for c in candidates]
  while high - low > 1:
    guess = (low + high) // 2
    if needed[high] < math.inf:
      rise, run = needed[high] - needed[low], sizes[high] - sizes[low]
      room = limit - needed[low]
      reach = [i for i in range(low, high) if rise * (sizes[i] - sizes[low]) <= room * run]
      guess = reach[-1]
      if guess == low:
        break
    low, high = (guess, high) if fits(guess) else (low, guess)
  return candidates[low], int(needed[low])


def is_out_of_memory(error: BaseException) -> bool:
  """Whether an error of JAX says that a device's memory is used up."""
  return isinstance(error, jax.errors.JaxRuntimeError) and bool(OUT_OF_MEMORY.search(str(error)))


@contextlib.contextmanager
def explain_out_of_memory(what: str, propose: Callable[[], str]) -> Iterator[None]:
  """Ends with a sentence if a device runs out of memory inside; other errors are left alone.

  Results are computed in the background, and so are their errors: the place that waits for them has
  to be inside as well.

  Args:
    what: subject of the sentence.
    propose: how it continues; only called then.

  Raises:
    DeviceError: the memory is used up.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if not is_out_of_memory(error):
      raise
    LOGGER.info('Out of memory; looking for what fits.')
    raise DeviceError(f'{what} ran out of memory: {propose()}') from error


def format_bytes(size: float) -> str:
  """1300000000 -> '1.3 GB'."""
  return f'{size / 1e9:.3g} GB' if size >= 1e9 else f'{size / 1e6:.3g} MB'


def usable(needed: float | None) -> float | None:
  """What a proposal may need: less than there is, and than `needed`, which has just not fitted."""
  known = [size for size in (needed, device_memory()) if size is not None]
  return USABLE * min(known) if known else None


def compare(needed: float | None) -> str:
  """'it needs 2 GB of 1 GB on each device; ', nothing where numbers are missing."""
  limit = device_memory()
  if needed is None or needed == math.inf or limit is None:
    return ''
  return f'it needs {format_bytes(needed)} of {format_bytes(limit)} on each device; '


def smaller(size: Sequence[int], multiples: Sequence[int]) -> list[tuple[int, ...]]:
  """1/8 to 7/8 of a patch or tile along every axis, rounded down to multiples but not to 0."""
  found = {
    tuple(max(m, s * n // (8 * m) * m) for s, m in zip(size, multiples, strict=True))
    for n in EIGHTHS
  }
  return sorted((f for f in found if math.prod(f) < math.prod(size)), key=math.prod)
