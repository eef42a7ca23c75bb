"""Finished runs side by side: one table in Markdown and HTML, and figures.

Runs that differ in nothing but the seed or the fold are one row: their scores are averaged. A row
has what a paper's table has, with the paper's own number beside it where the configuration knows
one (run.published).
"""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emseg_jax import config as config_lib
from emseg_jax import config_io, metric_writer, metrics, zoo
from emseg_jax.errors import DataError, OutputError
from emseg_jax.report import compare_figures

__all__ = ['Row', 'collect', 'write_comparison']

SPLITS = ('test', 'validation')  # the first one that was scored counts
# What may differ between the runs of one row, beside what never changes a result.
_SAME_ROW = ('train.seed', 'data.train', 'data.validation', 'data.test')
HEADER = (
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


@dataclasses.dataclass(frozen=True)
class Run:
  """One finished run: its folder, its configuration, the split that counts and its scores."""

  folder: Path
  config: config_lib.Config
  split: str
  evaluation: Mapping[str, Any]
  records: tuple[Mapping[str, Any], ...]

  def score(self, name: str) -> float | None:
    """A score by the name that eval.best would use."""
    flat = metrics.flat(self.evaluation['scores']) | metrics.flat(self.evaluation['extras'])
    return flat.get(name)


@dataclasses.dataclass(frozen=True)
class Row:
  """Runs of one experiment.

  Attributes:
    runs: at least one; they differ in seed or fold only.
    setting: the fields in which it differs from the first row.
    parameters: trainable scalars.
    gflops: of one forward pass of one patch.
    images_per_second: median of the training log.
  """

  runs: tuple[Run, ...]
  setting: str
  parameters: int
  gflops: float
  images_per_second: float | None

  @property
  def config(self) -> config_lib.Config:
    return self.runs[0].config

  @property
  def fraction(self) -> float:
    """Share of the training sections that was used."""
    return self.config.data.train[0].fraction

  def scores(self, name: str) -> list[float]:
    """The score of every run that has it."""
    found = (run.score(name) for run in self.runs)
    return [value for value in found if value is not None]


def write_comparison(
  folders: Sequence[Path], configs: Sequence[config_lib.Config], output: Path
) -> str:
  """Writes comparison.md, comparison.html and the figures into a folder; returns the table.

  Args:
    folders: work directories of finished runs.
    configs: their configurations.
    output: folder, created if missing.

  Raises:
    DataError: a run has no evaluation, or one of its files is damaged.
    OutputError: the folder cannot be written.
  """
  rows = collect(folders, configs)
  cells = [_cells(row) for row in rows]
  figures = compare_figures.draw(rows)
  markdown = '\n'.join(f'| {" | ".join(line)} |' for line in (HEADER, ('---',) * 13, *cells))
  pictures = '\n'.join(f'![{name}]({name}.svg)' for name in figures)
  try:
    output.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise OutputError(f'{output}: cannot be created: {error.strerror}') from error
  for name, svg in figures.items():
    config_io.write_text(output / f'{name}.svg', svg)
  config_io.write_text(output / 'comparison.md', f'{markdown}\n\n{pictures}\n')
  config_io.write_text(output / 'comparison.html', compare_figures.page(HEADER, cells, figures))
  return markdown


def collect(folders: Sequence[Path], configs: Sequence[config_lib.Config]) -> list[Row]:
  """Reads the runs and groups them into rows, in the order in which they are given.

  Raises:
    DataError: a run has no evaluation, or one of its files is damaged.
  """
  groups: list[list[Run]] = []
  for folder, config in zip(folders, configs, strict=True):
    run = _read(folder, config)
    same = (group for group in groups if not _differences(group[0].config, config))
    group = next(same, None)
    if group is None:
      groups.append([run])
    else:
      group.append(run)
  return [_row(tuple(group), groups[0][0].config) for group in groups]


def _read(folder: Path, config: config_lib.Config) -> Run:
  for split in SPLITS:
    path = folder / 'evaluation' / f'{split}.json'
    if not path.is_file():
      continue
    try:
      evaluation = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
      raise DataError(f'{path}: is damaged: {error}; run --mode=evaluate again') from error
    records = tuple(metric_writer.read_records(folder / 'metrics.jsonl'))
    return Run(folder, config, split, evaluation, records)
  raise DataError(f'{folder}: holds no evaluation of {" or ".join(SPLITS)}; run --mode=evaluate')


def _differences(a: config_lib.Config, b: config_lib.Config) -> list[str]:
  """Differing fields that make runs different experiments; folds are other sections of one file."""
  changed = [
    text for text in config_io.differences(a, b) if not text.startswith((*_SAME_ROW, 'run.'))
  ]
  return changed + [f'data: {_data(b)}'] * (_sources(a) != _sources(b))


def _sources(config: config_lib.Config) -> set[tuple[Any, ...]]:
  return {(s.images, s.labels, s.phantom, s.fraction) for s in config.data.train}


def _row(runs: tuple[Run, ...], first: config_lib.Config) -> Row:
  config = runs[0].config
  entry = zoo.Entry(
    config.model.name,
    '',
    config.data.channels,
    config.task.num_logits,
    options=config.model.options,
  )
  counted = zoo.describe(entry, size=config.data.patch)
  rates = [
    record['perf/images_per_sec']
    for run in runs
    for record in run.records
    if 'perf/images_per_sec' in record
  ]
  differing = [text for text in _differences(first, config) if not text.startswith('model.name')]
  return Row(
    runs=runs,
    setting='; '.join(differing),
    parameters=counted.parameters,
    gflops=counted.gflops,
    images_per_second=statistics.median(rates) if rates else None,
  )


def _cells(row: Row) -> tuple[str, ...]:
  config = row.config
  names = config.run.published
  return (
    config.model.name,
    row.setting or '-',
    _data(config),
    row.runs[0].split,
    str(len(row.runs)),
    _mean(row.scores('miou')),
    _mean(row.scores('accuracy')),
    ', '.join(f'{name} {value:.4g}' for name, value in names.items()) or '-',
    ', '.join(f'{name} {_mean(row.scores(name))}' for name in names) or '-',
    f'{row.parameters:,}',
    f'{row.gflops:,.1f}',
    '-' if row.images_per_second is None else f'{row.images_per_second:.3g}',
    config.run.protocol or '-',
  )


def _mean(values: Sequence[float]) -> str:
  """Mean and standard deviation over runs."""
  if not values:
    return '-'
  if len(values) == 1:
    return f'{values[0]:.4f}'
  return f'{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}'


def _data(config: config_lib.Config) -> str:
  """The training sources, each path once, without the folders that all have in common."""
  parts = []
  for source in config.data.train:
    name = f'phantom-{source.phantom.seed}' if source.phantom else '/'.join(_tail(source.images))
    share = f' ({source.fraction:.0%})' if source.fraction < 1 else ''
    parts.append(name + share)
  return ', '.join(dict.fromkeys(parts))


def _tail(path: str) -> tuple[str, ...]:
  return Path(path).parts[-3:]
