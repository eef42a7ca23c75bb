"""What each --mode does with the flags: devices, then one function of `api` or its like.

Modules that start JAX are imported inside the modes, when the environment is set; those that need
no device never do.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import flags

from emseg_jax import config_io, processes
from emseg_jax.config import Config
from emseg_jax.devices import prepare_devices
from emseg_jax.errors import ConfigError, DataError
from emseg_jax.interrupt import StopFlag

__all__ = ['MODES', 'STOP_AND_SAVE', 'Call', 'check_needed']

LOGGER = logging.getLogger('emseg_jax')


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


def check_needed(values: flags.FlagValues, runs: Sequence[Path]) -> None:
  """Makes sure that the flags are there without which a mode can do nothing.

  Raises:
    ConfigError: one is missing.
  """
  mode = values.mode
  needed = NEEDED.get(mode, ())
  if mode == 'evaluate' and values.input:
    needed = ('labels',)
  for name in needed:
    if not getattr(values, name):
      raise ConfigError(f'--mode={mode}: needs --{name}')
  if mode in ('fuse', 'compare') and not runs:
    raise ConfigError(f'--mode={mode}: needs work directories behind the flags')


def _train(call: Call) -> None:
  prepare_devices(call.config, _group(call))
  from emseg_jax import api

  _explain_auto(call, LOGGER.info)
  api.train(
    call.config,
    call.workdir,
    extend=call.flags.extend,
    should_stop=call.stop,
    command=call.command,
  )


def _evaluate(call: Call) -> None:
  if call.flags.input:
    prepare_devices(call.config)
    from emseg_jax import api

    api.score(call.config, call.flags.input, call.flags.labels, output=call.output)
    return
  prepare_devices(call.config, _group(call))
  from emseg_jax import api

  api.evaluate(call.config, call.workdir, should_stop=call.stop)


def _predict(call: Call) -> None:
  # Several processes do not predict together: each takes a share of the volume.
  part = _part(call.flags.part) or processes.share(_group(call))
  prepare_devices(call.config)
  from emseg_jax import api

  api.predict(
    call.config,
    call.workdir,
    call.flags.input,
    call.output,
    part=part,
    dry_run=call.flags.dry_run,
    should_stop=call.stop,
  )


def _part(text: str | None) -> tuple[int, int] | None:
  """'2/8' -> (2, 8)."""
  if text is None:
    return None
  found = re.fullmatch(r'(\d+)/(\d+)', text)
  if found is None or int(found[1]) >= int(found[2]):
    raise ConfigError(f'--part={text}: must be i/n with i from 0 to n - 1, such as 0/4')
  return int(found[1]), int(found[2])


def _postprocess(call: Call) -> None:
  from emseg_jax import postprocess

  result = postprocess.postprocess(
    call.flags.input, call.output, call.config.postprocess, should_stop=call.stop
  )
  if result.table is not None:
    LOGGER.info('%d objects, %s', result.count, result.table)
  LOGGER.info('-> %s', result.path)


def _view(call: Call) -> None:
  from emseg_jax import view

  layers = {} if call.flags.labels is None else {'labels': call.flags.labels}
  for path in call.runs:  # further volumes behind the flags
    name = path.name
    while name in layers or name == 'image':
      name += '_'
    layers[name] = str(path)
  view.view(
    call.flags.input,
    layers,
    port=call.flags.port,
    should_stop=call.stop,
    legend=view.legend(call.config) if call.flags.workdir else None,
    reading=call.config.predict.reading,
  )


def _export(call: Call) -> None:
  prepare_devices(call.config)
  from emseg_jax.export import run

  values = call.flags
  forms = run.forms_named(_listed(values.forms), authors=_listed(values.authors))
  run.export_run(
    call.config, call.workdir, call.output, title=values.title, licence=values.licence, forms=forms
  )


def _listed(text: str | None) -> list[str]:
  """'a, b' -> ['a', 'b']."""
  return [part.strip() for part in (text or '').split(',') if part.strip()]


def _report(call: Call) -> None:
  prepare_devices(call.config)
  from emseg_jax import api

  LOGGER.info('-> %s', api.report(call.config, call.workdir, command=None))


def _check(call: Call) -> None:
  """Prints the data doctor's findings; raises if training could not go well."""
  from emseg_jax import check

  _explain_auto(call, print)
  report = check.check(call.config)
  print(check.format_report(report))
  if call.output:
    check.write(report, call.config, call.output)
  if not report.ok:
    raise DataError('the data are not ready to train on; see the errors above')


def _explain_auto(call: Call, say: Callable[[str], None]) -> None:
  """What was found in the folder, if the configuration was made from one."""
  if call.flags.config and call.flags.config.split(':')[0] in ('auto', 'configs/auto.py'):
    from emseg_jax import auto

    say(auto.explain(call.config))


def _prepare(call: Call) -> None:
  """Builds the data sets that the configuration reads."""
  from emseg_jax import prepare

  reports = prepare.prepare_config(
    call.config,
    source=Path(call.flags.input) if call.flags.input else None,
    output=call.output,
    partial=call.flags.partial,
    should_stop=call.stop,
  )
  for report in reports:
    print(prepare.format_report(report))


def _models(call: Call) -> None:
  """Prints the table of networks; --output writes it as Markdown."""
  from emseg_jax import zoo

  table = zoo.rows()
  print(zoo.format_text(table))
  if call.output:
    config_io.write_text(call.output, zoo.format_markdown(table))


def _benchmark(call: Call) -> None:
  """Prints how fast the configuration runs here; --output writes it as JSON.

  With --what=data, how fast training data are read; --output writes it as Markdown.
  """
  if call.flags.what == 'data':
    from emseg_jax import data_benchmark

    rows = data_benchmark.benchmark_data(
      report=lambda row: LOGGER.info(data_benchmark.format_text([row]).splitlines()[1])
    )
    text, written = data_benchmark.format_text(rows), data_benchmark.format_markdown(rows)
  else:
    prepare_devices(call.config, _group(call))
    from emseg_jax import benchmark

    result = benchmark.benchmark(call.config)
    if not processes.is_first():
      return
    text = benchmark.format_text(result)
    written = json.dumps(result.to_json(), indent=2) + '\n'
  print(text)
  if call.output:
    config_io.write_text(call.output, written)


def _configs(call: Call) -> list[Config]:
  """Of the runs behind the flags, the overrides applied to each."""
  from emseg_jax import workdir

  return [config_io.apply_overrides(workdir.read_config(r), call.overrides) for r in call.runs]


def _compare(call: Call) -> None:
  configs = _configs(call)
  from emseg_jax.report import compare

  print(compare.write_comparison(call.runs, configs, call.output))


def _fuse(call: Call) -> None:
  configs = _configs(call)
  prepare_devices(configs[0])
  from emseg_jax import api

  api.fuse(configs, call.runs, call.flags.input, call.output, should_stop=call.stop)


MODES: Mapping[str, Callable[[Call], None]] = {
  'train': _train,
  'evaluate': _evaluate,
  'predict': _predict,
  'postprocess': _postprocess,
  'check': _check,
  'view': _view,
  'export': _export,
  'report': _report,
  'models': _models,
  'benchmark': _benchmark,
  'prepare': _prepare,
  'fuse': _fuse,
  'compare': _compare,
}
# They ask `Call.stop`, and end with nothing half-written.
STOP_AND_SAVE = ('train', 'evaluate', 'predict', 'postprocess', 'prepare', 'fuse', 'view')
NEEDED = {
  'train': ('workdir',),
  'evaluate': ('workdir',),
  'predict': ('workdir', 'input', 'output'),
  'postprocess': ('input', 'output'),
  'view': ('input',),
  'export': ('workdir', 'output'),
  'report': ('workdir',),
  'fuse': ('input', 'output'),
  'compare': ('output',),
}


def _group(call: Call) -> processes.Group | None:
  """The processes that train together, of which this is one."""
  values = call.flags
  return processes.find_group(
    coordinator=values.coordinator, count=values.num_processes, index=values.process_id
  )
