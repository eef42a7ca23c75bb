"""Instance ids, the labels of affinities: how they are counted, and what is wrong with them."""

from collections.abc import Iterator, Mapping, Sequence

from emseg_jax.check.measure import Measured
from emseg_jax.check.problem import Problem, shorten
from emseg_jax.check.summary import count_all
from emseg_jax.config import Config, Task

__all__ = ['as_classes', 'judge_ids']

FEW_IDS = 3  # so few that each stands for many objects, if it is in many pieces
MOSTLY = 0.8


def as_classes(config: Config) -> Config:
  """A task of affinities as one of two classes, background and object; others as they are.

  So ids have shares, edges and pictures like any other labels.
  """
  if not config.task.affinities:
    return config
  task = Task(classes=('background', 'object'), ignore_value=config.task.ignore_value)
  labels = config.data.labels.model_copy(update={'other': 1})
  data = config.data.model_copy(update={'label_mapping': {0: 0}, 'labels': labels})
  return config.model_copy(update={'task': task, 'data': data})


def judge_ids(config: Config, splits: Mapping[str, Sequence[Measured]]) -> Iterator[Problem]:
  """Labels without objects, negative ids, and classes where instances are expected."""
  for name, read in splits.items():
    labelled = [(i, m) for i, m in enumerate(read) if m.label]
    if not labelled:
      continue
    first, m = labelled[0]
    ids = [v for v in count_all(read) if v not in (0, config.task.ignore_value)]
    pieces = sum(n.label.distinct for _, n in labelled), sum(n.label.whole for _, n in labelled)
    negative = [v for v in ids if v < 0]
    if not ids:
      severity = 'error' if name == 'train' else 'warning'
      message = f'{m.label.at}: no label of {name} holds an object, all are 0 or ignored'
      yield Problem(severity, name, 'instance ids', message, ((name, first),))
    elif negative:
      message = (
        f'{m.label.at}: the labels of {name} hold the negative ids {shorten(negative)}; allowed: 0 '
        'for the background, and more; task.ignore_value leaves one out'
      )
      yield Problem('error', name, 'instance ids', message, ((name, first),))
    elif len(ids) <= FEW_IDS and pieces[1] < MOSTLY * pieces[0]:
      message = (
        f'{m.label.at}: the ids of {name} are {shorten(ids)}, each in many pieces, which look like '
        'classes; task.activation=affinities needs an id for every object, as --mode=postprocess '
        'makes of masks'
      )
      yield Problem('warning', name, 'instance ids', message, ((name, first),))
