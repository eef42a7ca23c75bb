"""The sections of a source, opened; and what training would refuse of it.

A source is opened as training opens it; where that fails, file by file, so that one broken file
does not hide the others.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from emseg_jax.config import Reading, Source
from emseg_jax.data import pairs, selection, tiff, volumes
from emseg_jax.data.labels import map_labels
from emseg_jax.errors import DataError

__all__ = ['Finding', 'count_labels', 'count_values', 'locate', 'open_sections']

PIXELS_AT_ONCE = 1 << 22

Finding = tuple[str, str]  # kind, message
Opened = dict[str, tuple[volumes.Volume, int] | None]  # by name; None if broken


def open_sections(source: Source) -> tuple[list[pairs.Section], list[Finding]]:
  """Opens a source as training does; if that fails, file by file.

  Returns:
    The sections that can be opened, and (kind, message) of what training would refuse.
  """
  try:
    return pairs.open_source(source), []
  except DataError as error:
    findings: list[Finding] = []
    images = _open_files(source.images, 'colour', source.reading, findings)
    labels: Opened = {}
    if source.labels:
      labels = _open_files(source.labels, 'index', source.label_reading, findings)
    if not images.keys() & labels.keys() and len(images) == len(labels):
      labels = dict(zip(images, labels.values(), strict=True))  # by number: in the same order
    if images.keys() & labels.keys():
      findings += _find_unmatched(images, labels, source)
    sections = [
      _pair(name, images[name], labels.get(name), findings)
      for name in _select(images, source, findings)
      if images[name]
    ]
    return sections, findings or [('source', str(error))]


def _select(images: Opened, source: Source, findings: list[Finding]) -> list[str]:
  """The names that the source uses, of all that are there, broken ones included."""
  keys = list(images)
  names = [entry[0].names[entry[1]] if entry else name for name, entry in images.items()]
  try:
    return [keys[i] for i in selection.select(names, source, path=str(source.images))]
  except DataError as error:
    findings.append(('source', str(error)))
    return []


def _open_files(
  path: str, palette: tiff.Palette, reading: Reading, findings: list[Finding]
) -> Opened:
  """The sections of a file, or of a folder with its images opened one by one."""
  opened: Opened = {}
  for file in _list_images(path) or [path]:
    try:
      volume = volumes.open_volume(file, palette=palette, reading=reading)
    except DataError as error:
      findings.append(('unreadable', str(error)))
      opened[Path(file).stem.lower()] = None
      continue
    opened |= {name.lower(): (volume, i) for i, name in enumerate(volume.names)}
  types = [_type_of(entry[0]) for entry in opened.values() if entry]
  usual = max(types, key=types.count, default='')
  for volume in (entry[0] for entry in opened.values() if entry):
    if _type_of(volume) != usual:
      message = f'{volume.path}: is {_type_of(volume)}, but most of {path} are {usual}'
      findings.append(('type', f'{message}; all must be of one type'))
  return opened


def _list_images(path: str) -> list[str]:
  """What a folder of images holds, in natural order; nothing for a file or another folder."""
  if not (os.path.isdir(path) and os.access(path, os.R_OK | os.X_OK)):
    return []
  files = [f for f in Path(path).iterdir() if f.is_file() and not f.name.startswith('.')]
  files = [f for f in files if f.suffix.lower() not in volumes.NO_IMAGES]
  images = any(f.suffix.lower() in volumes.OPENERS for f in files)  # and not chunks of a Zarr
  return [str(f) for f in sorted(files, key=_natural_key)] if images else []


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


def count_labels(section: pairs.Section) -> dict[int, int]:
  """Label value in the file -> number of pixels, of a section that has a label.

  Raises:
    DataError: the label cannot be read, is RGB, or is not integer-valued.
  """
  volume, index = section.label_volume, section.label_index
  return count_values(volume.section(index), locate(volume, index))


def count_values(raw: np.ndarray, where: str) -> dict[int, int]:
  """Value -> number of pixels, of label values [Y, X].

  Raises:
    DataError: naming `where`: they are RGB, or not integer-valued.
  """
  if raw.dtype.kind in 'bu' and raw.dtype.itemsize <= 2:  # three times as quick as np.unique
    counts = np.zeros(1 << 8 * raw.dtype.itemsize, np.int64)
    rows = max(1, PIXELS_AT_ONCE // max(1, raw[0].size))  # bincount makes 8 bytes of every pixel
    for start in range(0, len(raw), rows):
      counts += np.bincount(raw[start : start + rows].ravel(), minlength=len(counts))
    values = np.flatnonzero(counts)
    counts = counts[values]
  else:
    values, counts = np.unique(raw, return_counts=True)
  if raw.ndim != 2 or not np.array_equal(values, np.round(values)):  # the next line raises
    map_labels(raw, num_classes=2, label_mapping=None, ignore_value=None, name=where)
  return {int(v): int(n) for v, n in zip(values, counts, strict=True)}
