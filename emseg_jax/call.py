"""One use of the command line, as the modes see it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from emseg_jax import config_io
from emseg_jax.config import Config
from emseg_jax.interrupt import StopFlag

__all__ = ['Call', 'configs_of_runs', 'explain_auto', 'is_auto']


@dataclasses.dataclass(frozen=True)
class Call:
  """One use of the command line.

  Attributes:
    flags: all but the configuration.
    config: overrides applied; the defaults for modes that need none.
    overrides: for modes that read the configurations of several runs.
    runs: work directories behind the flags.
    stop: set when the user wants to end; None for modes that just end.
    command: as typed, for the report.
  """

  flags: flags.FlagValues
  config: Config
  overrides: Sequence[str]
  runs: Sequence[Path]
  stop: StopFlag | None
  command: str

  @property
  def workdir(self) -> Path:
    return Path(self.flags.workdir)

  @property
  def output(self) -> Path | None:
    return Path(self.flags.output) if self.flags.output else None


def configs_of_runs(call: Call) -> list[Config]:
  """Of the runs behind the flags, the overrides applied to each."""
  from emseg_jax import workdir

  return [config_io.apply_overrides(workdir.read_config(r), call.overrides) for r in call.runs]


def is_auto(spec: str | None) -> bool:
  """Whether --config=SPEC makes the configuration from a folder."""
  return bool(spec) and spec.split(':')[0] in ('auto', 'configs/auto.py')


def explain_auto(call: Call) -> str:
  """What was found in the folder, if the configuration was made from one; else nothing."""
  if is_auto(call.flags.config):
    from emseg_jax import auto

    return auto.explain(call.config)
  return ''
