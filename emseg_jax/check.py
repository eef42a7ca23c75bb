"""The data doctor: says before training what would go wrong in it.

Every section is read once (`survey`); the judgements below look at the numbers only. `severity` is
'error' where training would stop or learn something wrong, 'warning' where a person should look,
'note' for what is merely worth knowing.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from emseg_jax.check_table import format_table
from emseg_jax.config import Config
from emseg_jax.data import pairs
from emseg_jax.errors import DataError
from emseg_jax.survey import Measured, SplitSummary, count_values, read_sources, summarise

__all__ = ['MOST_CLASSES', 'Problem', 'Report', 'check', 'format_report']

SPLITS = ('train', 'validation', 'test')
SEVERITIES = ('error', 'warning', 'note')
SHOWN = 10  # problems of one kind, and label values, that are printed
RARE = 1e-3  # a class with a smaller share of the training pixels draws a warning
MOST_CLASSES = 32  # more distinct label values than this are hardly classes


@dataclasses.dataclass(frozen=True)
class Problem:
  """One finding; `kind` groups those of one cause."""

  severity: Literal['error', 'warning', 'note']
  split: str
  kind: str
  message: str


@dataclasses.dataclass(frozen=True)
class Report:
  """Summaries of the splits that could be read; problems, errors first."""

  splits: tuple[SplitSummary, ...]
  problems: tuple[Problem, ...]

  @property
  def ok(self) -> bool:
    return not any(p.severity == 'error' for p in self.problems)

  @property
  def verdict(self) -> str:
    severities = [p.severity for p in self.problems]
    errors = _count(severities.count('error'), 'error')
    warnings = _count(severities.count('warning'), 'warning')
    if not self.ok:
      return f'{errors}, {warnings}: not ready'
    return f'OK: ready to train ({warnings})' if 'warning' in severities else 'OK: ready to train'

  def to_json(self) -> dict[str, Any]:
    """Everything, uncut, in types that JSON knows."""
    record = json.loads(json.dumps(dataclasses.asdict(self)))
    return {'ok': self.ok, 'verdict': self.verdict, **record}


def check(config: Config) -> Report:
  """Reads all sections of all splits; what is wrong with the data is reported, not raised."""
  problems: list[Problem] = []
  splits: dict[str, list[Measured]] = {}
  for name in SPLITS:
    sources = getattr(config.data, name)
    splits[name], findings = read_sources(sources, threads=config.data.threads)
    problems += [Problem('error', name, kind, message) for kind, message in findings]
  values = {v for read in splits.values() for m in read for v in m.labels}
  classes = {v: _class_of(v, config) for v in values}
  names = config.task.classes
  summaries = {
    split: summarise(split, read, class_names=names, classes=classes)
    for split, read in splits.items()
    if read
  }
  problems += _judge_sources(config)
  problems += _judge_label_values(config, splits, classes)
  problems += _judge_class_shares(summaries)
  problems += _judge_contrast(splits)
  problems += _judge_patch(config, splits['train'])
  problems += _judge_intensities(config, summaries)
  problems += _judge_repeats(splits)
  problems.sort(key=lambda p: SEVERITIES.index(p.severity))
  return Report(tuple(summaries.values()), tuple(problems))


def _class_of(value: int, config: Config) -> int | None:
  """The class index of a label value, IGNORED, or None if training would refuse it."""
  try:
    mapped = pairs.map_labels(
      np.array([[value]]),
      num_classes=len(config.task.classes),
      label_mapping=config.data.label_mapping,
      ignore_value=config.task.ignore_value,
      name='',
    )
  except DataError:
    return None
  return int(mapped[0, 0])


def _judge_sources(config: Config) -> Iterator[Problem]:
  if not config.data.validation:
    yield Problem(
      'warning',
      'validation',
      'missing',
      'data.validation is empty, so that no best checkpoint can be picked; keep some sections for '
      'it, e.g. slices=":-4" in data.train and "-4:" in data.validation',
    )
  for name in SPLITS:
    for number, source in enumerate(getattr(config.data, name)):
      if source.images and not source.labels:
        yield Problem(
          'warning' if name == 'test' else 'error',
          name,
          'unlabelled',
          f'{source.images}: has no labels; set data.{name}.{number}.labels or remove the source',
        )


def _judge_label_values(
  config: Config, splits: dict[str, list[Measured]], classes: dict[int, int | None]
) -> Iterator[Problem]:
  for name, read in splits.items():
    values = count_values(read)
    unknown = [v for v in values if classes[v] is None]
    if not unknown:
      continue
    where = next(m.label_at for m in read if not m.labels.keys().isdisjoint(unknown))
    total = sum(values.values())
    held = _list([f'{v} ({n / total:.2%})' for v, n in values.items()])
    allowed = [*sorted(config.data.label_mapping or range(len(config.task.classes)))]
    looks, advice = _explain_values(values)
    yield Problem(
      'error',
      name,
      'label values',
      f'{where}: data.label_mapping lacks the label values {_list(unknown)} (allowed: '
      f'{_list(allowed)}); the labels of {name} hold {held}; '
      f'{advice or _propose_mapping(config, classes)}',
    )
    if looks:
      yield Problem('warning', name, 'label kind', f'{where}: {len(values)} values {looks}')


def _explain_values(values: dict[int, int]) -> tuple[str, str]:
  """What labels look like that are no classes, and what to do; empty if they may be classes."""
  low, high, total = min(values), max(values), sum(values.values())
  if len(values) > 8 and values[low] + values[high] > 0.8 * total:
    return (
      f'from {low} to {high} look like an anti-aliased, resized or JPEG-compressed mask',
      f'save the mask as PNG or TIFF, cut at {(low + high + 1) // 2} into two values',
    )
  if len(values) > MOST_CLASSES:
    advice = 'turn the instances into classes, e.g. 1 inside and 0 between them'
    return 'look like instance ids', advice
  return '', ''


def _propose_mapping(config: Config, classes: dict[int, int | None]) -> str:
  """The mapping in rising order over the values of all splits."""
  values = sorted(v for v, index in classes.items() if index != pairs.IGNORED)
  names = config.task.classes
  mapping = json.dumps({str(v): i for i, v in enumerate(values)})
  if len(values) <= len(names):
    return f'set data.label_mapping to {mapping} if the classes are {", ".join(names)}'
  if config.data.label_mapping:
    return 'add them to it, or set task.ignore_value for the one that is not to be scored'
  return (
    f'these are {len(values)} values, but task.classes has {len(names)} names: name all and set '
    f'data.label_mapping to {mapping}, or map several values to one class'
  )


def _judge_class_shares(summaries: dict[str, SplitSummary]) -> Iterator[Problem]:
  for split, summary in summaries.items():
    for name, share in summary.class_shares.items():
      if share == 0 and split == 'train':
        message = f'class {name} never occurs; remove it from task.classes or add sections with it'
        yield Problem('error', split, 'class', message)
      elif share == 0:
        yield Problem('note', split, 'class', f'class {name} never occurs: it has no score')
      elif share < RARE and split == 'train':
        message = f'class {name} has only {share:.3%} of the pixels; it may not be learnt'
        yield Problem('warning', split, 'class', message)


def _judge_contrast(splits: dict[str, list[Measured]]) -> Iterator[Problem]:
  train = splits['train']
  if train and min(m.low for m in train) == max(m.high for m in train):
    message = f'{train[0].image_at}: all training pixels have the same value {train[0].low:g}'
    yield Problem('error', 'train', 'contrast', message)
  for name, read in splits.items():
    for measured in read:
      if measured.low == measured.high:
        where, value = measured.image_at, measured.low
        message = f'{where}: all pixels are {value:g}; leave the section out if it is empty'
        yield Problem('warning', name, 'contrast', message)


def _judge_patch(config: Config, train: Sequence[Measured]) -> Iterator[Problem]:
  y, x = config.data.patch[-2:]
  small = [m for m in train if m.section.shape[0] < y or m.section.shape[1] < x]
  if small:
    size_y, size_x = small[0].section.shape
    yield Problem(
      'warning',
      'train',
      'patch',
      f'{small[0].image_at}: is {size_y} x {size_x} (y x), smaller than data.patch {y} x {x}, as '
      f'are {len(small)} of {len(train)} training images; the rest of the patch is '
      + ('mirrored' if config.augment.fill == 'reflect' else 'padding of weight 0')
      + '; a smaller data.patch wastes less',
    )


def _judge_intensities(config: Config, summaries: dict[str, SplitSummary]) -> Iterator[Problem]:
  kind = config.data.normalisation
  if len({dtype for s in summaries.values() for dtype in s.dtypes}) > 1:
    found = ', '.join(f'{name} {" and ".join(s.dtypes)}' for name, s in summaries.items())
    message = f'images differ in type: {found}; convert them to one type'
    yield Problem('warning', 'train', 'type', message)
  train = summaries.get('train')
  for name, summary in summaries.items():
    if 'uint16' in summary.dtypes and summary.high <= 255:
      message = f'16-bit images hold nothing above {summary.high:g}: 8-bit values in 16-bit files'
      severity = 'warning' if kind in ('scale', 'imagenet', 'caffe') else 'note'
      yield Problem(severity, name, 'range', f'{message}; save them as 8 bits')
    if train and abs(summary.mean - train.mean) > 2 * train.std:
      severity = 'note' if kind in ('per_volume', 'percentile') else 'warning'
      message = (
        f'mean intensity is {summary.mean:.4g}, but {train.mean:.4g} ± {train.std:.3g} (std) in '
        'train; are type and contrast the same? data.normalisation=per_volume makes up for it'
      )
      yield Problem(severity, name, 'range', message)
    if 3 in summary.channels and config.data.channels == 1:
      message = 'images are RGB, data.channels is 1: their mean is used'
      yield Problem('note', name, 'colour', message)


def _judge_repeats(splits: dict[str, list[Measured]]) -> Iterator[Problem]:
  """Images that occur twice; an empty section may."""
  seen: dict[str, list[tuple[str, Measured]]] = {}  # digest -> the first of each split
  for name, read in splits.items():
    for measured in read:
      if measured.low == measured.high:
        continue
      known = seen.setdefault(measured.digest, [])
      for other_name, other in known:
        same = measured.place is not None and measured.place == other.place
        of = f' of {other_name}' if other_name != name else ''
        what = f'is also used in {other_name}' if of else 'is used twice'
        what = what if same else f'has the same pixels as {other.image_at}{of}'
        kind = 'leakage' if of else 'repeated'
        fix = '; change slices' if same else '; remove one of them'
        severity = 'error' if of else 'warning'
        yield Problem(severity, name, kind, f'{measured.image_at}: {what}{fix}')
      if name not in [other_name for other_name, _ in known]:
        known.append((name, measured))


def _count(number: int, noun: str) -> str:
  return f'1 {noun}' if number == 1 else f'{number} {noun}s'


def _list(items: Iterable[Any]) -> str:
  texts = [str(item) for item in items]
  rest = f' and {len(texts) - SHOWN} more' if len(texts) > SHOWN else ''
  return ', '.join(texts[:SHOWN]) + rest


def format_report(report: Report) -> str:
  """A table with a column per split, the problems, and the verdict as last line."""
  lines = [*format_table(report.splits, most_values=SHOWN), ''] if report.splits else []
  groups: dict[tuple[str, str, str], list[Problem]] = {}
  for problem in report.problems:
    groups.setdefault((problem.severity, problem.split, problem.kind), []).append(problem)
  for (severity, split, kind), problems in groups.items():
    head = f'{severity.upper():<7}  {split}: '
    lines += [head + p.message for p in problems[:SHOWN]]
    if len(problems) > SHOWN:
      lines.append(f'{head}and {len(problems) - SHOWN} more ({kind})')
  return '\n'.join([*lines, '', report.verdict] if groups else [*lines, report.verdict])
