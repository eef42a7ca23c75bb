"""The command line: flags, logging, devices, one mode. The work itself is in `api`.

python -m emseg_jax.main --config=CONFIG --workdir=DIR [--mode=MODE]
[--config.SECTION.FIELD=VALUE ...] [RUN ...]
"""

import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from absl import logging as absl_logging

from emseg_jax import command_help, config_io, processes
from emseg_jax.config import Config
from emseg_jax.errors import ConfigError, DataError, EmsegError
from emseg_jax.interrupt import StopFlag, catch_signals

__all__ = ['main', 'run']

LOGGER = logging.getLogger('emseg_jax')
MODES = (
  'train',
  'evaluate',
  'predict',
  'check',
  'report',
  'models',
  'benchmark',
  'prepare',
  'fuse',
  'compare',
)
WHAT = ('network', 'data')
TAKE_RUNS = ('fuse', 'compare')  # their work directories follow the flags


def _define_flags() -> flags.FlagValues:
  """Our flags only, in a set of their own: libraries define dozens in the global one."""
  values = flags.FlagValues()

  def text(name: str, meaning: str) -> None:
    flags.DEFINE_string(name, None, meaning, flag_values=values)

  text('config', 'configuration: FILE.py[:ARG], FILE.json, or a shipped NAME[:ARG]')
  text('workdir', 'folder of the run: configuration, checkpoints, metrics, report')
  flags.DEFINE_enum('mode', 'train', MODES, 'what to do', flag_values=values)
  text('input', 'what to predict, or segmentation to evaluate, or published files to prepare')
  text('labels', 'ground truth for --mode=evaluate --input')
  text('output', 'where predict writes; file for what other modes print')
  flags.DEFINE_enum('what', 'network', WHAT, 'what --mode=benchmark measures', flag_values=values)
  flags.DEFINE_bool(
    'partial', False, 'prepare from a part of the published files', flag_values=values
  )
  text('roi', 'box to predict: z0:z1,y0:y1,x0:x1')
  text('part', 'i/n: predict the i-th of n shares of a volume, from 0')
  text('coordinator', 'host:port of process 0, of several that train together')
  for name, meaning in (('num_processes', 'how many'), ('process_id', 'which of them, from 0')):
    flags.DEFINE_integer(name, None, meaning, flag_values=values)
  flags.DEFINE_bool('dry_run', False, 'only say what predict would do', flag_values=values)
  flags.DEFINE_bool('extend', False, 'allow more train.steps than before', flag_values=values)
  return values


def main(argv: Sequence[str]) -> int:
  """Runs one mode and returns the exit code: 0, 2 bad input, 3 training failed, 75 interrupted.

  Args:
    argv: as sys.argv, the program's name first.
  """
  if any(a in ('-h', '--help', '-help', '--helpfull', 'help') for a in argv[1:]):
    print(command_help.text(fields='--helpfull' in argv))
    return 0
  _log_to_stderr()
  try:
    values, overrides, runs = _parse(argv)
    if values.mode == 'models':
      _models(values)
      return 0
    if values.mode == 'benchmark' and values.what == 'data':
      _benchmark_data(values)
      return 0
    if values.mode in TAKE_RUNS:
      with catch_signals() as stop:
        _with_runs(values, overrides, runs, stop)
      return 0
    config = _load_config(values, overrides)
    with catch_signals() as stop:
      _dispatch(values, config, stop, command=' '.join(['python -m emseg_jax.main', *argv[1:]]))
  except EmsegError as error:
    LOGGER.error('%s: %s', type(error).__name__, error)
    return error.exit_code
  return 0


def _parse(argv: Sequence[str]) -> tuple[flags.FlagValues, list[str], list[Path]]:
  prefix = '--config.'
  overrides = [a.removeprefix(prefix) for a in argv if a.startswith(prefix)]
  argv = ['--dry_run' if a == '--dry-run' else a for a in argv]  # both are usual
  values = _define_flags()
  try:
    rest = values([a for a in argv if not a.startswith(prefix)])
  except flags.Error as error:
    raise ConfigError(f'{error}; --help lists all flags') from error
  if len(rest) > 1 and values.mode not in TAKE_RUNS:
    raise ConfigError(f'{rest[1]!r} is not a flag; flags start with --, see --help')
  if values.roi:
    overrides.append(f'predict.roi={values.roi}')
  return values, overrides, [Path(run) for run in rest[1:]]


def _part(text: str | None) -> tuple[int, int] | None:
  """'2/8' -> (2, 8)."""
  if text is None:
    return None
  found = re.fullmatch(r'(\d+)/(\d+)', text)
  if found is None or int(found[1]) >= int(found[2]):
    raise ConfigError(f'--part={text}: must be i/n with i from 0 to n - 1, such as 0/4')
  return int(found[1]), int(found[2])


def _load_config(values: flags.FlagValues, overrides: Sequence[str]) -> Config:
  """From --config, else from the work directory; the overrides on top."""
  from emseg_jax import workdir

  if values.config:
    config = config_io.load(values.config)
  elif values.workdir and (Path(values.workdir) / 'config.json').exists():
    config = workdir.read_config(Path(values.workdir))
  elif values.mode == 'evaluate' and values.input:
    raise ConfigError(
      '--mode=evaluate --input: needs --config or --workdir for classes and label mapping'
    )
  else:
    raise ConfigError(
      f'--mode={values.mode}: needs --config (a file, or one of: {", ".join(config_io.shipped())}) '
      'or a --workdir that holds a run'
    )
  return config_io.apply_overrides(config, overrides)


def _dispatch(values: flags.FlagValues, config: Config, stop: StopFlag, *, command: str) -> None:
  mode = values.mode
  if mode == 'check':
    _check(values, config)
    return
  if mode == 'benchmark':
    _benchmark(values, config)
    return
  if mode == 'prepare':
    _prepare(values, config, stop)
    return
  scoring = mode == 'evaluate' and values.input
  needed = ['workdir'] if not scoring else ['labels']
  needed += ['input', 'output'] if mode == 'predict' else []
  for name in needed:
    if not getattr(values, name):
      raise ConfigError(f'--mode={mode}: needs --{name}')
  folder = Path(values.workdir) if values.workdir else None
  group = processes.find_group(
    coordinator=values.coordinator, count=values.num_processes, index=values.process_id
  )
  together = mode in ('train', 'evaluate') and not scoring
  _prepare_devices(config, group if together else None)
  from emseg_jax import api  # jax is imported only now, when its environment is set

  if mode == 'train':
    if values.config and values.config.split(':')[0] in ('auto', 'configs/auto.py'):
      from emseg_jax import auto

      LOGGER.info(auto.explain(config))
    api.train(config, folder, extend=values.extend, should_stop=stop, command=command)
  elif scoring:
    output = Path(values.output) if values.output else None
    api.score(config, values.input, values.labels, output=output)
  elif mode == 'evaluate':
    api.evaluate(config, folder, should_stop=stop)
  elif mode == 'predict':
    api.predict(
      config,
      folder,
      values.input,
      Path(values.output),
      part=_part(values.part) or processes.share(group),
      dry_run=values.dry_run,
      should_stop=stop,
    )
  else:
    LOGGER.info('-> %s', api.report(config, folder, command=None))


def _with_runs(
  values: flags.FlagValues, overrides: Sequence[str], runs: Sequence[Path], stop: StopFlag
) -> None:
  """The modes that work on several work directories."""
  mode = values.mode
  for name in ('input', 'output') if mode == 'fuse' else ('output',):
    if not getattr(values, name):
      raise ConfigError(f'--mode={mode}: needs --{name}')
  if not runs:
    raise ConfigError(f'--mode={mode}: needs work directories behind the flags')
  from emseg_jax import workdir

  configs = [config_io.apply_overrides(workdir.read_config(run), overrides) for run in runs]
  if mode == 'compare':
    from emseg_jax.report import compare

    print(compare.write_comparison(runs, configs, Path(values.output)))
    return
  _prepare_devices(configs[0])
  from emseg_jax import api

  api.fuse(configs, runs, values.input, Path(values.output), should_stop=stop)


def _check(values: flags.FlagValues, config: Config) -> None:
  """Prints the data doctor's findings; raises if training could not go well."""
  from emseg_jax import auto, check

  if values.config and values.config.split(':')[0] in ('auto', 'configs/auto.py'):
    print(auto.explain(config))
  report = check.check(config)
  print(check.format_report(report))
  if values.output:
    check.write(report, config, Path(values.output))
  if not report.ok:
    raise DataError('the data are not ready to train on; see the errors above')


def _prepare(values: flags.FlagValues, config: Config, stop: StopFlag) -> None:
  """Builds the data sets that the configuration reads."""
  from emseg_jax import prepare

  reports = prepare.prepare_config(
    config,
    source=Path(values.input) if values.input else None,
    output=Path(values.output) if values.output else None,
    partial=values.partial,
    should_stop=stop,
  )
  for report in reports:
    print(prepare.format_report(report))


def _models(values: flags.FlagValues) -> None:
  """Prints the table of networks; --output writes it as Markdown."""
  from emseg_jax import zoo

  table = zoo.rows()
  print(zoo.format_text(table))
  if values.output:
    config_io.write_text(Path(values.output), zoo.format_markdown(table))


def _benchmark(values: flags.FlagValues, config: Config) -> None:
  """Prints how fast the configuration runs here; --output writes it as JSON."""
  _prepare_devices(config)
  from emseg_jax import benchmark

  result = benchmark.benchmark(config)
  print(benchmark.format_text(result))
  if values.output:
    config_io.write_text(Path(values.output), json.dumps(result.to_json(), indent=2) + '\n')


def _benchmark_data(values: flags.FlagValues) -> None:
  """Prints how fast training data are read here; --output writes it as Markdown."""
  from emseg_jax import data_benchmark

  rows = data_benchmark.benchmark_data(
    report=lambda row: LOGGER.info(data_benchmark.format_text([row]).splitlines()[1])
  )
  print(data_benchmark.format_text(rows))
  if values.output:
    config_io.write_text(Path(values.output), data_benchmark.format_markdown(rows))


def _prepare_devices(config: Config, group: processes.Group | None = None) -> None:
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
      'pip install "emseg_jax[cuda13]" (or cuda12)'
    )


def _log_to_stderr() -> None:
  """Our own messages as plain lines; libraries only when something is wrong."""
  handler = logging.StreamHandler(sys.stderr)
  handler.setFormatter(logging.Formatter('%(message)s'))
  LOGGER.handlers = [handler]
  LOGGER.setLevel(logging.INFO)
  LOGGER.propagate = False
  absl_logging.set_verbosity(absl_logging.ERROR)


def run() -> None:
  """Entry point of `python -m emseg_jax.main` and of the `emseg_jax` command."""
  flags.FLAGS(['emseg_jax'])  # libraries that read absl's global flags need them parsed
  sys.exit(main(sys.argv))


if __name__ == '__main__':
  run()
