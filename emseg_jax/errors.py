"""The exceptions that emseg_jax raises on purpose.

`main` turns any of them into one line on stderr and `exit_code`. A message is one sentence that
names the file or the configuration field, the offending value and what is allowed, with the likely
fix where there is one.
"""

__all__ = [
  'BundleError',
  'CheckpointError',
  'ConfigError',
  'DataError',
  'DeviceError',
  'EmsegError',
  'Interrupted',
  'OutputError',
  'TrainingError',
]


class EmsegError(Exception):
  """Base of all errors raised on purpose; exit code 2 unless a subclass says otherwise."""

  exit_code = 2


class ConfigError(EmsegError):
  """A configuration field is unknown, has a wrong type, or an impossible value."""


class DataError(EmsegError):
  """An image, a label or their pairing cannot be used as it is."""


class DeviceError(EmsegError):
  """The devices at hand do not fit the requested mesh, or their memory not the program."""


class CheckpointError(EmsegError):
  """A checkpoint or a work directory cannot be used."""


class BundleError(EmsegError):
  """The folder of an exported model cannot be used."""


class OutputError(EmsegError):
  """A result could not be written (full disk, missing permission, existing file)."""


class TrainingError(EmsegError):
  """Training cannot go on: the loss or its gradient is not finite, or a reader process died."""

  exit_code = 3


class Interrupted(EmsegError):
  """SIGTERM or SIGINT arrived; the state was saved and the same command resumes it.

  The exit code is EX_TEMPFAIL of sysexits.h, so that a scheduler can tell "start me again" from a
  failure.
  """

  exit_code = 75
