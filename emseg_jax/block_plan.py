"""How a volume that fits nowhere is predicted block by block: geometry only.

Tiles lie where `tiling.lay_out` puts them in the whole volume. A block is a box of the output; it
is computed from all tiles that count for it, so that blocks meet without seams and the result is
that of the whole volume. Tiles that count for several blocks are computed for each. Positions and
sizes are (z, y, x), in voxels of the volume; networks for sections have tiles of one section.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from emseg_jax import tiling
from emseg_jax.errors import ConfigError

__all__ = ['Block', 'Plan', 'make_plan', 'parse_roi']

Triple = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Block:
  """Attributes:
  number: its place in the plan.
  start, stop: the box that it writes.
  origin: first voxel of the first of its tiles; the accumulator begins there.
  tiles: where its tiles begin, relative to `origin`.
  """

  number: int
  start: Triple
  stop: Triple
  origin: Triple
  tiles: tuple[Triple, ...]

  @property
  def inside(self) -> tuple[slice, ...]:
    """The box in the accumulator."""
    bounds = zip(self.start, self.stop, self.origin, strict=True)
    return tuple(slice(a - o, b - o) for a, b, o in bounds)


@dataclasses.dataclass(frozen=True)
class Plan:
  """Attributes:
  layout: tiles of the whole volume.
  start, stop: what of it is predicted.
  block: size of a block; the last along an axis may be smaller.
  """

  layout: tiling.Layout
  start: Triple
  stop: Triple
  block: Triple

  @property
  def tile(self) -> Triple:
    return self.layout.tile

  @property
  def shape(self) -> Triple:
    """Size of the output."""
    return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

  @property
  def counts(self) -> Triple:
    """Blocks along each axis."""
    return tuple(-(-n // b) for n, b in zip(self.shape, self.block, strict=True))

  def __len__(self) -> int:
    return int(np.prod(self.counts, dtype=np.int64))

  @property
  def extent(self) -> Triple:
    """Size of an accumulator that holds the tiles of any block."""
    return tuple(
      max(o[-1] + tile - o[0] for _, _, o in self._along(axis))
      for axis, tile in enumerate(self.tile)
    )

  @property
  def effort(self) -> float:
    """Tiles that are computed, over those that touch the output."""
    rows = [[len(o) for _, _, o in self._along(axis)] for axis in range(3)]
    bounds = zip(self.start, self.stop, strict=True)
    needed = [len(self._touching(axis, *box)) for axis, box in enumerate(bounds)]
    return float(np.prod([sum(r) / n for r, n in zip(rows, needed, strict=True)]))

  def blocks(self) -> Iterator[Block]:
    """All blocks, along x first."""
    places = itertools.product(*(self._along(axis) for axis in range(3)))
    for number, axes in enumerate(places):
      start, stop, origins = zip(*axes, strict=True)
      origin = tuple(o[0] for o in origins)
      tiles = itertools.product(*([v - o[0] for v in o] for o in origins))
      yield Block(number, start, stop, origin, tuple(tiles))

  def weights(self, block: Block) -> list[np.ndarray]:
    """Per axis, the sum over the block's tiles of `Layout.weights`, [extent] float32.

    Weights are a product over axes, and tiles form a grid, so these determine the sum of weights of
    every voxel. Where nothing counts it is 1, nothing is divided by 0 there.
    """
    sums = []
    for axis, (extent, tile) in enumerate(zip(self.extent, self.tile, strict=True)):
      total, origin = np.zeros(extent, np.float32), block.origin[axis]
      for place in sorted({t[axis] for t in block.tiles}):
        total[place : place + tile] += self.layout.weights(axis, origin + place)
      sums.append(np.where(total > 0, total, np.float32(1)))
    return sums

  def to_json(self) -> dict[str, Any]:
    record = dataclasses.asdict(self)
    return record.pop('layout') | record

  def _along(self, axis: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """Start, stop and origins of the tiles of every block along one axis."""
    found = []
    for start in range(self.start[axis], self.stop[axis], self.block[axis]):
      stop = min(start + self.block[axis], self.stop[axis])
      found.append((start, stop, self._touching(axis, start, stop)))
    return found

  def _touching(self, axis: int, start: int, stop: int) -> tuple[int, ...]:
    """Origins of the tiles that count for a voxel from start to stop, along an axis."""
    used = ((o, *self.layout.used(axis, o)) for o in self.layout.origins[axis])
    return tuple(o for o, begin, end in used if begin < stop and end > start)


def make_plan(
  layout: tiling.Layout,
  *,
  voxel_bytes: int,
  memory: int,
  chunk: int,
  block: Sequence[int] | None = None,
  roi: Sequence[slice] | None = None,
) -> Plan:
  """Lays out blocks.

  Args:
    layout: tiles of the whole volume, with three axes.
    voxel_bytes: what a voxel of a block and of the tiles around it takes while it is computed.
    memory: what a block may take, bytes.
    chunk: side of the output's chunks; blocks are multiples of it, or as large as the output.
    block: size of a block, rounded up to chunks; None: as large as the memory allows, so that
      little is computed twice, but at least a tile.
    roi: box to predict, (z, y, x); None: all.

  Raises:
    ConfigError: the box is empty or reaches beyond the volume.
  """
  roi = tuple(roi or (slice(None),) * 3)
  bounds = []
  for axis, part, size in zip('zyx', roi, layout.shape, strict=True):
    start, stop = part.start or 0, size if part.stop is None else part.stop
    if not 0 <= start < stop <= size:
      raise ConfigError(
        f'predict.roi: {start}:{stop} along {axis} is not a part of the volume, 0:{size}'
      )
    bounds.append((start, stop))
  start, stop = zip(*bounds, strict=True)
  plan = Plan(layout, start, stop, (1, 1, 1))
  if block is not None:
    block = (*(1,) * (3 - len(block)), *block)
    return _with_block(plan, block, chunk)
  plan = _with_block(plan, layout.tile, chunk)
  while (larger := _grown(plan, chunk)) is not None:
    if np.prod(larger.extent, dtype=np.int64) * voxel_bytes > memory:
      break
    plan = larger
  return plan


def _with_block(plan: Plan, block: Sequence[int], chunk: int) -> Plan:
  rounded = [min(n, -(-b // chunk) * chunk) for n, b in zip(plan.shape, block, strict=True)]
  return dataclasses.replace(plan, block=tuple(rounded))


def _grown(plan: Plan, chunk: int) -> Plan | None:
  """Twice as large along the axis where most is computed twice; None where that would not help."""
  axes = zip(plan.extent, plan.block, plan.shape, strict=True)
  ratios = [extent / block if block < size else 0.0 for extent, block, size in axes]
  axis = int(np.argmax(ratios))
  if ratios[axis] <= 1:
    return None
  block = list(plan.block)
  block[axis] *= 2
  return _with_block(plan, block, chunk)


def parse_roi(text: str) -> tuple[slice, slice, slice]:
  """'10:20,0:512,:' -> three slices.

  Raises:
    ConfigError: the text has another form.
  """
  if not re.fullmatch(r'\d*:\d*,\d*:\d*,\d*:\d*', text):
    raise ConfigError(f'predict.roi={text}: must be z0:z1,y0:y1,x0:x1, such as 0:64,:,512:1024')
  parts = [part.split(':') for part in text.split(',')]
  z, y, x = (slice(*(int(number) if number else None for number in part)) for part in parts)
  return z, y, x
