"""The rows of a comparison: finished runs, grouped into experiments, with what tells those apart.

Runs that differ in nothing but the seed or the fold are one row.
"""

import dataclasses
import functools
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emseg_jax import config as config_lib
from emseg_jax import config_io, metric_writer, metrics, zoo
from emseg_jax.errors import ConfigError, DataError

__all__ = ['Row', 'Run', 'collect']

SPLITS = ('test', 'validation')  # the first one that was scored counts
# What may differ between the runs of one row: what changes no result, and what makes folds.
_SAME_ROW = (
  *config_io.FREE_FIELDS,
  'train.seed',
  'data.train',
  'data.validation',
  'data.test',
)
# Shown wherever two rows differ in them; other fields only for rows of one network and data.
_EFFORT = ('data.patch', 'train.batch_size', 'train.steps')


@dataclasses.dataclass(frozen=True)
class Run:
  """One finished run: its configuration, the split that counts, its scores and its log.

  `scores` has the names that eval.best uses.
  """

  config: config_lib.Config
  split: str
  scores: Mapping[str, float]
  records: tuple[Mapping[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Row:
  """Runs of one experiment.

  Attributes:
    number: from 1 on.
    runs: at least one; they differ in seed or fold only.
    setting: 'field=value; ...' that tells it from rows of the same network and data.
    line: what it has in common with rows that differ in the share of training sections only.
    parameters: trainable scalars.
    gflops: of one forward pass of one patch.
    images_per_second: median of the training log.
  """

  number: int
  runs: tuple[Run, ...]
  setting: str
  line: str
  parameters: int
  gflops: float
  images_per_second: float | None

  @property
  def config(self) -> config_lib.Config:
    return self.runs[0].config

  @property
  def data(self) -> str:
    """The training sources, each path once and as its last three parts."""
    return _data(self.config)

  @property
  def fraction(self) -> float:
    """Share of the training sections that was used."""
    return _fraction(self.config)

  def scores(self, name: str) -> list[float]:
    """The score of every run that has it."""
    return [run.scores[name] for run in self.runs if name in run.scores]


def collect(folders: Sequence[Path], configs: Sequence[config_lib.Config]) -> list[Row]:
  """Reads the runs and groups them into rows, in the order in which they are given.

  Args:
    folders: work directories.
    configs: their configurations.

  Raises:
    ConfigError: a run is given twice, or has a network that is not known.
    DataError: a run has no evaluation, or it is damaged.
  """
  places = [folder.resolve() for folder in folders]
  twice = [str(f) for f, place in zip(folders, places, strict=True) if places.count(place) > 1]
  if twice:
    raise ConfigError(f'{" and ".join(twice)}: is given twice, but would count as one more run')
  groups: list[tuple[dict[str, Any], list[Run]]] = []
  for folder, config in zip(folders, configs, strict=True):
    run = _read(folder, config)
    experiment = _fields(config) | {'split': run.split, 'fraction': _fraction(config)}
    same = next((r for e, r in groups if e == experiment and _folds(r[0].config, config)), None)
    if same is None:
      groups.append((experiment, [run]))
    else:
      same.append(run)
  first = [runs[0].config for _, runs in groups]
  several = len({_data(config) for config in first}) > 1
  rows = []
  for number, ((_, runs), setting) in enumerate(zip(groups, _settings(first), strict=True), 1):
    config = runs[0].config
    parts = (config.model.name, setting, _data(config) if several else '')
    line = ' | '.join(part for part in parts if part)
    rows.append(_row(number, tuple(runs), setting, line))
  return rows


def _read(folder: Path, config: config_lib.Config) -> Run:
  for split in SPLITS:
    path = folder / 'evaluation' / f'{split}.json'
    if not path.is_file():
      continue
    try:
      evaluation = json.loads(path.read_text(encoding='utf-8'))
      scores = metrics.flat(evaluation['scores']) | metrics.flat(evaluation.get('extras', {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise DataError(f'{path}: is damaged ({error!r}); run --mode=evaluate again') from error
    records = tuple(metric_writer.read_records(folder / 'metrics.jsonl'))
    return Run(config, split, scores, records)
  raise DataError(f'{folder}: holds no evaluation of {" or ".join(SPLITS)}; run --mode=evaluate')


def _folds(a: config_lib.Config, b: config_lib.Config) -> bool:
  """Whether both use the same sections, or both train and score on others.

  Other sections in one of the two only make another experiment.
  """
  scored_alike = (a.data.validation, a.data.test) == (b.data.validation, b.data.test)
  return (a.data.train == b.data.train) == scored_alike


def _fraction(config: config_lib.Config) -> float:
  return config.data.train[0].fraction


def _fields(config: config_lib.Config) -> dict[str, Any]:
  """What makes an experiment, but for the share of sections: dotted name -> value, no None.

  Folds are other sections of the same files, so of the training sources only the files count.
  """
  flat = dict(_leaves(config.model_dump(mode='json'), ''))
  kept = {name: value for name, value in flat.items() if not name.startswith(_SAME_ROW)}
  for field in ('images', 'labels', 'phantom'):
    found = {str(getattr(source, field)) for source in config.data.train}
    kept[f'data.{field}'] = ', '.join(sorted(found))
  return {name: value for name, value in kept.items() if value is not None}


def _sections(config: config_lib.Config) -> dict[str, str]:
  """Which sections of their files are used: 'data.train' -> '0:10, 20:30'."""
  return {
    f'data.{split}': ', '.join(source.slices or 'all' for source in getattr(config.data, split))
    for split in ('train', 'validation', 'test')
  }


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _leaves(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def _settings(configs: Sequence[config_lib.Config]) -> list[str]:
  """For each row the fields that tell it from the others, as 'field=value; ...'."""
  fields = [_fields(config) | _sections(config) for config in configs]
  kinds = [(config.model.name, _data(config)) for config in configs]
  settings = []
  for own, kind in zip(fields, kinds, strict=True):
    kin = [other for other, k in zip(fields, kinds, strict=True) if k == kind]
    varying = [
      name
      for name in own
      if any(other.get(name) != own[name] for other in (fields if name in _EFFORT else kin))
    ]
    settings.append('; '.join(f'{_short(name)}={_text(own[name])}' for name in varying))
  return settings


def _short(name: str) -> str:
  """'model.options.width' -> 'width', 'loss.terms.dice.weight' -> 'dice.weight'."""
  return re.sub(r'^(model\.options|loss\.terms|[a-z]+)\.', '', name)


def _text(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value)


@functools.cache
def _counted(
  name: str, options: str, channels: int, num_logits: int, patch: tuple[int, ...]
) -> zoo.Row:
  """Counts a network, whose options are given as JSON."""
  entry = zoo.Entry(name, '', channels, num_logits, options=json.loads(options))
  try:
    return zoo.describe(entry, size=patch)
  except ValueError as error:  # a run of another version
    raise ConfigError(f'config.model: {error}') from error


def _row(number: int, runs: tuple[Run, ...], setting: str, line: str) -> Row:
  config = runs[0].config
  counted = _counted(
    config.model.name,
    json.dumps(config.model.options),
    config.data.channels,
    config.task.num_logits,
    config.data.patch,
  )
  rate = 'perf/images_per_sec'
  rates = [record[rate] for run in runs for record in run.records if rate in record]
  return Row(
    number=number,
    runs=runs,
    setting=setting,
    line=line,
    parameters=counted.parameters,
    gflops=counted.gflops,
    images_per_second=statistics.median(rates) if rates else None,
  )


def _data(config: config_lib.Config) -> str:
  names = (
    f'phantom-{s.phantom.seed}' if s.phantom else '/'.join(Path(s.images).parts[-3:])
    for s in config.data.train
  )
  return ', '.join(dict.fromkeys(names))
