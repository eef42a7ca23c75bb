"""What the sections of a data set hold, read once, in numbers.

A source is opened as training opens it; where that fails, file by file, so that one broken file
does not hide the others. Only numbers are kept, no pixels. Shares are of pixels, 0 to 1;
intensities are in the units of the files.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from emseg_jax.config import Source
from emseg_jax.data import pairs, tiff, volumes
from emseg_jax.errors import DataError

__all__ = [
  'Finding',
  'Measured',
  'SplitSummary',
  'count_labels',
  'count_values',
  'locate',
  'open_sections',
  'read_sources',
  'summarise',
]

SAMPLES = 4_000_000  # pixels of a split from which percentiles are taken

Finding = tuple[str, str]  # kind, message
Opened = dict[str, tuple[volumes.Volume, int] | None]  # by name; None if broken


@dataclasses.dataclass(frozen=True)
class SplitSummary:
  """What the readable sections of a split hold.

  Attributes:
    split: its name.
    sections, files: how many; a stack is one file.
    smallest, largest: (y, x), each axis by itself.
    dtypes, channels: all that occur.
    voxel_sizes_zyx: nm, all that occur; None where unknown.
    low, high, mean, std: intensities.
    percentiles: the 1st and 99th, from a sample of the pixels.
    label_values: value in the files -> share of the labelled pixels.
    class_shares: class name -> share of the scored pixels; empty if a label value is not mapped.
    ignored_share: share of the labelled pixels that has the ignored value.
    one_class_sections: sections whose label has a single class.
  """

  split: str
  sections: int
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


@dataclasses.dataclass(frozen=True)
class Measured:
  """The numbers taken from one section."""

  section: pairs.Section
  image_at: str  # for messages
  label_at: str
  place: tuple[str, int] | None  # file and page; None in memory
  digest: str  # of the pixels
  low: float
  high: float
  size: int
  total: float
  squares: float
  sample: np.ndarray
  labels: dict[int, int]  # value -> pixels; empty without a readable label


def open_sections(source: Source) -> tuple[list[pairs.Section], list[Finding]]:
  """Opens a source as training does; if that fails, file by file.

  Returns:
    The sections that can be opened, and (kind, message) of what training would refuse.
  """
  try:
    return pairs.open_source(source), []
  except DataError as error:
    findings: list[Finding] = []
    images = _open_files(source.images, 'colour', findings)
    labels = _open_files(source.labels, 'index', findings) if source.labels else {}
    if not images.keys() & labels.keys() and len(images) == len(labels):
      labels = dict(zip(images, labels.values(), strict=True))  # by number: in the same order
    if images.keys() & labels.keys():
      findings += _find_unmatched(images, labels, source)
    bounds = [int(n) if n else None for n in (source.slices or ':').split(':')]
    sections = [
      _pair(name, opened, labels.get(name), findings)
      for name, opened in list(images.items())[slice(*bounds)]
      if opened
    ]
    return sections, findings or [('source', str(error))]


def _open_files(path: str, palette: tiff.Palette, findings: list[Finding]) -> Opened:
  """The sections of a file, or of a folder with its files opened one by one."""
  files = []
  if os.path.isdir(path) and os.access(path, os.R_OK | os.X_OK):
    files = [f for f in Path(path).iterdir() if f.is_file() and not f.name.startswith('.')]
    files = [f for f in files if f.suffix.lower() not in volumes.NO_IMAGES]
    files.sort(key=_natural_key)
  opened: Opened = {}
  for file in files or [Path(path)]:
    try:
      volume = volumes.open_volume(file, palette=palette)
    except DataError as error:
      findings.append(('unreadable', str(error)))
      opened[file.stem.lower()] = None
      continue
    opened |= {name.lower(): (volume, i) for i, name in enumerate(volume.names)}
  types = [_type_of(entry[0]) for entry in opened.values() if entry]
  usual = max(types, key=types.count, default='')
  for volume in (entry[0] for entry in opened.values() if entry):
    if _type_of(volume) != usual:
      message = f'{volume.path}: is {_type_of(volume)}, but most of {path} are {usual}'
      findings.append(('type', f'{message}; all must be of one type'))
  return opened


def _type_of(volume: volumes.Volume) -> str:
  return f'{volume.dtype} {"RGB" if volume.channels == 3 else "grey"}'


def _natural_key(file: Path) -> list[int | str]:
  return [int(p) if i % 2 else p for i, p in enumerate(re.split('([0-9]+)', file.name))]


def _find_unmatched(images: Opened, labels: Opened, source: Source) -> Iterator[Finding]:
  for path, names, other in (
    (source.images, images.keys() - labels.keys(), source.labels),
    (source.labels, labels.keys() - images.keys(), source.images),
  ):
    for name in sorted(names):
      yield 'unmatched', f'{path}: {name} has no partner in {other}; rename or remove it'


def _pair(
  name: str,
  image: tuple[volumes.Volume, int],
  label: tuple[volumes.Volume, int] | None,
  findings: list[Finding],
) -> pairs.Section:
  if label is not None:
    (y, x), (label_y, label_x) = (volume.section_shape(i) for volume, i in (image, label))
    if (y, x) != (label_y, label_x):
      message = (
        f'{locate(*label)}: label is {label_y} x {label_x} (y x), its image {locate(*image)} is '
        f'{y} x {x}; they must be equal'
      )
      findings.append(('size', message))
      label = None
  return pairs.Section(name, *image, *(label or (None, 0)))


def locate(volume: volumes.Volume, index: int) -> str:
  """The file of a section, with its page where it has several: how messages name it."""
  if volume.kind == 'folder':
    return volume.files[index]
  return volume.path if volume.kind == 'image' else f'{volume.path}, {volume.names[index]}'


def read_sources(
  sources: Sequence[Source], *, threads: int
) -> tuple[list[Measured], list[Finding]]:
  """Reads all sections of some sources, once, with a pool of threads.

  Returns:
    The numbers of the readable images, and (kind, message) of what training would refuse.
  """
  opened = [open_sections(source) for source in sources]
  sections = [section for group, _ in opened for section in group]
  findings = [finding for _, group in opened for finding in group]
  measured: list[Measured] = []
  if sections:
    work = functools.partial(_measure, samples=SAMPLES // len(sections) + 1)
    with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
      for numbers, refused in pool.map(work, sections):
        findings += [('unreadable', message) for message in refused]
        measured += [numbers] if numbers else []
  return measured, findings


def _measure(section: pairs.Section, *, samples: int) -> tuple[Measured | None, list[str]]:
  refused, labels = [], {}
  try:
    labels = count_labels(section) if section.label_volume else {}
  except DataError as error:
    refused.append(str(error))
  volume, index = section.image_volume, section.image_index
  try:
    x = volume.section(index)
  except DataError as error:
    return None, [*refused, str(error)]
  place = None
  if volume.files:
    file, page = (volume.files[index], 0) if volume.kind == 'folder' else (volume.path, index)
    place = os.path.realpath(file), page
  measured = Measured(
    section=section,
    image_at=locate(volume, index),
    label_at=locate(section.label_volume, section.label_index) if section.label_volume else '',
    place=place,
    digest=hashlib.sha256(f'{x.shape}{x.dtype}'.encode() + x.tobytes()).hexdigest(),
    low=float(x.min()),
    high=float(x.max()),
    size=x.size,
    total=float(x.sum(dtype=np.float64)),
    squares=float(np.square(x, dtype=np.float64).sum()),
    sample=x.ravel()[:: max(1, x.size // samples)].astype(np.float32),
    labels=labels,
  )
  return measured, refused


def count_labels(section: pairs.Section) -> dict[int, int]:
  """Label value in the file -> number of pixels, of a section that has a label.

  Raises:
    DataError: the label cannot be read, is RGB, or is not integer-valued.
  """
  volume, index = section.label_volume, section.label_index
  raw = volume.section(index)
  if raw.dtype.kind in 'bu' and raw.dtype.itemsize <= 2:  # three times as quick as np.unique
    counts = np.bincount(raw.ravel())
    values = np.flatnonzero(counts)
    counts = counts[values]
  else:
    values, counts = np.unique(raw, return_counts=True)
  if raw.ndim != 2 or not np.array_equal(values, np.round(values)):
    where = locate(volume, index)  # the next line raises
    pairs.map_labels(raw, num_classes=2, label_mapping=None, ignore_value=None, name=where)
  return {int(v): int(n) for v, n in zip(values, counts, strict=True)}


def count_values(read: Sequence[Measured]) -> dict[int, int]:
  """Label value -> number of pixels, over all sections, in rising order."""
  counts: collections.Counter[int] = collections.Counter()
  for measured in read:
    counts.update(measured.labels)
  return dict(sorted(counts.items()))


def summarise(
  split: str,
  read: Sequence[Measured],
  *,
  class_names: Sequence[str],
  classes: dict[int, int | None],
) -> SplitSummary:
  """Sums up what was read of a split.

  Args:
    split: its name.
    read: at least one section.
    class_names: in class order.
    classes: label value -> class index, IGNORED, or None where it is not known.
  """
  files = [m.section.image_volume for m in read]
  shapes = np.array([m.section.shape for m in read])
  size = sum(m.size for m in read)
  mean = sum(m.total for m in read) / size
  values = count_values(read)
  labelled = max(1, sum(values.values()))
  indices: collections.Counter[int | None] = collections.Counter()
  for value, count in values.items():
    indices[classes[value]] += count
  known = values and None not in indices
  scored = max(1, labelled - indices[pairs.IGNORED])
  present = [{classes[v] for v in m.labels} - {None, pairs.IGNORED} for m in read]
  low, high = np.percentile(np.concatenate([m.sample for m in read]), [1.0, 99.0])
  return SplitSummary(
    split=split,
    sections=len(read),
    files=len({m.place[0] if m.place else m.section.image_volume.path for m in read}),
    smallest=tuple(shapes.min(0).tolist()),
    largest=tuple(shapes.max(0).tolist()),
    dtypes=tuple(sorted({v.dtype.name for v in files})),
    channels=tuple(sorted({v.channels for v in files})),
    voxel_sizes_zyx=tuple(dict.fromkeys(v.voxel_size_zyx for v in files)),
    low=min(m.low for m in read),
    high=max(m.high for m in read),
    mean=mean,
    std=max(sum(m.squares for m in read) / size - mean * mean, 0.0) ** 0.5,
    percentiles=(float(low), float(high)),
    label_values={v: n / labelled for v, n in values.items()},
    class_shares={c: indices[i] / scored for i, c in enumerate(class_names)} if known else {},
    ignored_share=indices[pairs.IGNORED] / labelled,
    one_class_sections=sum(len(p) == 1 for p in present),
  )
