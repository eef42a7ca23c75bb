"""Finished runs side by side: one table in Markdown and HTML, and figures.

The scores of a row are means over its runs. A row has what a paper's table has, with the paper's
own number beside it where the configuration knows one (run.published).
"""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emseg_jax import config as config_lib
from emseg_jax import config_io
from emseg_jax.errors import OutputError
from emseg_jax.report import compare_figures, compare_rows

__all__ = ['Comparison', 'write_comparison']

HEADER = (
  '#',
  'network',
  'setting',
  'data',
  'split',
  'runs',
  'mIoU',
  'accuracy',
  'as published',
  'ours',
  'parameters',
  'GFLOPs',
  'images/s',
  'protocol',
)
NOTE = (
  'Mean ± standard deviation over the runs of a row, which differ in seed or fold. Setting: where '
  'rows of one network and data differ, and steps, batch size and patch where any rows do. GFLOPs: '
  'of one forward pass of one patch. Images/s: patches trained on per second.'
)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Attributes:
  table: in Markdown.
  rows: the same in types that JSON knows, scores as one number per run.
  """

  table: str
  rows: list[dict[str, Any]]


def write_comparison(
  folders: Sequence[Path], configs: Sequence[config_lib.Config], output: Path
) -> Comparison:
  """Writes comparison.md, comparison.html and the figures into a folder.

  Args:
    folders: work directories of finished runs.
    configs: their configurations.
    output: folder, created if missing.

  Raises:
    ConfigError: a run is given twice, or has a network that is not known.
    DataError: a run has no evaluation, or one of its files is damaged.
    OutputError: the folder cannot be written.
  """
  rows = compare_rows.collect(folders, configs)
  cells = [_cells(row) for row in rows]
  figures = compare_figures.draw(rows)
  table = _markdown(cells)
  pictures = '\n'.join(f'![{name}]({name}.svg)' for name in figures)
  try:
    output.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise OutputError(f'{output}: cannot be created: {error.strerror}') from error
  for name, svg in figures.items():
    config_io.write_text(output / f'{name}.svg', svg)
  config_io.write_text(output / 'comparison.md', f'{table}\n\n{NOTE}\n\n{pictures}\n')
  page = compare_figures.page(HEADER, cells, note=NOTE, figures=figures)
  config_io.write_text(output / 'comparison.html', page)
  return Comparison(table, [_record(row) for row in rows])


def _record(row: compare_rows.Row) -> dict[str, Any]:
  config = row.config
  names = dict.fromkeys(('miou', 'accuracy', *config.run.published))
  return {
    'number': row.number,
    'network': config.model.name,
    'setting': row.setting,
    'data': row.data,
    'fraction': row.fraction,
    'split': row.runs[0].split,
    'runs': len(row.runs),
    'scores': {name: row.scores(name) for name in names},
    'published': config.run.published,
    'parameters': row.parameters,
    'gflops': row.gflops,
    'images_per_second': row.images_per_second,
    'protocol': config.run.protocol,
  }


def _cells(row: compare_rows.Row) -> tuple[str, ...]:
  config = row.config
  published = config.run.published
  share = f' ({row.fraction:.0%})' if row.fraction < 1 else ''
  return (
    str(row.number),
    config.model.name,
    row.setting or '-',
    row.data + share,
    row.runs[0].split,
    str(len(row.runs)),
    _mean(row.scores('miou')),
    _mean(row.scores('accuracy')),
    ', '.join(f'{name} {value:.4g}' for name, value in published.items()) or '-',
    ', '.join(f'{name} {_mean(row.scores(name))}' for name in published) or '-',
    f'{row.parameters:,}',
    f'{row.gflops:.3g}' if row.gflops < 100 else f'{row.gflops:,.0f}',
    '-' if row.images_per_second is None else f'{row.images_per_second:.3g}',
    config.run.protocol or '-',
  )


def _markdown(cells: Sequence[Sequence[str]]) -> str:
  lines = (HEADER, ('---',) * len(HEADER), *cells)
  escaped = ([' '.join(text.split()).replace('|', r'\|') for text in line] for line in lines)
  return '\n'.join(f'| {" | ".join(line)} |' for line in escaped)


def _mean(values: Sequence[float]) -> str:
  """Mean and standard deviation over runs."""
  if not values:
    return '-'
  if len(values) == 1:
    return f'{values[0]:.4f}'
  return f'{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}'
