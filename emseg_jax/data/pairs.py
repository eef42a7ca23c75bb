"""Sections with their labels: the sources of a split matched, mapped and cached.

A `Split` is a list of 2D sections, each an image with, usually, a label. Matching and all checks
that need no pixels happen when the split is opened; labels are mapped to class indices when a
section is read. Labels are uint8 class indices with `IGNORED` (255) where a pixel is not to be
scored.
"""

import collections
import dataclasses
import hashlib
import threading
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np

from emseg_jax import config as config_lib
from emseg_jax.data import matching, normalise, phantom, volumes
from emseg_jax.errors import DataError

__all__ = ['IGNORED', 'Section', 'Split', 'map_labels', 'open_split']

IGNORED = 255


@dataclasses.dataclass(frozen=True)
class Section:
  """One 2D image: where its pixels and its label are.

  Sections that share `image_volume` belong together. `weight` says how often training examples come
  from here, relative to other sections.
  """

  name: str
  image_volume: volumes.Volume
  image_index: int
  label_volume: volumes.Volume | None
  label_index: int
  weight: float = 1.0

  @property
  def shape(self) -> tuple[int, int]:
    return self.image_volume.section_shape(self.image_index)


class Split:
  """The sections of one split, read lazily and kept in a cache of bounded size.

  Thread-safe: several readers may ask for sections at once.
  """

  def __init__(
    self,
    sections: Sequence[Section],
    *,
    num_classes: int,
    label_mapping: dict[int, int] | None,
    ignore_value: int | None,
    cache_bytes: int,
  ):
    self.sections = tuple(sections)
    self._num_classes = num_classes
    self._label_mapping = label_mapping
    self._ignore_value = ignore_value
    self._cache_bytes = cache_bytes
    self._cached_bytes = 0
    self._cache: collections.OrderedDict[tuple[str, int], np.ndarray] = collections.OrderedDict()
    self._statistics: dict[tuple[volumes.Volume, int], normalise.VolumeStatistics] = {}
    self._lock = threading.Lock()

  @classmethod
  def of_images(cls, volume: volumes.Volume) -> Self:
    """All sections of one volume, without labels and without a cache."""
    sections = [Section(name, volume, i, None, i) for i, name in enumerate(volume.names)]
    return cls(sections, num_classes=2, label_mapping=None, ignore_value=None, cache_bytes=0)

  def __len__(self) -> int:
    return len(self.sections)

  def fingerprint(self) -> str:
    """A digest of names, shapes and up to 64 sections' pixels and labels.

    Independent of where the files lie and when they were written, so that a copied data set passes
    and a changed one does not.
    """
    digest = hashlib.sha256()
    for section in self.sections:
      digest.update(f'{section.name}{section.shape}{section.image_volume.dtype}'.encode())
    for index in np.unique(np.linspace(0, len(self) - 1, 64).astype(int)):
      digest.update(np.ascontiguousarray(self.image(index)))
      digest.update(np.ascontiguousarray(self.label(index)))
    return digest.hexdigest()

  def image(self, index: int) -> np.ndarray:
    """[Y, X] or [Y, X, 3] as the file holds it."""
    section = self.sections[index]
    return self._cached(('image', index), lambda: section.image_volume.section(section.image_index))

  def label(self, index: int) -> np.ndarray:
    """uint8 [Y, X] class indices, IGNORED where not scored.

    Raises:
      DataError: the section has no label, or the label has a value that is neither mapped nor
        ignored.
    """
    section = self.sections[index]
    if section.label_volume is None:
      raise DataError(f'{section.name}: has no label; set labels in its source')
    return self._cached(('label', index), lambda: self._read_label(section))

  def images(self) -> Iterator[np.ndarray]:
    return (self.image(i) for i in range(len(self)))

  def volume_statistics(self, index: int, *, joined: bool = False) -> normalise.VolumeStatistics:
    """Statistics of the file that a section belongs to: the whole stack, or the one image.

    With `joined` the images of a folder are sections of one volume, and all of them count.
    """
    section = self.sections[index]
    volume = section.image_volume
    # Otherwise every image of a folder is a file of its own.
    single = volume.axes.startswith('N') and not joined
    key = (volume, section.image_index if single else -1)
    with self._lock:
      known = self._statistics.get(key)
    if known is None:
      members = [section.image_index] if single else range(len(volume))
      known = normalise.volume_statistics(volume.section(i) for i in members)
      with self._lock:
        self._statistics[key] = known
    return known

  def network_image(
    self, index: int, normalisation: normalise.Normalisation, *, joined: bool = False
  ) -> np.ndarray:
    """The whole section as the network sees it: float32 [Y, X, channels].

    `joined` as in `volume_statistics`: True for a network that sees whole volumes.
    """
    needed = normalisation.needs_volume
    volume = self.volume_statistics(index, joined=joined) if needed else None
    return normalisation.apply(self.image(index), volume)

  def _read_label(self, section: Section) -> np.ndarray:
    raw = section.label_volume.section(section.label_index)
    name = section.label_volume.names[section.label_index]
    return map_labels(
      raw,
      num_classes=self._num_classes,
      label_mapping=self._label_mapping,
      ignore_value=self._ignore_value,
      name=f'{section.label_volume.path}, {name}',
    )

  def _cached(self, key, read) -> np.ndarray:
    with self._lock:
      if key in self._cache:
        self._cache.move_to_end(key)
        return self._cache[key]
    value = read()  # outside the lock: two readers may decode the same section, none waits
    value.setflags(write=False)
    with self._lock:
      if key not in self._cache:
        self._cache[key] = value
        self._cached_bytes += value.nbytes
        while self._cached_bytes > self._cache_bytes:
          _, old = self._cache.popitem(last=False)
          self._cached_bytes -= old.nbytes
    return value


def map_labels(
  raw: np.ndarray,
  *,
  num_classes: int,
  label_mapping: dict[int, int] | None,
  ignore_value: int | None,
  name: str,
) -> np.ndarray:
  """Maps file label values to uint8 class indices; `ignore_value` becomes IGNORED.

  Raises:
    DataError: the label is RGB, is not integer-valued, or has a value that is not allowed.
  """
  if raw.ndim != 2:
    raise DataError(
      f'{name}: the label has {raw.shape[-1]} colour channels; allowed: one grey value per class'
    )
  if raw.dtype == np.bool_:
    raw = raw.astype(np.uint8)
  if not np.issubdtype(raw.dtype, np.integer):
    if not np.array_equal(raw, np.round(raw)):
      raise DataError(f'{name}: the label has fractional values; allowed: whole numbers')
    raw = raw.astype(np.int64)
  mapping = dict(label_mapping) if label_mapping else {i: i for i in range(num_classes)}
  if ignore_value is not None:
    mapping[ignore_value] = IGNORED
  values = np.unique(raw)
  unknown = [int(v) for v in values if int(v) not in mapping]
  if unknown:
    shown = ', '.join(str(v) for v in unknown[:5]) + (', ...' if len(unknown) > 5 else '')
    hint = ''
    if set(values.tolist()) in ({255}, {0, 255}) and not label_mapping and num_classes == 2:
      hint = '; for a 0/255 mask set data.label_mapping to {"0": 0, "255": 1}'
    raise DataError(
      f'{name}: label value {shown} is not in data.label_mapping (allowed: {sorted(mapping)}){hint}'
    )
  table_values = np.array([mapping[int(v)] for v in values], np.uint8)
  return table_values[np.searchsorted(values, raw)]


def open_split(
  sources: Sequence[config_lib.Source],
  *,
  task: config_lib.Task,
  data: config_lib.Data,
  palette: volumes.Palette = 'colour',
) -> Split:
  """Opens and matches all sources of a split; reads no pixels.

  Args:
    sources: where images and labels are.
    task: classes and ignored value.
    data: label mapping and cache size.
    palette: what a palette image means; labels are always taken by index.

  Raises:
    DataError: a path is missing or empty, images and labels do not match in number, name or size.
  """
  sections = [section for source in sources for section in open_source(source, palette)]
  return Split(
    sections,
    num_classes=len(task.classes),
    label_mapping=data.label_mapping,
    ignore_value=task.ignore_value,
    cache_bytes=int(data.cache_gb * 1e9),
  )


def open_source(source: config_lib.Source, palette: volumes.Palette = 'colour') -> list[Section]:
  """Opens one source and pairs its images with its labels.

  Raises:
    DataError: as `open_split`.
  """
  sections = []
  for images, labels in _open_volumes(source, palette):
    alone = labels is None
    found = [(i, i) for i in range(len(images))] if alone else matching.match(images, labels)
    used = found[_slice(source.slices)]
    if not used:
      raise DataError(
        f'{images.path}: slices={source.slices} leaves none of its {len(found)} sections'
      )
    for image_index, label_index in used[: max(1, round(source.fraction * len(used)))]:
      name = images.names[image_index]
      section = Section(name, images, image_index, labels, label_index, source.weight)
      _check_size(section)
      sections.append(section)
  return sections


def _open_volumes(
  source: config_lib.Source, palette: volumes.Palette
) -> list[tuple[volumes.Volume, volumes.Volume | None]]:
  """Images and labels of every volume of a source: one, or as many as a phantom of volumes has."""
  options = source.phantom
  if options is None:
    images = volumes.open_volume(source.images, palette=palette)
    labels = volumes.open_volume(source.labels, palette='index') if source.labels else None
    return [(images, labels)]
  name = f'phantom-{options.seed}'
  if options.depth is None:
    arrays = phantom.make_sections(count=options.count, size=options.size, seed=options.seed)
    return [tuple(volumes.ArrayVolume(a, name=name, axes='NYX') for a in arrays)]
  shape = (options.depth, *options.size)
  # Volumes of different (seed, number) differ: SeedSequence reads 32 bits at a time.
  made = [
    phantom.make_volume(shape=shape, seed=options.seed * 2**32 + number)
    for number in range(options.count)
  ]
  return [
    tuple(volumes.ArrayVolume(array, name=f'{name}-{number}') for array in arrays)
    for number, arrays in enumerate(made)
  ]


def _slice(text: str | None) -> slice:
  return slice(*(int(part) if part else None for part in text.split(':'))) if text else slice(None)


def _check_size(section: Section) -> None:
  if section.label_volume is None:
    return
  label_shape = section.label_volume.section_shape(section.label_index)
  if section.shape != label_shape:
    raise DataError(
      f'{section.label_volume.path}, {section.label_volume.names[section.label_index]}: label is '
      f'{label_shape[0]} x {label_shape[1]} (y x), its image {section.name} is '
      f'{section.shape[0]} x {section.shape[1]}; they must be equal'
    )
