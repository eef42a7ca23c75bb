"""Several processes that train one network: how they find each other, and who writes.

Process 0 writes logs, metrics and reports; all take part in checkpoints and computations. Where the
processes are told of each other, in this order: --coordinator, --num_processes and --process_id;
EMSEG_COORDINATOR, EMSEG_NUM_PROCESSES and EMSEG_PROCESS_ID; SLURM, Open MPI and Kubernetes, which
JAX knows. Nothing of these is one process, which needs no coordinator.
"""

import dataclasses
import os
from collections.abc import Mapping

from emseg_jax.errors import ConfigError, DeviceError

__all__ = ['Group', 'barrier', 'find_group', 'is_alone', 'is_first', 'join', 'share']

VARIABLES = ('EMSEG_COORDINATOR', 'EMSEG_NUM_PROCESSES', 'EMSEG_PROCESS_ID')
# Of what srun starts; in the script of a job itself SLURM_NTASKS is set, too.
DETECTED = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')


@dataclasses.dataclass(frozen=True)
class Group:
  """Attributes:
  coordinator: host:port of process 0; None: JAX finds out.
  count: number of processes; None: JAX finds out.
  index: which of them this is, from 0; None: JAX finds out.
  """

  coordinator: str | None
  count: int | None
  index: int | None


def find_group(
  *,
  coordinator: str | None = None,
  count: int | None = None,
  index: int | None = None,
  environment: Mapping[str, str] = os.environ,
) -> Group | None:
  """What flags and environment say; None for a single process.

  Args:
    coordinator, count, index: of the flags; all or none.
    environment: variables of the process.

  Raises:
    ConfigError: some of the three are missing, or do not fit together.
  """
  flags = (coordinator, count, index)
  if any(value is not None for value in flags):
    return _checked(flags, ('--coordinator', '--num_processes', '--process_id'))
  found = tuple(environment.get(name) for name in VARIABLES)
  if any(found):
    return _checked(found, VARIABLES)
  if any(int(environment.get(name, '1')) > 1 for name in DETECTED):
    return Group(None, None, None)
  return None


def _checked(values: tuple, names: tuple[str, ...]) -> Group | None:
  missing = [name for name, value in zip(names, values, strict=True) if value in (None, '')]
  if missing:
    raise ConfigError(f'{missing[0]}: is missing; set all of {", ".join(names)}, or none')
  coordinator, *numbers = values
  try:
    count, index = (int(number) for number in numbers)
  except ValueError as error:
    raise ConfigError(f'{names[1]}, {names[2]}: must be whole numbers, got {numbers}') from error
  if not 0 <= index < count:
    raise ConfigError(f'{names[2]}={index}: must be 0 to {count - 1}, below {names[1]}')
  if count > 1 and ':' not in coordinator:
    raise ConfigError(f'{names[0]}={coordinator}: must be host:port')
  return Group(coordinator, count, index) if count > 1 else None


def join(group: Group | None, *, lost_after: int, timeout: int = 300) -> None:
  """Meets the other processes; to be called before any device is used.

  Args:
    group: of `find_group`; None does nothing.
    lost_after: seconds of silence of a process after which the others end.
    timeout: seconds to wait for the others.

  Raises:
    DeviceError: the others did not come in time.
  """
  if group is None:
    return
  import jax

  # Its signal handler would swallow SIGTERM; ours asks all processes to stop at the same step.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      group.coordinator,
      group.count,
      group.index,
      initialization_timeout=timeout,
      heartbeat_timeout_seconds=lost_after,
    )
  except (RuntimeError, ValueError) as error:
    reason = str(error).strip().splitlines()[0][:300]
    raise DeviceError(
      f'process {group.index} of {group.count} at {group.coordinator}: did not meet the others '
      f'({reason})'
    ) from error


def share(group: Group | None, *, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
  """(i, n): which share of a volume this process predicts, where each works for itself.

  Told by the group, else by SLURM: tasks of a step, or of an array that begins at 0.
  """
  if group is not None and group.index is not None:
    return group.index, group.count
  for index, count in (
    ('SLURM_PROCID', 'SLURM_STEP_NUM_TASKS'),
    ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE'),
    ('SLURM_ARRAY_TASK_ID', 'SLURM_ARRAY_TASK_COUNT'),
  ):
    if index in environment and int(environment.get(count, '1')) > 1:
      return int(environment[index]), int(environment[count])
  return 0, 1


def is_first() -> bool:
  """Whether this process is the one that writes."""
  import jax

  return jax.process_index() == 0


def is_alone() -> bool:
  """Whether there is only one process, which may then act without asking others."""
  import jax

  return jax.process_count() == 1


def barrier(name: str) -> None:
  """Waits until all processes are here."""
  if not is_alone():
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)
