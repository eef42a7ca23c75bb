"""Public data sets as their authors lay them out: files, classes, label values and splits.

Nothing is downloaded; `root` is the folder that holds the files.
"""

import dataclasses
from typing import Any

from emseg_jax.config.data import Data, Source
from emseg_jax.config.task import Task
from emseg_jax.errors import ConfigError

__all__ = ['Published', 'fold', 'folders', 'stacks']


@dataclasses.dataclass(frozen=True)
class Published:
  """Attributes:
  classes: names in class order.
  mapping: label value in the files -> class.
  train, validation, test: sources.
  """

  classes: tuple[str, ...]
  mapping: dict[int, int]
  train: tuple[Source, ...]
  validation: tuple[Source, ...]
  test: tuple[Source, ...] = ()

  def task(self, *, activation: str = 'softmax') -> Task:
    return Task(classes=self.classes, activation=activation)

  def data(self, **options: Any) -> Data:
    return Data(
      train=self.train,
      validation=self.validation,
      test=self.test,
      label_mapping=self.mapping,
      **options,
    )


def stacks(
  images: str, labels: str, slices: str | None = None, *, fraction: float = 1.0
) -> tuple[Source, ...]:
  """One source: a stack (or a folder) of sections and its labels."""
  return (Source(images=images, labels=labels, slices=slices, fraction=fraction),)


def folders(root: str, split: str) -> tuple[Source, ...]:
  """ROOT/SPLIT/images and ROOT/SPLIT/labels."""
  return stacks(f'{root}/{split}/images', f'{root}/{split}/labels')


def fold(
  images: str, labels: str, *, sections: int, text: str
) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
  """Training and validation sources of one fold of k contiguous ones.

  Args:
    images, labels: the stack.
    sections: how many it has.
    text: 'i/k', fold i of 0..k-1; neighbouring sections are alike, so folds are contiguous.

  Raises:
    ConfigError: the text is not 'i/k'.
  """
  part, _, count = text.partition('/')
  if not (part.isdigit() and count.isdigit() and int(part) < int(count) <= sections):
    raise ConfigError(f'fold={text}: must be i/k with 0 <= i < k <= {sections}')
  i, k = int(part), int(count)
  start, stop = i * sections // k, (i + 1) * sections // k
  around = [s for s, n in ((f'0:{start}', start), (f'{stop}:{sections}', sections - stop)) if n]
  train = tuple(source for s in around for source in stacks(images, labels, s))
  return train, stacks(images, labels, f'{start}:{stop}')
