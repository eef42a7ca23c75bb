"""The sections of a split, read lazily: whole and cached, or box by box where volumes are large.

A `Split` is a list of 2D sections, each an image with, usually, a label. Labels are mapped to class
indices when they are read: uint8, with `IGNORED` (255) where a pixel is not to be scored; or they
are instance ids, see `data.labels`. A box is an origin and a size, (z, y, x), in a group: section
numbers of a split.
"""

import collections
import dataclasses
import hashlib
import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np

from emseg_jax import config as config_lib
from emseg_jax.data import excerpts, normalise, volumes
from emseg_jax.data import labels as labels_lib
from emseg_jax.errors import DataError

__all__ = ['Section', 'Split', 'mirrored']

Box = Sequence[int]


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
    self._large: dict[volumes.Volume, bool] = {}  # asked for at every patch
    self._lock = threading.Lock()

  @classmethod
  def of_images(cls, volume: volumes.Volume, *, cache_bytes: int = 0) -> Self:
    """All sections of one volume, without labels."""
    sections = [Section(name, volume, i, None, i) for i, name in enumerate(volume.names)]
    rules = labels_lib.Rules(config_lib.Task(), config_lib.Data())  # there is nothing to read
    return cls(sections, rules=rules, cache_bytes=cache_bytes)

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
    """A digest of names, shapes and the pixels and labels of up to 64 sections, or parts of them.

    Independent of where the files lie and when they were written, so that a copied data set passes
    and a changed one does not.
    """
    digest = hashlib.sha256()
    for section in self.sections:
      digest.update(f'{section.name}{section.shape}{section.image_volume.dtype}'.encode())
    chosen = np.unique(np.linspace(0, len(self) - 1, 64).astype(int)).tolist()
    shapes = [self.sections[index].shape for index in chosen]
    for number, (y, x), (height, width) in excerpts.windows(shapes):
      box = (chosen[number],), (0, y, x), (1, height, width)
      digest.update(np.ascontiguousarray(self.image_block(*box)))
      digest.update(np.ascontiguousarray(self.label_block(*box)))
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
    z = mirrored(section.image_index + offset, len(volume)) if offset else section.image_index
    if offset and volume.section_shape(z) != section.shape:
      raise DataError(
        f'{volume.path}: {volume.names[z]} is not as large as {section.name} beside it; the '
        'sections of a volume must be equal in size'
      )
    return self._cached(('image', volume, z), lambda: volume.section(z))

  def label(self, index: int) -> np.ndarray:
    """uint8 [Y, X] class indices, IGNORED where not scored; or instance ids.

    Raises:
      DataError: the section has no label, or the label has a value that is neither mapped nor
        ignored.
    """
    section = self.sections[index]
    if section.label_volume is None:
      raise DataError(f'{section.name}: has no label; set labels in its source')
    return self._cached(('label', section.label_volume, index), lambda: self._read_label(section))

  def image_block(
    self, group: Sequence[int], origin: Box, size: Box, *, offset: int = 0
  ) -> np.ndarray:
    """The part of a box that lies inside the group: [z, y, x] or [z, y, x, 3].

    Args:
      group: section numbers, of one volume and one size.
      origin: (z, y, x), z counted in the group.
      size: (z, y, x).
      offset: as in `image`.

    Raises:
      DataError: as `image`.
    """
    used, window = _window(group, origin, size)
    volume = self.sections[used[0]].image_volume
    if not self.is_large(volume):
      return _stack([self.image(i, offset=offset)[window] for i in used])
    numbers = [mirrored(self.sections[i].image_index + offset, len(volume)) for i in used]
    return _read_box(volume, numbers, window)

  def label_block(self, group: Sequence[int], origin: Box, size: Box) -> np.ndarray:
    """The same of the labels: uint8 [z, y, x] class indices, or instance ids.

    Raises:
      DataError: as `label`.
    """
    used, window = _window(group, origin, size)
    first = self.sections[used[0]]
    if first.label_volume is None or not self.is_large(first.label_volume):
      return _stack([self.label(i)[window] for i in used])
    # What the label of a voxel depends on may lie beyond the box.
    reach = self._rules.reach
    wide = tuple(slice(max(0, w.start - reach), w.stop + reach) for w in window)
    inner = tuple(
      slice(w.start - v.start, w.stop - v.start) for w, v in zip(window, wide, strict=True)
    )
    volume, mask = first.label_volume, first.mask_volume
    raw = _read_box(volume, [self.sections[i].label_index for i in used], wide)
    name = f'{volume.path}, {volume.names[first.label_index]} and behind'
    label = np.stack([self._rules.apply(plane, name=name) for plane in raw])[:, *inner]
    if mask is None:
      return label
    masks = _read_box(mask, [self.sections[i].mask_index for i in used], window)
    return labels_lib.hide(label, masks != 0)

  def is_large(self, volume: volumes.Volume) -> bool:
    """Whether it is better read in boxes than section by section through the cache."""
    if volume not in self._large:
      shape = volume.section_shape(0)
      size = len(volume) * math.prod(shape) * volume.channels * volume.dtype.itemsize
      self._large[volume] = volume.cheap_boxes and size > self._cache_bytes
    return self._large[volume]

  def images(self) -> Iterator[np.ndarray]:
    return (self.image(i) for i in range(len(self)))

  def excerpts(self) -> Iterator[tuple[int, Box, Box]]:
    """Boxes that stand for the whole split: of all sections, or a fair share of many."""
    for index, (y, x), (height, width) in excerpts.windows([s.shape for s in self.sections]):
      yield index, (0, y, x), (1, height, width)

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
      known = normalise.volume_statistics(_excerpts(volume, members))
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
      label = labels_lib.hide(label, section.mask_volume.section(section.mask_index) != 0)
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


def _stack(sections: Sequence[np.ndarray]) -> np.ndarray:
  """[z, y, x]; a single section is not copied."""
  return np.stack(sections) if len(sections) > 1 else sections[0][None]


def _window(
  group: Sequence[int], origin: Box, size: Box
) -> tuple[Sequence[int], tuple[slice, slice]]:
  """Section numbers and [y, x] of a box."""
  (z, y, x), (depth, height, width) = origin, size
  return group[z : z + depth], (slice(y, y + height), slice(x, x + width))


def _read_box(
  volume: volumes.Volume, numbers: Sequence[int], window: tuple[slice, slice]
) -> np.ndarray:
  """Sections of a volume, as few reads as possible; what lies beyond it is left out."""
  shape = volume.section_shape(numbers[0])
  low, high = (
    [w.start for w in window],
    [min(w.stop, n) for w, n in zip(window, shape, strict=True)],
  )
  blocks = []
  # Numbers minus their ranks are equal within a run of consecutive ones.
  for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
    found = [number for _, number in run]
    blocks.append(volume.box((found[0], *low), (found[-1] + 1, *high)))
  return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _excerpts(volume: volumes.Volume, members: Sequence[int]) -> Iterator[np.ndarray]:
  """Sections of a volume, or a fair share of them, to take statistics from."""
  shapes = [volume.section_shape(i) for i in members]
  for number, (y, x), (height, width) in excerpts.windows(shapes):
    if (height, width) == shapes[number]:
      yield volume.section(members[number])
    else:
      window = slice(y, y + height), slice(x, x + width)
      yield _read_box(volume, [members[number]], window)[0]


def mirrored(z: int, depth: int) -> int:
  """The section that stands for section `z` of a volume: -1 is 0, -2 is 1, depth is depth - 1."""
  z %= 2 * depth
  return min(z, 2 * depth - 1 - z)
