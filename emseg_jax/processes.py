"""Several processes that train one network: how they find each other, and who writes.

Process 0 writes logs, metrics and reports; all take part in checkpoints and computations. Where the
processes are told of each other, in this order: --coordinator, --num_processes and --process_id;
EMSEG_COORDINATOR, EMSEG_NUM_PROCESSES and EMSEG_PROCESS_ID; what `srun` and Open MPI set, which JAX
reads. Nothing of these is one process, which needs no coordinator. --coordinator=auto or
EMSEG_COORDINATOR=auto leaves everything to JAX: on TPU pods, which say nothing by variables.
Kubernetes sets nothing that counts the processes: its job has to set the three variables. (JAX
would ask its server, for which the package `kubernetes` and the right to do so are needed.)
"""

import dataclasses
import os
from collections.abc import Mapping

from emseg_jax.errors import ConfigError, DeviceError

__all__ = ['Group', 'agreed', 'barrier', 'find_group', 'is_alone', 'is_first', 'join', 'share']

FLAGS = ('--coordinator', '--num_processes', '--process_id')
VARIABLES = ('EMSEG_COORDINATOR', 'EMSEG_NUM_PROCESSES', 'EMSEG_PROCESS_ID')
AUTO = 'auto'  # as coordinator: JAX finds out
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
    coordinator, count, index: of the flags; all or none, or 'auto' alone.
    environment: variables of the process.

  Raises:
    ConfigError: some of the three are missing, or do not fit together; or a variable that should be
      a number is none.
  """
  flags = (coordinator, count, index)
  if any(value is not None for value in flags):
    return _checked(flags, FLAGS)
  found = tuple(environment.get(name) or None for name in VARIABLES)
  if any(found):
    return _checked(found, VARIABLES)
  if any(_number(environment, name, 1) > 1 for name in DETECTED):
    return Group(None, None, None)
  return None


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
  """A whole number, from 0, of a variable that a scheduler sets."""
  text = environment.get(name, str(default))
  if not text.isascii() or not text.isdigit():
    raise ConfigError(f'{name}={text}: must be a whole number; unset it where no scheduler set it')
  return int(text)


def _checked(values: tuple, names: tuple[str, ...]) -> Group | None:
  if values[0] == AUTO:
    more = [name for name, value in zip(names, values, strict=True) if value not in (None, AUTO)]
    if more:
      raise ConfigError(f'{more[0]}: cannot be set beside {names[0]}={AUTO}, which finds it out')
    return Group(None, None, None)
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


def join(
  group: Group | None,
  *,
  lost_after: int,
  timeout: int = 300,
  environment: Mapping[str, str] = os.environ,
) -> None:
  """Meets the other processes; to be called before any device is used.

  Args:
    group: of `find_group`; None does nothing.
    lost_after: seconds of silence of a process after which the others end.
    timeout: seconds to wait for the others.
    environment: variables of the process.

  Raises:
    DeviceError: the others did not come in time.
  """
  if group is None:
    return
  import jax

  told = {}
  if group.coordinator is not None:
    told = {
      'coordinator_address': group.coordinator,
      'num_processes': group.count,
      'process_id': group.index,
      # It would still ask schedulers, for a share of the devices.
      'cluster_detection_method': 'deactivate',
    }

  # Its signal handler would swallow SIGTERM; ours asks all processes to stop at the same step.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      **told, initialization_timeout=timeout, heartbeat_timeout_seconds=lost_after
    )
  except (RuntimeError, ValueError) as error:
    reason = str(error).strip().splitlines()[0][:300]
    who = 'a process that JAX was to find the others of'
    if told:
      who = f'process {group.index} of {group.count} at {group.coordinator}'
    raise DeviceError(f'{who}: did not meet the others ({reason})') from error
  if not told and _alone_on_machine(environment) and 'JAX_LOCAL_DEVICE_IDS' not in environment:
    # Of what SLURM and Open MPI start, JAX gives each process one GPU, also where it is the only
    # one of its machine.
    for platform in ('cuda', 'rocm'):
      jax.config.update(f'jax_{platform}_visible_devices', 'all')


def _alone_on_machine(environment: Mapping[str, str]) -> bool:
  """Whether a scheduler started no other process on this machine."""
  if 'OMPI_COMM_WORLD_LOCAL_SIZE' in environment:
    return _number(environment, 'OMPI_COMM_WORLD_LOCAL_SIZE', 1) == 1
  tasks = _number(environment, 'SLURM_STEP_NUM_TASKS', 0)
  return tasks > 0 and tasks == _number(environment, 'SLURM_STEP_NUM_NODES', 1)


def share(group: Group | None, *, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
  """(i, n): which share of a volume this process predicts, where each works for itself.

  Told by the group, else by SLURM: tasks of a step, or of an array, which may begin anywhere and
  have a step; or by Open MPI.

  Raises:
    ConfigError: a variable that should be a number is none, of an array tasks are left out, or
      there are several processes, but none knows its number.
  """
  if group is not None and group.index is not None:
    return group.index, group.count
  for index, count in (
    ('SLURM_PROCID', 'SLURM_STEP_NUM_TASKS'),
    ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE'),
  ):
    if index in environment and _number(environment, count, 1) > 1:
      return _number(environment, index, 0), _number(environment, count, 1)
  if _number(environment, 'SLURM_ARRAY_TASK_COUNT', 1) > 1:
    return _share_of_array(environment)
  if group is not None:
    raise ConfigError(
      f'--coordinator={AUTO}: does not say which share of a volume a process predicts; give '
      '--part=I/N'
    )
  return 0, 1


def _share_of_array(environment: Mapping[str, str]) -> tuple[int, int]:
  """The place of a task in an array such as 0-9, 1-10 or 0-90:10."""
  name = 'SLURM_ARRAY_TASK_'
  task, count = (_number(environment, f'{name}{what}', 0) for what in ('ID', 'COUNT'))
  first, step = _number(environment, f'{name}MIN', 0), _number(environment, f'{name}STEP', 1)
  last = _number(environment, f'{name}MAX', first + (count - 1) * step)
  tasks = range(first, last + 1, max(step, 1))
  if len(tasks) != count or task not in tasks:
    raise ConfigError(
      f'{name}ID={task}: cannot tell its place among {count} tasks from {first} to {last}, step '
      f'{step}; submit an array without gaps, or give --part=I/N'
    )
  return tasks.index(task), count


def is_first() -> bool:
  """Whether this process is the one that writes."""
  import jax

  return jax.process_index() == 0


def is_alone() -> bool:
  """Whether there is only one process, which may then act without asking others."""
  import jax

  return jax.process_count() == 1


def agreed(number: int) -> int:
  """What the first process says; the others have to ask, too."""
  if is_alone():
    return number
  import numpy as np
  from jax.experimental import multihost_utils

  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def barrier(name: str) -> None:
  """Waits until all processes are here."""
  if not is_alone():
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)
