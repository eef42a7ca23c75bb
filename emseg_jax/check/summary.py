"""What the sections of a split hold, summed up. Shares are of pixels, 0 to 1."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from emseg_jax import config
from emseg_jax.check import fit as check_fit
from emseg_jax.check.measure import Measured, find_place
from emseg_jax.check.read import SplitRead
from emseg_jax.data import volumes
from emseg_jax.data.labels import IGNORED

__all__ = ['SplitSummary', 'count_all', 'summarise']


@dataclasses.dataclass(frozen=True)
class SplitSummary:
  """What the readable sections of a split hold.

  Attributes:
    split: its name.
    sections, read, files: how many there are, were read, and lie in how many files; a stack is one.
    smallest, largest: (y, x), each axis by itself.
    dtypes, channels: all that occur.
    voxel_sizes_zyx: nm, all that occur; None where unknown.
    low, high, mean, std: intensities, in the units of the files.
    percentiles: the 1st and 99th, from a sample of the pixels.
    label_values: value, as data.label_mapping sees it -> share of the labelled pixels.
    class_shares: class name -> share of the scored pixels; empty if a label value is not mapped.
    ignored_share: share of the labelled pixels that has the ignored value or is masked.
    one_class_sections: sections whose label has a single class.
    label_fit: 0 to 1, mean score of the labels where they are (`fit`); None without any.
    best_shift: (y, x) pixels by which labels would have to move for the best mean score.
  """

  split: str
  sections: int
  read: int
  files: int
  smallest: tuple[int, int]
  largest: tuple[int, int]
  dtypes: tuple[str, ...]
  channels: tuple[int, ...]
  voxel_sizes_zyx: tuple[volumes.VoxelSize | None, ...]
  low: float
  high: float
  mean: float
  std: float
  percentiles: tuple[float, float]
  label_values: dict[int, float]
  class_shares: dict[str, float]
  ignored_share: float
  one_class_sections: int
  label_fit: float | None
  best_shift: tuple[int, int] | None


def count_all(measured: Sequence[Measured], *, hidden: bool = False) -> dict[int, int]:
  """Label value -> pixels over all sections, in rising order; or of the unused ones among them."""
  counts: collections.Counter[int] = collections.Counter()
  for m in measured:
    if m.label is not None:
      counts.update(m.label.hidden if hidden else m.label.values)
  return dict(sorted(counts.items()))


def summarise(
  split: str,
  data: SplitRead,
  *,
  task: config.Task,
  classes: Mapping[int, int | None],
) -> SplitSummary:
  """Sums up what was read of a split.

  Args:
    split: its name.
    data: at least one section was read.
    task: its classes are counted, each for itself where they overlap.
    classes: label value -> class index or mask, IGNORED, or None where it is not known.
  """
  read = data.measured
  images = [m.section.image_volume for m in read]
  places = [find_place(m.section) for m in read]
  shapes = np.array([m.section.shape for m in read])
  size = sum(m.size for m in read)
  mean = sum(m.total for m in read) / size
  low, high = np.percentile(np.concatenate([m.sample for m in read]), [1.0, 99.0])
  fit, shift = _find_best([m.label.fit for m in read if m.label and m.label.fit is not None])
  values, shares, ignored = _share_classes(read, task, classes)
  return SplitSummary(
    split=split,
    sections=len(data.sections),
    read=len(read),
    files=len({p[0] if p else v.path for p, v in zip(places, images, strict=True)}),
    smallest=tuple(shapes.min(0).tolist()),
    largest=tuple(shapes.max(0).tolist()),
    dtypes=tuple(sorted({v.dtype.name for v in images})),
    channels=tuple(sorted({v.channels for v in images})),
    voxel_sizes_zyx=tuple(dict.fromkeys(v.voxel_size_zyx for v in images)),
    low=min(m.low for m in read),
    high=max(m.high for m in read),
    mean=mean,
    std=max(sum(m.squares for m in read) / size - mean * mean, 0.0) ** 0.5,
    percentiles=(float(low), float(high)),
    label_values=values,
    class_shares=shares,
    ignored_share=ignored,
    one_class_sections=sum(len(_classes_of(m, classes)) == 1 for m in read),
    label_fit=fit,
    best_shift=shift,
  )


def _classes_of(m: Measured, classes: Mapping[int, int | None]) -> set[tuple[str, int]]:
  """Classes of a label, and values without one; not what is ignored."""
  values = [v for v in (m.label.values if m.label else ()) if classes[v] != IGNORED]
  return {('value', v) if classes[v] is None else ('class', classes[v]) for v in values}


def _share_classes(
  read: Sequence[Measured], task: config.Task, classes: Mapping[int, int | None]
) -> tuple[dict[int, float], dict[str, float], float]:
  """Shares of label values, of classes, and of what is ignored."""
  values, hidden = count_all(read), count_all(read, hidden=True)
  labelled = max(1, sum(values.values()))
  scored: collections.Counter[int | None] = collections.Counter()
  for value, number in values.items():
    scored[classes[value]] += 0 if classes[value] == IGNORED else number - hidden.get(value, 0)
  total = scored.total()
  known = bool(values) and None not in scored
  pixels = {
    name: sum(n for mask, n in scored.items() if mask >> k & 1) if task.multilabel else scored[k]
    for k, name in enumerate(task.classes if known else ())
  }
  shares = {name: number / max(1, total) for name, number in pixels.items()}
  value_shares = {v: n / labelled for v, n in values.items()}
  return value_shares, shares, 1 - total / labelled if values else 0.0


def _find_best(
  fits: Sequence[np.ndarray],
) -> tuple[float | None, tuple[int, int] | None]:
  pooled = check_fit.pool(fits)
  if pooled is None:
    return None, None
  centre = len(pooled) // 2
  y, x = np.unravel_index(pooled.argmax(), pooled.shape)
  return float(pooled[centre, centre]), (int(y) - centre, int(x) - centre)
