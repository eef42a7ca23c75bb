"""Which region of which volume becomes a training example.

The host draws the place of a region and cuts it out; zoom, flips and the final crop happen on the
device (`augment`), which is why the region may be larger than the patch. Whether a region has
enough foreground, or is balanced, is judged in its middle, an area of the size of the patch. An
image smaller than the region lies at its first corner, the rest is padding of weight 0; `valid`
tells how much of the region is image.

Inside, sections are volumes of one section: positions and sizes are (z, y, x).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emseg_jax import config
from emseg_jax.data import blocks, foreground, labels, normalise, packing, pairs, places
from emseg_jax.errors import DataError

__all__ = ['Example', 'Region', 'Sampler', 'allocate', 'read_example', 'weigh']

Example = dict[str, np.ndarray]
Triple = tuple[int, ...]


class Region(NamedTuple):
  """A box of a group, looked at along `axis` (see `blocks`)."""

  group: blocks.Group
  axis: int
  origin: Triple
  size: Triple


class Sampler:
  """Draws regions. The entries of a pass are sections, or the fixed places of `grid` and `tiles`.

  `random`, `foreground` and `balanced` draw a region in the volume that an entry belongs to (in the
  section itself for networks that see sections), so that volumes count by their sections.
  """

  def __init__(
    self,
    split: pairs.Split,
    *,
    patch: Sequence[int],
    region: Sequence[int],
    options: config.Sampling,
    cache: Path | None = None,
  ) -> None:
    """Lists the entries; reads all labels once where positive copies or the search for foreground
    in volumes that are not kept in memory ask for it.

    Args:
      split: the sections.
      patch: size (y, x) or (z, y, x) of what the network sees.
      region: size of what the device needs for it, at least the patch.
      options: how to draw.
      cache: folder of what such a search found; None: searched anew.

    Raises:
      DataError: volumes are needed and the sections are none, or have voxels of unequal size.
    """
    self._split, self._options = split, options
    flat = (1,) * (3 - len(patch))
    self._patch, self._size = (*flat, *patch), (*flat, *region)
    volumes = ()
    if len(patch) == 3 or options.planes_share:
      volumes = blocks.groups(split, 3)
    if options.planes_share:
      _check_isotropic(split, volumes)
    self._volume_of = {index: volume for volume in volumes for index in volume}
    groups = blocks.groups(split, len(patch))
    self._entries: list[tuple[blocks.Group, Triple | None]]
    if options.kind in ('grid', 'tiles'):
      self._entries = places.list_places(split, groups, self._patch, options)
    else:
      self._entries = [(group, None) for group in groups for _ in group]
    self._cell = tuple(max(1, patch // 2) for patch in self._patch)
    self._cells: dict[blocks.Group, np.ndarray] = {}
    if options.kind == 'foreground' or options.random_share:
      self._cells = foreground.find(split, groups, self._cell, cache=cache)

  def __len__(self) -> int:
    return len(self._entries)

  def weights(self) -> list[float]:
    """How often each entry is to be drawn, relative to the others."""
    return [self._split.sections[group[0]].weight for group, _ in self._entries]

  def draw(self, entry: int, rng: np.random.Generator) -> Region:
    """The region of an entry; everything random comes from `rng`."""
    group, place = self._entries[entry]
    kind, axis = self._options.kind, 0
    if self._options.planes_share and rng.random() < self._options.planes_share:
      axis = int(rng.integers(1, 3))
      group = self._volume_of[group[0]]
    shape = blocks.shape(self._split, group, axis=axis)
    if place is None:
      return self._search(group, axis, shape, kind, rng)
    if self._options.random_share and rng.random() < self._options.random_share:
      return self._search(group, axis, shape, 'foreground', rng)
    if axis:  # any place of the grid along this axis
      place = [int(rng.choice(s)) for s in places.starts(shape, self._patch, self._options)]
    origin = [
      min(max(0, at - (size - patch) // 2), max(0, n - size))
      for at, n, size, patch in zip(place, shape, self._size, self._patch, strict=True)
    ]
    return Region(group, axis, tuple(origin), self._size)

  def _search(
    self, group: blocks.Group, axis: int, shape: Triple, kind: str, rng: np.random.Generator
  ) -> Region:
    """A uniform place; drawn again until it is accepted, the last of `tries` in any case."""
    tries = 1 if kind == 'random' else self._options.tries
    cells = self._cells.get(group, ()) if kind == 'foreground' else ()
    for left in reversed(range(tries)):
      if len(cells):
        origin = self._around(cells[rng.integers(len(cells))], axis, shape, rng)
      else:
        origin = [
          int(rng.integers(0, n - size + 1)) if n > size else 0
          for n, size in zip(shape, self._size, strict=True)
        ]
      region = Region(group, axis, tuple(origin), self._size)
      if not left or self._accepts(self._middle(region, shape), kind):
        break
    return region

  def _around(
    self, cell: np.ndarray, axis: int, shape: Triple, rng: np.random.Generator
  ) -> list[int]:
    """Origin of a region whose patch has a random voxel of the cell at a random place."""
    voxel = [
      int(c * width + rng.integers(width)) for c, width in zip(cell, self._cell, strict=True)
    ]
    voxel[0], voxel[axis] = voxel[axis], voxel[0]
    return [
      min(max(0, v - int(rng.integers(patch)) - (size - patch) // 2), max(0, n - size))
      for v, n, size, patch in zip(voxel, shape, self._size, self._patch, strict=True)
    ]

  def _middle(self, region: Region, shape: Triple) -> Region:
    """The middle of the part of a region that lies in the volume, at most of the patch's size."""
    inside = [min(n, size) for n, size in zip(shape, region.size, strict=True)]
    size = tuple(min(n, patch) for n, patch in zip(inside, self._patch, strict=True))
    margin = [(n - s) // 2 for n, s in zip(inside, size, strict=True)]
    origin = tuple(o + m for o, m in zip(region.origin, margin, strict=True))
    return region._replace(origin=origin, size=size)

  def _accepts(self, region: Region, kind: str) -> bool:
    label = _read(self._split.label_block, region)
    if kind == 'foreground':
      scored = label.size - np.count_nonzero(labels.ignored(label))
      found = np.count_nonzero(labels.foreground(label))
      return scored > 0 and found >= self._options.min_foreground * scored
    counts = np.bincount(label.ravel(), minlength=pairs.IGNORED + 1)[: pairs.IGNORED]
    scored = counts.sum()
    return np.count_nonzero(counts) > 1 and counts.max() <= self._options.max_share * scored


def _check_isotropic(split: pairs.Split, volumes: Sequence[blocks.Group]) -> None:
  for group in volumes:
    volume = split.sections[group[0]].image_volume
    known = [size for size in volume.voxel_size_zyx or () if size]
    if known and max(known) > 1.01 * min(known):
      raise DataError(
        f'{volume.path}: its voxels are {volume.voxel_size_zyx} nm (z, y, x), but '
        'data.sampling.planes_share needs voxels of equal size; set it to 0'
      )


def allocate(
  count: int, region: Sequence[int], *, channels: int, targets: Iterable[str] = ()
) -> Example:
  """Room for examples, to be filled by `read_example` and `weigh`.

  Args:
    count: how many.
    region: their size, (y, x) or (z, y, x).
    channels: of the image, those of neighbours included.
    targets: names of maps.

  Returns:
    image f32 [count, *region, channels]; label i32 [count, *region]; weight f32 [count, *region];
    valid i32 [count, ndim]; targets f32 [count, *region]; index i32 [count]; without values, in one
    buffer (see `packing`).
  """
  shape = (count, *region)
  return packing.allocate(
    {
      'image': ((*shape, channels), np.float32),
      'label': (shape, np.int32),
      'weight': (shape, np.float32),
      'valid': ((count, len(region)), np.int32),
      **dict.fromkeys(targets, (shape, np.float32)),
      'index': ((count,), np.int32),
    }
  )


def read_example(
  split: pairs.Split,
  region: Region,
  into: Example,
  *,
  normalisation: normalise.Normalisation,
  targets: Mapping[str, Sequence[np.ndarray]] | None = None,
  neighbours: int = 0,
) -> None:
  """Cuts a region out of images, labels and targets.

  Args:
    split: where the sections are.
    region: what to cut out.
    into: arrays of one example, as `allocate` makes them. Written are the normalised image; the
      label, NO_ID where not scored or padded; valid, the extent of the image in the region; the
      targets. The weights are for `weigh` to write. Instance ids are numbered anew, since files may
      have some of 64 bits.
    normalisation: applied to the image.
    targets: maps by name, an array [Y, X] per section of the split.
    neighbours: so many planes before and behind are further channels of the image.
  """
  ndim = len(into['valid'])
  room = into if ndim == 3 else {name: array[None] for name, array in into.items()}
  group, axis, origin, size = region
  blocks.read_image(
    split, normalisation, group, origin, size, axis=axis, neighbours=neighbours, out=room['image']
  )
  stored = _read(split.label_block, region)
  label = room['label']
  if stored.dtype == np.uint8:  # classes
    label[...] = stored
    if stored.max() == pairs.IGNORED:
      label[labels.ignored(stored)] = labels.NO_ID
  else:
    label[...] = labels.renumbered(stored)
  if targets:
    for name, sections in targets.items():
      room[name][...] = _read(blocks.of_sections(sections), region)
  extents = tuple(map(min, blocks.shape(split, group, axis=axis), size))
  if extents != size:  # what is mirrored beyond the image
    for number, extent in enumerate(extents):
      label[(slice(None),) * number + (slice(extent, None),)] = labels.NO_ID
  into['valid'][:] = extents[3 - ndim :]


def weigh(batch: Example) -> None:
  """Gives weight 1 to what is scored, weight 0 and label 0 to what `read_example` left NO_ID.

  At once for a batch, in which there is often nothing to ignore.
  """
  label, weight = batch['label'], batch['weight']
  weight.fill(1.0)
  if label.min() < 0:
    ignored = label < 0
    label[ignored] = 0
    weight[ignored] = 0.0


def _read(read: blocks.ReadFn, region: Region) -> np.ndarray:
  return blocks.read_block(read, region.group, region.origin, region.size, axis=region.axis)
