"""The data doctor: says before training what would go wrong in it.

Every section is read once (`read`); the judgements of the modules `check_*` look at the
numbers, and at a few sections again where labels may be out of place (`pairs`).
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from emseg_jax.check import images, instances, labels, pairs, repeats, sources
from emseg_jax.check import read as check_read
from emseg_jax.check.labels import MOST_CLASSES
from emseg_jax.check.measure import Measured
from emseg_jax.check.problem import SHOWN, SPLITS, Problem, count
from emseg_jax.check.read import SplitRead
from emseg_jax.check.summary import SplitSummary, summarise
from emseg_jax.check.table import format_table
from emseg_jax.config import Config
from emseg_jax.data.labels import Rules

__all__ = ['MOST_CLASSES', 'Problem', 'Report', 'check', 'format_report']

SEVERITIES = ('error', 'warning', 'note')


@dataclasses.dataclass(frozen=True)
class Report:
  """What was found.

  Attributes:
    splits: summaries of those that could be read.
    problems: errors first.
    advice: what to set for these data.
    measured: split -> its sections that were read; `Problem.places` point into it.
  """

  splits: tuple[SplitSummary, ...]
  problems: tuple[Problem, ...]
  advice: str
  measured: Mapping[str, tuple[Measured, ...]] = dataclasses.field(repr=False)

  @property
  def ok(self) -> bool:
    return not any(p.severity == 'error' for p in self.problems)

  @property
  def verdict(self) -> str:
    severities = [p.severity for p in self.problems]
    errors = count(severities.count('error'), 'error')
    warnings = count(severities.count('warning'), 'warning')
    if not self.ok:
      return f'{errors}, {warnings}: not ready'
    return f'OK: ready to train ({warnings})' if 'warning' in severities else 'OK: ready to train'

  def to_json(self) -> dict[str, Any]:
    """Everything but the numbers of single sections, uncut, in types that JSON knows."""
    record = {
      'ok': self.ok,
      'verdict': self.verdict,
      'splits': [dataclasses.asdict(s) for s in self.splits],
      'problems': [self._describe(p) for p in self.problems],
      'advice': self.advice,
    }
    return json.loads(json.dumps(record))

  def _describe(self, problem: Problem) -> dict[str, Any]:
    fields = dataclasses.asdict(problem)
    return fields | {'places': [self.measured[s][i].image_at for s, i in problem.places]}


def check(config: Config) -> Report:
  """Reads all sections of all splits; what is wrong with the data is reported, not raised."""
  of_ids, config = config.task.affinities, instances.as_classes(config)
  rules, threads = Rules(config.task, config.data), config.data.threads
  data = {
    name: check_read.read_split(getattr(config.data, name), rules, threads=threads)
    for name in SPLITS
  }
  measured = {name: split.measured for name, split in data.items()}
  values = {v for read in measured.values() for m in read if m.label for v in m.label.values}
  classes = {v: labels.classify(v, config) for v in values}
  summaries = {
    name: summarise(name, split, task=config.task, classes=classes)
    for name, split in data.items()
    if split.measured
  }
  problems = _judge(config, data, summaries)
  if of_ids:
    problems += instances.judge_ids(config, measured)
  else:
    problems += labels.judge_values(config, measured, classes)
    problems += labels.judge_class_shares(summaries)
  for name, read in measured.items():
    problems += pairs.judge_alignment(name, read, rules, threads=threads)
  problems.sort(key=lambda p: SEVERITIES.index(p.severity))
  return Report(tuple(summaries.values()), tuple(problems), sources.advise(data), measured)


def _judge(
  config: Config,
  data: Mapping[str, SplitRead],
  summaries: Mapping[str, SplitSummary],
) -> list[Problem]:
  """All judgements that need no pixels, but those of the values of labels."""
  measured = {name: split.measured for name, split in data.items()}
  volumetric = len(config.data.patch) == 3 or config.data.neighbours > 0
  return [
    *(
      Problem('error', name, kind, message)
      for name, split in data.items()
      for kind, message in split.findings
    ),
    *sources.judge_sources(config),
    *sources.judge_size(data),
    *labels.judge_colours(config, measured),
    *labels.judge_files(measured),
    *labels.judge_empty(measured),
    *images.judge_contrast(measured),
    *images.judge_signs(measured),
    *images.judge_patch(config, measured['train']),
    *images.judge_intensities(config, summaries),
    *sources.judge_voxels(config, data),
    *sources.judge_numbering(data, volumetric=volumetric),
    *repeats.judge_repeats(data),
  ]


def format_report(report: Report) -> str:
  """A table with a column per split, advice, the problems, and the verdict as last line."""
  lines = [*format_table(report.splits, most_values=SHOWN), '', report.advice, '']
  groups: dict[tuple[str, str, str], list[Problem]] = {}
  for problem in report.problems:
    groups.setdefault((problem.severity, problem.split, problem.kind), []).append(problem)
  for (severity, split, kind), problems in groups.items():
    head = f'{severity.upper():<7}  {split}: '
    lines += [head + p.message for p in problems[:SHOWN]]
    if len(problems) > SHOWN:
      lines.append(f'{head}and {len(problems) - SHOWN} more ({kind})')
  return '\n'.join([*lines, '', report.verdict] if groups else [*lines, report.verdict])
