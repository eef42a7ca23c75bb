"""The modes that run no network: what they do with the flags; see `modes`."""

import logging
from pathlib import Path

from emseg_jax import config_io
from emseg_jax.call import Call, configs_of_runs, explain_auto
from emseg_jax.errors import DataError
from emseg_jax.outcome import Outcome

__all__ = ['check', 'compare', 'models', 'postprocess', 'prepare', 'view']

LOGGER = logging.getLogger('emseg_jax')


def postprocess(call: Call) -> Outcome:
  from emseg_jax import postprocess
  from emseg_jax.postprocess import affinities

  source, task, maps = call.flags.input, call.config.task, None
  if task.affinities:
    maps = affinities.map_paths(source, dict(zip(task.offsets, task.offset_names, strict=True)))
  result = postprocess.postprocess(
    source, call.output, call.config.postprocess, maps=maps, should_stop=call.stop
  )
  if result.table is not None:
    LOGGER.info('%d objects, %s', result.count, result.table)
  LOGGER.info('-> %s', result.path)
  return Outcome({'written': result.path, 'table': result.table, 'objects': result.count})


def view(call: Call) -> None:
  from emseg_jax import view

  affinities = call.config.task.affinities  # whose labels are numbers, no classes
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
    legend=view.legend(call.config) if call.flags.workdir and not affinities else None,
    reading=call.config.predict.reading,
  )


def check(call: Call) -> Outcome:
  """The data doctor's findings, with an error if training could not go well."""
  from emseg_jax import check

  report = check.check(call.config)
  if call.output:
    check.write(report, call.config, call.output)
  not_ready = DataError('the data are not ready to train on; see the errors above')
  error = None if report.ok else not_ready
  text = '\n'.join(filter(None, (explain_auto(call), check.format_report(report))))
  return Outcome(report.to_json(), text, error)


def prepare(call: Call) -> Outcome:
  """Builds the data sets that the configuration reads."""
  from emseg_jax import prepare

  reports = prepare.prepare_config(
    call.config,
    source=Path(call.flags.input) if call.flags.input else None,
    output=call.output,
    partial=call.flags.partial,
    should_stop=call.stop,
  )
  return Outcome({'data_sets': reports}, '\n'.join(map(prepare.format_report, reports)))


def models(call: Call) -> Outcome:
  """The table of networks; --output writes it as Markdown."""
  from emseg_jax import zoo

  table = zoo.rows()
  if call.output:
    config_io.write_text(call.output, zoo.format_markdown(table))
  return Outcome({'networks': [row.to_json() for row in table]}, zoo.format_text(table))


def compare(call: Call) -> Outcome:
  configs = configs_of_runs(call)
  from emseg_jax.report import compare

  made = compare.write_comparison(call.runs, configs, call.output)
  return Outcome({'written': call.output, 'rows': made.rows}, made.table)
