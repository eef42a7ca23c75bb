"""The command line: flags, logging, configuration, one of `modes`.

python -m emseg_jax.main --config=CONFIG --workdir=DIR [--mode=MODE]
[--config.SECTION.FIELD=VALUE ...] [RUN ...]
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from absl import logging as absl_logging

from emseg_jax import command_help, config_io, mode_help, modes
from emseg_jax.call import Call, is_auto
from emseg_jax.config import Config
from emseg_jax.errors import ConfigError, EmsegError
from emseg_jax.interrupt import Terminated, catch_signals, end_cleanly

__all__ = ['main', 'run']

LOGGER = logging.getLogger('emseg_jax')
WHAT = ('network', 'data')
TAKE_RUNS = ('fuse', 'compare')  # their work directories follow the flags
WITHOUT_CONFIG = ('models', 'postprocess', 'view', *TAKE_RUNS)  # or with the defaults


def _define_flags() -> flags.FlagValues:
  """Our flags only, in a set of their own: libraries define dozens in the global one."""
  values = flags.FlagValues()

  def text(name: str, meaning: str) -> None:
    flags.DEFINE_string(name, None, meaning, flag_values=values)

  text('config', 'configuration: FILE.py[:ARG], FILE.json, or a shipped NAME[:ARG]')
  text('workdir', 'folder of the run: configuration, checkpoints, metrics, report')
  flags.DEFINE_enum('mode', 'train', modes.MODES, 'what to do', flag_values=values)
  text('input', 'what to predict, evaluate or postprocess, or published files to prepare')
  text('labels', 'ground truth for --mode=evaluate --input')
  text('output', 'where predict writes; file for what other modes print')
  flags.DEFINE_enum('what', 'network', WHAT, 'what --mode=benchmark measures', flag_values=values)
  flags.DEFINE_bool(
    'partial', False, 'prepare from a part of the published files', flag_values=values
  )
  flags.DEFINE_integer('port', 0, 'of --mode=view; 0: a free one', flag_values=values)
  text('title', 'name of an exported model')
  text('authors', 'of an exported model, separated by commas')
  flags.DEFINE_string('forms', 'stablehlo', 'what export writes beside', flag_values=values)
  flags.DEFINE_bool('unscored', False, 'bf16 and int8 unmeasured', flag_values=values)
  text('licence', 'of the parameters of an exported model, an SPDX identifier')
  text('roi', 'box to predict: z0:z1,y0:y1,x0:x1')
  text('part', 'i/n: predict the i-th of n shares of a volume, from 0')
  text('coordinator', 'host:port of process 0, of several that train together')
  for name, meaning in (('num_processes', 'how many'), ('process_id', 'which of them, from 0')):
    flags.DEFINE_integer(name, None, meaning, flag_values=values)
  flags.DEFINE_bool('dry_run', False, 'only say what predict would do', flag_values=values)
  flags.DEFINE_bool('quiet', False, 'warnings and errors only', flag_values=values)
  flags.DEFINE_bool('json', False, 'the result as JSON on stdout', flag_values=values)
  flags.DEFINE_bool('extend', False, 'allow more train.steps than before', flag_values=values)
  return values


def main(argv: Sequence[str]) -> int:
  """Runs one mode and returns the exit code.

  0 done, 2 bad input, 3 training failed, 75 stopped and saved, 130 interrupted, 143 terminated.

  Args:
    argv: as sys.argv, the program's name first.
  """
  if any(a in ('-h', '--help', '-help', '--helpfull', 'help') for a in argv[1:]):
    mode = _mode_of(argv)
    full = '--helpfull' in argv
    known = mode in mode_help.MODES and not full
    print(mode_help.text(mode) if known else command_help.text(fields=full), flush=True)
    return 0
  handler = _log_to_stderr()
  try:
    values, overrides, runs = _parse(argv)
    if values.quiet:  # log.txt of a run has everything
      handler.setLevel(logging.WARNING)
    modes.check_needed(values, runs)
    config = _load_config(values, overrides)
    command = ' '.join(['python -m emseg_jax.main', *argv[1:]])
    # Other modes end at the first signal.
    with catch_signals() if values.mode in modes.STOP_AND_SAVE else end_cleanly() as stop:
      found = modes.MODES[values.mode](Call(values, config, overrides, runs, stop, command))
    if found is not None:
      found.show(as_json=values.json)
  except EmsegError as error:
    LOGGER.error('%s: %s', type(error).__name__, error)
    return error.exit_code
  except KeyboardInterrupt:
    LOGGER.error('Interrupted.')
    return 130  # as shells say it
  except Terminated:
    LOGGER.error('Terminated.')
    return 143
  return 0


def _mode_of(argv: Sequence[str]) -> str | None:
  """What --mode says, if anything."""
  for i, argument in enumerate(argv):
    name, equals, value = argument.lstrip('-').partition('=')
    if name == 'mode' and argument.startswith('-'):
      return value if equals else ' '.join(argv[i + 1 : i + 2])
  return None


def _parse(argv: Sequence[str]) -> tuple[flags.FlagValues, list[str], list[Path]]:
  prefix = '--config.'
  overrides = [a.removeprefix(prefix) for a in argv if a.startswith(prefix)]
  argv = ['--dry_run' if a == '--dry-run' else a for a in argv]  # both are usual
  values = _define_flags()
  try:
    rest = values([a for a in argv if not a.startswith(prefix)])
  except flags.Error as error:
    raise ConfigError(f'{error}; --help lists all flags') from error
  if len(rest) > 1 and values.mode not in (*TAKE_RUNS, 'view'):
    raise ConfigError(f'{rest[1]!r} is not a flag; flags start with --, see --help')
  if values.roi:
    overrides.append(f'predict.roi={values.roi}')
  return values, overrides, [Path(run) for run in rest[1:]]


def _load_config(values: flags.FlagValues, overrides: Sequence[str]) -> Config:
  """From --config, else from the work directory; the overrides on top."""
  from emseg_jax import workdir

  if values.config:
    config = config_io.load(values.config)
    if is_auto(values.config) and any(o.startswith('model.init_from=') for o in overrides):
      from emseg_jax import fine_tune

      config = fine_tune.take_over(config, overrides)
  elif values.workdir and (Path(values.workdir) / 'config.json').exists():
    config = workdir.read_config(Path(values.workdir))
  elif values.mode == 'predict' and (Path(values.workdir) / 'model.json').exists():
    from emseg_jax import bundle

    config = bundle.read_config(values.workdir)
  elif values.mode in WITHOUT_CONFIG or values.what == 'data':
    config = Config()
  elif values.mode == 'evaluate' and values.input:
    raise ConfigError(
      '--mode=evaluate --input: needs --config or --workdir for classes and label mapping'
    )
  else:
    raise ConfigError(
      f'--mode={values.mode}: needs --config (a file, or one of: {", ".join(config_io.shipped())}) '
      'or a --workdir that holds a run'
    )
  # Those of several runs are applied to each of them.
  return config if values.mode in TAKE_RUNS else config_io.apply_overrides(config, overrides)


def _log_to_stderr() -> logging.Handler:
  """Our own messages as plain lines; libraries only when something is wrong."""
  handler = logging.StreamHandler(sys.stderr)
  handler.setFormatter(logging.Formatter('%(message)s'))
  LOGGER.handlers = [handler]
  LOGGER.setLevel(logging.INFO)
  LOGGER.propagate = False
  absl_logging.set_verbosity(absl_logging.ERROR)
  return handler


def run() -> None:
  """Entry point of `python -m emseg_jax.main` and of the `emseg_jax` command."""
  flags.FLAGS(['emseg_jax'])  # libraries that read absl's global flags need them parsed
  try:
    code = main(sys.argv)
    sys.stdout.flush()
  except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's flush at exit
    code = 141  # as of programs that SIGPIPE ends
  sys.exit(code)


if __name__ == '__main__':
  run()
