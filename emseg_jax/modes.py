"""What each --mode does with the flags: devices, then one function of `api` or its like. What it
found out comes back as an `Outcome`, of several processes that of the first one only.

Modules that start JAX are imported inside the modes, when the environment is set; those that need
no device never do.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from emseg_jax import config_io, outcome, processes, tool_modes
from emseg_jax.call import Call, configs_of_runs, explain_auto
from emseg_jax.config import Config
from emseg_jax.devices import prepare_devices
from emseg_jax.errors import ConfigError, EmsegError
from emseg_jax.outcome import Outcome

__all__ = ['MODES', 'STOP_AND_SAVE', 'Call', 'check_needed']

LOGGER = logging.getLogger('emseg_jax')


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
  if mode == 'view' and values.json:
    raise ConfigError('--json: --mode=view serves until it is stopped, it has no result')
  if mode in ('fuse', 'compare') and not runs:
    raise ConfigError(f'--mode={mode}: needs work directories behind the flags')


def _train(call: Call) -> Outcome | None:
  prepare_devices(call.config, _group(call))
  from emseg_jax import api

  if found := explain_auto(call):
    LOGGER.info('%s', found)
  result = api.train(
    call.config,
    call.workdir,
    extend=call.flags.extend,
    should_stop=call.stop,
    command=call.command,
  )
  if not processes.is_first():
    return None
  splits = [s for s in ('validation', 'test') if getattr(call.config.data, s)]
  scores = {split: _evaluation(call.workdir, split)['scores'] for split in splits}
  return Outcome({'workdir': call.workdir, **dataclasses.asdict(result), 'scores': scores})


def _evaluation(folder: Path, split: str) -> dict[str, Any]:
  """What an evaluation wrote."""
  return json.loads((folder / 'evaluation' / f'{split}.json').read_text(encoding='utf-8'))


def _evaluate(call: Call) -> Outcome | None:
  if call.flags.input:
    prepare_devices(call.config)
    from emseg_jax import api, instance_evaluation

    result = api.score(call.config, call.flags.input, call.flags.labels, output=call.output)
    text = instance_evaluation.format_evaluation(result)
    return Outcome(result.to_json(step=None, split=call.flags.input), text)
  prepare_devices(call.config, _group(call))
  from emseg_jax import api, instance_evaluation

  result = api.evaluate(call.config, call.workdir, should_stop=call.stop)
  if not processes.is_first():
    return None
  if call.config.run.report:
    _write_report_again(call)
  record = _evaluation(call.workdir, call.config.eval.split)
  return Outcome(record, instance_evaluation.format_evaluation(result))


def _write_report_again(call: Call) -> None:
  """So that it shows the new scores; they are written even if, say, images have moved away."""
  from emseg_jax import api

  try:
    LOGGER.info('Report: %s', api.report(call.config, call.workdir, command=None))
  except EmsegError as error:
    LOGGER.warning('The scores are written, but the report is not: %s', error)


def _predict(call: Call) -> Outcome:
  # Several processes do not predict together: each takes a share of the volume.
  part = _part(call.flags.part) or processes.share(_group(call))
  prepare_devices(call.config)
  from emseg_jax import api

  given = (call.config, call.workdir, call.flags.input, call.output)
  if call.flags.dry_run:
    plan = api.plan(*given)
    return Outcome({'plan': plan}, '\n'.join(f'{key:12}{text}' for key, text in plan.items()))
  return Outcome({'written': api.predict(*given, part=part, should_stop=call.stop)})


def _part(text: str | None) -> tuple[int, int] | None:
  """'2/8' -> (2, 8)."""
  if text is None:
    return None
  found = re.fullmatch(r'(\d+)/(\d+)', text)
  if found is None or int(found[1]) >= int(found[2]):
    raise ConfigError(f'--part={text}: must be i/n with i from 0 to n - 1, such as 0/4')
  return int(found[1]), int(found[2])


def _export(call: Call) -> Outcome:
  prepare_devices(call.config)
  from emseg_jax.export import run

  values = call.flags
  forms = run.forms_named(
    _listed(values.forms), authors=_listed(values.authors), measure=not values.unscored
  )
  bundle = run.export_run(
    call.config, call.workdir, call.output, title=values.title, licence=values.licence, forms=forms
  )
  return Outcome({'written': call.output, 'forms': bundle.record.forms})


def _listed(text: str | None) -> list[str]:
  """'a, b' -> ['a', 'b']."""
  return [part.strip() for part in (text or '').split(',') if part.strip()]


def _report(call: Call) -> Outcome:
  prepare_devices(call.config)
  from emseg_jax import api

  path = api.report(call.config, call.workdir, command=None)
  LOGGER.info('-> %s', path)
  return Outcome({'written': path})


def _benchmark(call: Call) -> Outcome:
  """How fast the configuration runs here; --output writes it as JSON.

  With --what=data, how fast training data are read; --output writes it as Markdown.
  """
  if call.flags.what == 'data':
    from emseg_jax import data_benchmark

    rows = data_benchmark.benchmark_data(
      report=lambda row: LOGGER.info(data_benchmark.format_text([row]).splitlines()[1])
    )
    record = {'rows': [row.to_json() for row in rows]}
    text, written = data_benchmark.format_text(rows), data_benchmark.format_markdown(rows)
  else:
    prepare_devices(call.config, _group(call))
    from emseg_jax import benchmark

    result = benchmark.benchmark(call.config)
    if not processes.is_first():
      return Outcome({})
    text, record = benchmark.format_text(result), result.to_json()
    written = outcome.to_json(record) + '\n'
  if call.output:
    config_io.write_text(call.output, written)
  return Outcome(record, text)


def _fuse(call: Call) -> Outcome:
  configs = configs_of_runs(call)
  prepare_devices(configs[0])
  from emseg_jax import api

  path = api.fuse(configs, call.runs, call.flags.input, call.output, should_stop=call.stop)
  return Outcome({'written': path, 'values': _fused(configs)})


def _fused(configs: Sequence[Config]) -> dict[int, str]:
  """Value in the map -> structure."""
  return {value: config.task.classes[1] for value, config in enumerate(configs, start=1)}


MODES: Mapping[str, Callable[[Call], Outcome | None]] = {
  'train': _train,
  'evaluate': _evaluate,
  'predict': _predict,
  'postprocess': tool_modes.postprocess,
  'check': tool_modes.check,
  'view': tool_modes.view,
  'export': _export,
  'report': _report,
  'models': tool_modes.models,
  'benchmark': _benchmark,
  'prepare': tool_modes.prepare,
  'fuse': _fuse,
  'compare': tool_modes.compare,
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
