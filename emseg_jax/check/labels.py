"""Judgements on what label files hold: values, colours, formats that spoil them, empty labels."""

import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from emseg_jax.check.measure import Measured
from emseg_jax.check.problem import Problem, shorten
from emseg_jax.check.summary import SplitSummary, count_all
from emseg_jax.config import Config
from emseg_jax.data import pairs, volumes
from emseg_jax.data.labels import IGNORED, map_labels
from emseg_jax.errors import DataError

__all__ = [
  'MOST_CLASSES',
  'classify',
  'judge_class_shares',
  'judge_colours',
  'judge_empty',
  'judge_files',
  'judge_values',
]

Splits = Mapping[str, Sequence[Measured]]

RARE = 1e-3  # a class with a smaller share of the training pixels draws a warning
MOST_CLASSES = 32  # more distinct label values than this are hardly classes
FEW_STRAY = 4  # so many stray values, and half of those in a section, make a smoothed mask
FEW_INSTANCES = 5  # so many values, most of them one or two pieces, make instance ids
MOSTLY = 0.8
LEAST_SOLID = 0.3  # share of the pixels that the two values proper of such a mask still have
MOST_LEGEND = 8  # colours in a proposed legend
ALIKE = 0.4  # correlation of thumbnails of neighbouring sections of one volume
EMPTY_BETWEEN = 0.02  # share of the smaller class in both neighbours of a suspicious empty label
LOSSY = ('.jpg', '.jpeg')


def classify(value: int, config: Config) -> int | None:
  """The class index, or mask, of a label value, IGNORED, or None if training would refuse it."""
  try:
    mapped = map_labels(
      np.array([[value]]),
      num_classes=len(config.task.values),
      label_mapping=config.data.label_mapping,
      ignore_value=config.task.ignore_value,
      other=config.data.labels.other,
      name='',
    )
  except DataError:
    return None
  return int(mapped[0, 0])


def judge_values(
  config: Config, splits: Splits, classes: Mapping[int, int | None]
) -> Iterator[Problem]:
  """Values without a class, and values that look like no classes at all."""
  for name, read in splits.items():
    values = count_all(read)
    unknown = [v for v in values if classes[v] is None]
    looks, advice = _explain_values(values, read)
    first = next((i for i, m in enumerate(read) if m.label and not _known(m, unknown)), None)
    if first is None:
      first = next((i for i, m in enumerate(read) if m.label), None)
      if looks and config.data.labels.kind == 'values' and len(values) > len(config.task.values):
        message = f'{read[first].label.at}: {len(values)} values {looks}; {advice}'
        yield Problem('warning', name, 'label kind', message, ((name, first),))
      continue
    where, total = read[first].label.at, sum(values.values())
    held = shorten([f'{v} ({n / total:.2%})' for v, n in values.items()])
    allowed = shorten(sorted(config.data.label_mapping or range(len(config.task.values))))
    message = (
      f'{where}: data.label_mapping lacks the label values {shorten(unknown)} (allowed: '
      f'{allowed}); the labels of {name} hold {held}; '
      f'{advice or _propose_mapping(config, classes)}'
    )
    yield Problem('error', name, 'label values', message, ((name, first),))
    if looks:
      message = f'{where}: {len(values)} values {looks}'
      yield Problem('warning', name, 'label kind', message, ((name, first),))


def _known(m: Measured, unknown: Sequence[int]) -> bool:
  return m.label.values.keys().isdisjoint(unknown)


def _explain_values(values: Mapping[int, int], read: Sequence[Measured]) -> tuple[str, str]:
  """What labels look like that are no classes, and what to do; empty if they may be classes."""
  labels = [m.label for m in read if m.label]
  distinct = sum(label.distinct for label in labels)
  if not values:
    return '', ''
  low, high = min(values), max(values)
  stray = {v for label in labels for v in label.stray}
  often = 2 * sum(len(label.stray) for label in labels) > distinct
  solid = sum(number for v, number in values.items() if v not in stray)
  if len(stray) >= FEW_STRAY and often and solid > LEAST_SOLID * sum(values.values()):
    return (
      f'from {low} to {high} look like an anti-aliased, resized or JPEG-compressed mask',
      f'save the mask as PNG or TIFF, cut at {(low + high + 1) // 2} into two values',
    )
  whole = sum(label.whole for label in labels)
  if len(values) > MOST_CLASSES or (len(values) >= FEW_INSTANCES and whole > MOSTLY * distinct):
    return 'look like instance ids', (
      'set data.labels.kind=instances to learn their boundaries (3 classes: outside, inside, '
      'boundary), task.activation=affinities to find instances, or turn them into classes'
    )
  if low < 0 and high < 128:
    found = ' and '.join(f'{v} (unsigned: {v + 256})' for v in values if v < 0)
    return f'are signed, {found}: a mask of unsigned 8 bits that was saved as signed', ''
  return '', ''


def _propose_mapping(config: Config, classes: Mapping[int, int | None]) -> str:
  """The mapping in rising order over the values of all splits; negative ones are 255 and less."""
  if config.task.multilabel:
    return (
      'map each value to a mask, the sum of 2^k over the classes k of task.classes that are there'
    )
  values = [v for v, index in classes.items() if index != IGNORED]
  values = sorted(values, key=lambda v: v + 256 if v < 0 else v)
  names = config.task.classes
  mapping = json.dumps({str(v): i for i, v in enumerate(values)})
  if len(values) <= len(names):
    return f'set data.label_mapping to {mapping} if the classes are {", ".join(names)}'
  if config.data.label_mapping:
    return (
      'add them to it, set task.ignore_value for the one that is not to be scored, or '
      'data.labels.other to the class of all others'
    )
  return (
    f'these are {len(values)} values, but task.classes has {len(names)} names: name all and set '
    f'data.label_mapping to {mapping}, or map several values to one class'
  )


def judge_colours(config: Config, splits: Splits) -> Iterator[Problem]:
  """RGB labels without a legend: which colours they have."""
  if config.data.labels.colours is not None:
    return
  for name, read in splits.items():
    colours: dict[str, int] = {}
    for m in read:
      for colour, number in (m.label.colours if m.label else {}).items():
        colours[colour] = colours.get(colour, 0) + number
    if not colours:
      continue
    first = next(i for i, m in enumerate(read) if m.label and m.label.colours)
    total = sum(colours.values())
    ranked = sorted(colours, key=colours.__getitem__, reverse=True)
    shown = shorten([f'{c} ({colours[c] / total:.2%})' for c in ranked])
    advice = 'save it without smoothing and not as JPEG'
    if all(c[1:3] == c[3:5] == c[5:7] for c in ranked):
      advice = 'its three channels are equal: save it as a grey image'
    elif len(ranked) <= MOST_LEGEND:
      legend = json.dumps({c: i for i, c in enumerate(ranked)})
      advice = f'say what they mean, e.g. data.labels.colours={legend}'
    message = f'{read[first].label.at}: is RGB; the {len(ranked)} colours are {shown}; {advice}'
    yield Problem('error', name, 'label colours', message, ((name, first),))


def judge_files(splits: Splits) -> Iterator[Problem]:
  """JPEG labels, and labels whose stored values are not what a viewer shows."""
  for name, read in splits.items():
    labelled = [(i, m.section) for i, m in enumerate(read) if m.label]
    lossy = [i for i, s in labelled if _file_of(s).lower().endswith(LOSSY)]
    if lossy:
      message = (
        f'{read[lossy[0]].label.at}: is JPEG, as are {len(lossy)} of {len(labelled)} labels; that '
        'changes values at every edge: save labels as PNG or TIFF'
      )
      yield Problem('warning', name, 'label file', message, ((name, lossy[0]),))
    seen: set[str] = set()
    for i, section in labelled:
      if section.label_volume.path not in seen:
        seen.add(section.label_volume.path)
        differs = _compare_shown(section)
        if differs:
          message = f'{read[i].label.at}: {differs}; the stored values count here'
          yield Problem('note', name, 'label file', message, ((name, i),))


def _file_of(section: pairs.Section) -> str:
  volume = section.label_volume
  return volume.files[section.label_index] if volume.kind == 'folder' else volume.path


def _compare_shown(section: pairs.Section) -> str:
  """How the colours that a viewer shows of a PNG or TIFF differ from its values; '' if not."""
  volume, file = section.label_volume, _file_of(section)
  if volume.kind not in ('image', 'folder', 'stack') or volume.channels != 1:
    return ''
  index = 0 if volume.kind == 'folder' else section.label_index
  try:
    stored = volume.section(section.label_index)
    shown = volumes.open_volume(file, palette='colour').section(index)
  except DataError:  # it needs data.*.label_reading, which says what it means
    return ''
  if shown.shape[:2] != stored.shape:
    return ''
  if shown.ndim == 2:
    same = np.array_equal(stored, shown)
    return '' if same else 'is marked as "white is zero", so that viewers invert it'
  values, first = np.unique(stored, return_index=True)
  colours = shown.reshape(-1, 3)[first]
  if (colours == values[:, None]).all():
    return ''
  meaning = [f'{v} is #{r:02x}{g:02x}{b:02x}' for v, (r, g, b) in zip(values, colours, strict=True)]
  return f'is a palette image, whose colours are not its values: {shorten(meaning)}'


def judge_class_shares(summaries: Mapping[str, SplitSummary]) -> Iterator[Problem]:
  """Classes that never occur, or hardly."""
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


def judge_empty(splits: Splits) -> Iterator[Problem]:
  """Labels of one value between well-filled ones of sections that look alike: not annotated?"""
  for name, read in splits.items():
    for i in range(1, len(read) - 1):
      before, m, after = read[i - 1 : i + 2]
      if not all(n.label for n in (before, m, after)) or len(m.label.values) != 1:
        continue
      if min(_smaller_share(n) for n in (before, after)) > EMPTY_BETWEEN and _alike(before, m):
        value = next(iter(m.label.values))
        message = (
          f'{m.label.at}: all pixels are {value}, but its neighbours before and behind, which look '
          'alike, have objects; was it annotated? if not, leave it out'
        )
        yield Problem('warning', name, 'empty label', message, ((name, i),))


def _smaller_share(m: Measured) -> float:
  numbers = m.label.values.values()
  return 1 - max(numbers) / sum(numbers) if numbers else 0.0


def _alike(a: Measured, b: Measured) -> bool:
  left, right = (m.thumbnail.astype(np.float64).ravel() for m in (a, b))
  return float(left @ right) > ALIKE * float(np.linalg.norm(left) * np.linalg.norm(right))
