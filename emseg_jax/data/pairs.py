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
from typing import Any, Self

import numpy as np

from emseg_jax import config as config_lib
from emseg_jax.data import labels as labels_lib
from emseg_jax.data import matching, normalise, phantom, selection, volumes
from emseg_jax.data.labels import IGNORED, map_labels
from emseg_jax.errors import DataError

__all__ = ['IGNORED', 'Section', 'Split', 'map_labels', 'mirrored', 'open_split']


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
  mask_volume: volumes.Volume | None = None
  mask_index: int = 0

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
    rules: labels_lib.Rules,
    cache_bytes: int,
  ):
    self.sections = tuple(sections)
    self._rules = rules
    self._cache_bytes = cache_bytes
    self._cached_bytes = 0
    self._cache: collections.OrderedDict[tuple, np.ndarray] = collections.OrderedDict()
    self._statistics: dict[tuple[volumes.Volume, int], normalise.VolumeStatistics] = {}
    self._lock = threading.Lock()

  @classmethod
  def of_images(cls, volume: volumes.Volume) -> Self:
    """All sections of one volume, without labels and without a cache."""
    sections = [Section(name, volume, i, None, i) for i, name in enumerate(volume.names)]
    rules = labels_lib.Rules(config_lib.Task(), config_lib.Data())  # there is nothing to read
    return cls(sections, rules=rules, cache_bytes=0)

  def __len__(self) -> int:
    return len(self.sections)

  def __getstate__(self) -> dict[str, Any]:
    """For reader processes: everything but the lock; each begins with an empty cache."""
    empty = {'_lock': None, '_cached_bytes': 0, '_cache': collections.OrderedDict()}
    return self.__dict__ | empty

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._lock = threading.Lock()

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

  def image(self, index: int, *, offset: int = 0) -> np.ndarray:
    """[Y, X] or [Y, X, 3] as the file holds it.

    With `offset`, the section so many behind it in its volume, whether the split uses it or not;
    the volume is mirrored at its ends.

    Raises:
      DataError: it cannot be read, or has another size than section `index`.
    """
    section = self.sections[index]
    volume = section.image_volume
    z = mirrored(section.image_index + offset, len(volume))
    if offset and volume.section_shape(z) != section.shape:
      raise DataError(
        f'{volume.path}: {volume.names[z]} is not as large as {section.name} beside it; the '
        'sections of a volume must be equal in size'
      )
    return self._cached(('image', volume, z), lambda: volume.section(z))

  def label(self, index: int) -> np.ndarray:
    """uint8 [Y, X] class indices, IGNORED where not scored.

    Raises:
      DataError: the section has no label, or the label has a value that is neither mapped nor
        ignored.
    """
    section = self.sections[index]
    if section.label_volume is None:
      raise DataError(f'{section.name}: has no label; set labels in its source')
    return self._cached(('label', section.label_volume, index), lambda: self._read_label(section))

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
    self,
    index: int,
    normalisation: normalise.Normalisation,
    *,
    joined: bool = False,
    neighbours: int = 0,
  ) -> np.ndarray:
    """The whole section as the network sees it: float32 [Y, X, channels].

    Args:
      index: which section.
      normalisation: applied to it.
      joined: as in `volume_statistics`, for a network that sees whole volumes.
      neighbours: so many sections before and behind are further channels, in their order.
    """
    needed = normalisation.needs_volume
    volume = self.volume_statistics(index, joined=joined or neighbours > 0) if needed else None
    offsets = range(-neighbours, neighbours + 1)
    sections = [normalisation.apply(self.image(index, offset=k), volume) for k in offsets]
    return np.concatenate(sections, axis=-1) if neighbours else sections[0]

  def _read_label(self, section: Section) -> np.ndarray:
    volume, index = section.label_volume, section.label_index
    label = self._rules.apply(volume.section(index), name=f'{volume.path}, {volume.names[index]}')
    if section.mask_volume is not None:
      label = np.where(section.mask_volume.section(section.mask_index) != 0, label, IGNORED)
    return label

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


def mirrored(z: int, depth: int) -> int:
  """The section that stands for section `z` of a volume: -1 is 0, -2 is 1, depth is depth - 1."""
  z %= 2 * depth
  return min(z, 2 * depth - 1 - z)


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
    rules=labels_lib.Rules(task, data),
    cache_bytes=int(data.cache_gb * 1e9),
  )


def open_source(source: config_lib.Source, palette: volumes.Palette = 'colour') -> list[Section]:
  """Opens one source and pairs its images with its labels.

  Raises:
    DataError: as `open_split`.
  """
  sections = []
  for images, labels in _open_volumes(source, palette):
    label_of = _partners(images, labels)
    mask = volumes.open_volume(source.mask, palette='index') if source.mask else None
    mask_of = _partners(images, mask)
    for i in selection.select(images.names, source, path=images.path):
      section = Section(
        images.names[i], images, i, labels, label_of[i], source.weight, mask, mask_of[i]
      )
      _check_size(section, labels, label_of[i], 'label')
      _check_size(section, mask, mask_of[i], 'mask')
      sections.append(section)
  return sections


def _partners(images: volumes.Volume, others: volumes.Volume | None) -> dict[int, int]:
  """Index of each image's label or mask."""
  if others is None:
    return {i: i for i in range(len(images))}
  return dict(matching.match(images, others))


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


def _check_size(section: Section, others: volumes.Volume | None, index: int, what: str) -> None:
  if others is None:
    return
  shape = others.section_shape(index)
  if section.shape != shape:
    raise DataError(
      f'{others.path}, {others.names[index]}: {what} is {shape[0]} x {shape[1]} (y x), its image '
      f'{section.name} is {section.shape[0]} x {section.shape[1]}; they must be equal'
    )
