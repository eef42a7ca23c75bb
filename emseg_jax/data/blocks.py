"""Boxes of volumes, along any axis.

A group is a tuple of section numbers of a split: one section, or the sections of one volume in
order. Positions and sizes in a group are (z, y, x), in voxels. A group may be looked at along
another axis: with axis=1 (2) its y (x) axis and its z axis change places. What lies beyond a group
is mirrored.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from emseg_jax.data import normalise, pairs
from emseg_jax.data import split as split_lib
from emseg_jax.errors import DataError

__all__ = ['Group', 'ReadFn', 'groups', 'of_sections', 'read_block', 'read_image', 'shape']

Group = tuple[int, ...]
Place = Sequence[int]
ReadFn = Callable[[Group, Place, Place], np.ndarray]


def groups(split: pairs.Split, ndim: int) -> tuple[Group, ...]:
  """The images that a network of `ndim` axes sees: single sections (2), or whole volumes (3).

  A volume are all sections of one stack or folder that the split uses, in their order.

  Raises:
    DataError: a source is no volume: it has one section, sections of different sizes, or unrelated
      ones.
  """
  if ndim == 2:
    return tuple((index,) for index in range(len(split)))
  runs = itertools.groupby(range(len(split)), lambda i: id(split.sections[i].image_volume))
  found = tuple(tuple(run) for _, run in runs)
  for group in found:
    _check_volume(split, group)
  return found


def _check_volume(split: pairs.Split, group: Group) -> None:
  first = split.sections[group[0]]
  path = first.image_volume.path
  if first.image_volume.kind == 'memory' and first.image_volume.axes.startswith('N'):
    raise DataError(
      f'{path}: its sections are unrelated, but a volume is needed; set the depth of the phantom'
    )
  if len(group) < 2:
    raise DataError(f'{path}: only section {first.name} is used; a volume needs at least 2')
  for index in group:
    section = split.sections[index]
    if section.shape != first.shape:
      raise DataError(
        f'{path}: {section.name} is {section.shape[0]} x {section.shape[1]} (y x), {first.name} is '
        f'{first.shape[0]} x {first.shape[1]}; the sections of a volume must be equal in size'
      )


def shape(split: pairs.Split, group: Group, *, axis: int = 0) -> tuple[int, int, int]:
  """(z, y, x) extent of a group, looked at along `axis`."""
  return _exchange((len(group), *split.sections[group[0]].shape), axis)


def read_block(
  read: ReadFn, group: Group, origin: Place, size: Place, *, axis: int = 0
) -> np.ndarray:
  """Reads a box and mirrors what of it lies beyond the far end.

  Args:
    read: (group, origin, size) -> the part inside, [z, y, x] (+ channels), as
      `Split.label_block`.
    group: the sections of the volume.
    origin: (z, y, x) of the first voxel, inside the volume.
    size: (z, y, x), may reach beyond the far end of the volume.
    axis: which axis of the volume is z here; `origin` and `size` are meant along it.

  Returns:
    [z, y, x] (+ channels); may be read-only or not contiguous.
  """
  size = _exchange(size, axis)
  block = read(group, _exchange(origin, axis), size)
  if block.shape[:3] != size:
    missing = [(0, s - n) for s, n in zip(size, block.shape, strict=False)]
    block = np.pad(block, missing + [(0, 0)] * (block.ndim - 3), mode='symmetric')
  return np.swapaxes(block, 0, axis) if axis else block


def of_sections(sections: Sequence[np.ndarray]) -> ReadFn:
  """Reads from arrays [Y, X], one per section of the split."""

  def read(group: Group, origin: Place, size: Place) -> np.ndarray:
    (z, y, x), (depth, height, width) = origin, size
    return np.stack([sections[i][y : y + height, x : x + width] for i in group[z : z + depth]])

  return read


def read_image(
  split: pairs.Split,
  normalisation: normalise.Normalisation,
  group: Group,
  origin: Place,
  size: Place,
  *,
  axis: int = 0,
  neighbours: int = 0,
  out: np.ndarray | None = None,
) -> np.ndarray:
  """Reads a box of the image as the network sees it: float32 [z, y, x, channels], in `out` if any.

  Statistics are those of the volume, for a group of one section without neighbours those of its
  file. With neighbours, the box is one plane, and so many planes before and behind it are further
  channels; the volume is mirrored at its ends. Other arguments as for `read_block`.
  """
  statistics = None
  if normalisation.needs_volume:
    joined = len(group) > 1 or neighbours > 0
    statistics = split.volume_statistics(group[0], joined=joined)
  channels = normalisation.channels
  if out is None:
    out = np.empty((*size, channels * (1 + 2 * neighbours)), np.float32)
  for number, offset in enumerate(range(-neighbours, neighbours + 1)):
    block = _read_plane(split, group, origin, size, axis, offset)
    share = out[..., number * channels : (number + 1) * channels]
    for plane, room in zip(block, share, strict=True):
      normalisation.apply(plane, statistics, out=room)
  return out


def _read_plane(
  split: pairs.Split, group: Group, origin: Place, size: Place, axis: int, offset: int
) -> np.ndarray:
  """A box, moved by `offset` planes; sections that the split does not use are seen, too."""
  if not axis:
    read = functools.partial(split.image_block, offset=offset) if offset else split.image_block
    return read_block(read, group, origin, size)
  z = split_lib.mirrored(origin[0] + offset, shape(split, group, axis=axis)[0])
  return read_block(split.image_block, group, (z, *origin[1:]), size, axis=axis)


def _exchange(place: Place, axis: int) -> tuple[int, ...]:
  if not axis:
    return tuple(place)
  exchanged = list(place)
  exchanged[0], exchanged[axis] = exchanged[axis], exchanged[0]
  return tuple(exchanged)
