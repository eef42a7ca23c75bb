"""Tiles: how an image of any size goes through a network of one input size without seams.

Evaluation and prediction share this code. Images are [*spatial, C] with two or three spatial axes.
Tiles overlap; where they do, their probabilities are averaged with weights that are a product over
axes. They either blend, and the result hardly shows where they lie, or are exact: only voxels that
see nothing of a tile's edge count, and the result is that of the whole image at once.
Everything here is numpy; the network is a callable, whose result may be a JAX array that is still
being computed.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from emseg_jax.errors import ConfigError, Interrupted

__all__ = ['Blend', 'Layout', 'halo', 'lay_out', 'plan', 'predict_tiled', 'window']

Blend = Literal['gaussian', 'uniform', 'exact']


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where the tiles of an image lie, and what each of their voxels counts.

  Attributes:
    shape: spatial size of the image, voxels.
    tile: size of a tile, voxels.
    origins: where tiles begin, per axis; the last tile may reach beyond the image.
    blend: 'gaussian' and 'uniform' as `window`; of 'exact' see `halo`.
    halo: per axis, voxels at either end of a tile that do not count, unless the image ends there.
  """

  shape: tuple[int, ...]
  tile: tuple[int, ...]
  origins: tuple[tuple[int, ...], ...]
  blend: Blend
  halo: tuple[int, ...]

  def used(self, axis: int, origin: int) -> tuple[int, int]:
    """Along an axis, where the voxels begin and end that this tile counts for."""
    first, last = self.origins[axis][0], self.origins[axis][-1]
    begin = origin if origin == first else origin + self.halo[axis]
    end = origin + self.tile[axis]
    return begin, end if origin == last else end - self.halo[axis]

  def weights(self, axis: int, origin: int) -> np.ndarray:
    """What the voxels of this tile count along an axis, [tile] float32."""
    size = self.tile[axis]
    if self.blend != 'exact':
      return window((size,), self.blend)
    begin, end = (place - origin for place in self.used(axis, origin))
    found = np.zeros(size, np.float32)
    found[begin:end] = 1
    return found

  def tile_weights(self, place: Sequence[int]) -> np.ndarray:
    """The product over axes, [*tile] float32, for the tile that begins at `place`."""
    along = (self.weights(axis, origin) for axis, origin in enumerate(place))
    return functools.reduce(np.multiply.outer, along)

  def pad(self, image: np.ndarray, beyond: Sequence[int]) -> np.ndarray:
    """Adds `beyond` voxels behind the far ends of [*spatial, C], as the network is to see them.

    Mirrored, or for 'exact' the zeros that networks themselves pad with.
    """
    if not any(beyond):
      return image
    # 'symmetric' repeats the edge voxel and so, unlike 'reflect', works on an axis of one voxel.
    mode = 'constant' if self.blend == 'exact' else 'symmetric'
    return np.pad(image, [*((0, n) for n in beyond), (0, 0)], mode=mode)


def lay_out(
  shape: Sequence[int],
  tile: Sequence[int],
  *,
  overlap: float,
  blend: Blend,
  divisor: Sequence[int] | None = None,
  receptive_field: Sequence[int] | None = None,
) -> Layout:
  """Lays tiles over an image.

  Args:
    shape: spatial size of the image, voxels.
    tile: size of a tile, voxels; for 'exact' cut to the image and rounded up to the divisor.
    overlap: share of a tile that neighbours overlap; without meaning for 'exact'.
    blend: see `Layout`.
    divisor, receptive_field: of the network, voxels; needed by 'exact'.

  Raises:
    ConfigError: a tile is too small to be exact.
    ValueError: as `plan`.
  """
  if blend != 'exact':
    origins = plan(shape, tile, overlap)
    return Layout(tuple(shape), tuple(tile), origins, blend, (0,) * len(tile))
  halos, sizes, origins = [], [], []
  for size, side, step, field in zip(shape, tile, divisor, receptive_field, strict=True):
    margin, whole = halo(field, step), _ceil(size, step)
    side = min(_ceil(side, step), whole)
    stride = side - 2 * margin
    if side < whole and stride < step:
      raise ConfigError(
        f'predict.tile={tuple(tile)}: is too small for predict.blend=exact, which drops {margin} '
        f'voxels at either end of {side}; at least {2 * margin + step} are needed'
      )
    gaps = -(-(whole - side) // stride) if side < whole else 0
    halos.append(margin)
    sizes.append(side)
    # The last one ends with the image: it overlaps more than others.
    origins.append(tuple(min(i * stride, whole - side) for i in range(gaps + 1)))
  return Layout(tuple(shape), tuple(sizes), tuple(origins), blend, tuple(halos))


def halo(receptive_field: int, divisor: int) -> int:
  """How far from a tile's edge a voxel must be to see nothing of it, a multiple of the divisor.

  A voxel sees `receptive_field` voxels at most, but not as many to either side: where in a cell of
  `divisor` voxels it lies moves what it sees by less than the cell.
  """
  return _ceil(-(-(receptive_field - 1 + divisor - 1) // 2), divisor)


def _ceil(size: int, step: int) -> int:
  return -(-size // step) * step


def plan(shape: Sequence[int], tile: Sequence[int], overlap: float) -> tuple[tuple[int, ...], ...]:
  """Where tiles start along each axis.

  The fewest tiles whose neighbours overlap by at least round(overlap · tile) voxels, spread evenly
  from the first voxel to the last. An axis shorter than the tile has the single origin 0; the
  caller pads it.

  Args:
    shape: spatial size of the image, voxels.
    tile: size of a tile, voxels; as many axes as `shape`.
    overlap: share of a tile, at least 0 and below 1.

  Returns:
    One rising tuple of origins per axis.

  Raises:
    ValueError: numbers of axes differ, a size is below 1, or the overlap is out of range.
  """
  if len(shape) != len(tile):
    raise ValueError(f'tile {tuple(tile)} must have as many axes as the image {tuple(shape)}')
  if min(*shape, *tile) < 1:
    raise ValueError(f'image {tuple(shape)} and tile {tuple(tile)} must be at least 1 voxel wide')
  if not 0 <= overlap < 1:
    raise ValueError(f'overlap is {overlap}, must be at least 0 and below 1')
  return tuple(_origins(s, t, overlap) for s, t in zip(shape, tile, strict=True))


def _origins(size: int, tile: int, overlap: float) -> tuple[int, ...]:
  if size <= tile:
    return (0,)
  stride = max(tile - round(overlap * tile), 1)
  gaps = math.ceil((size - tile) / stride)
  return tuple(i * (size - tile) // gaps for i in range(gaps + 1))


def window(tile: Sequence[int], blend: Literal['gaussian', 'uniform']) -> np.ndarray:
  """Weights of a tile's voxels in the average over overlapping tiles, all tiles alike.

  Args:
    tile: size of a tile, voxels.
    blend: 'gaussian' trusts the centre (sigma = tile / 8 along each axis), 'uniform' all voxels
      alike.

  Returns:
    [*tile] float32, at most 1; no corner is below e^-8 per axis, so none underflows.
  """
  if blend == 'uniform':
    return np.ones(tile, np.float32)
  exponent = np.zeros(tile)
  for axis, size in enumerate(tile):
    distance = (np.arange(size) - (size - 1) / 2) / (size / 8)
    along = [size if a == axis else 1 for a in range(len(tile))]
    exponent = exponent + (distance**2 / 2).reshape(along)
  return np.exp(-exponent).astype(np.float32)


def predict_tiled(
  apply_fn: Callable[[np.ndarray], Any],
  image: np.ndarray,
  layout: Layout,
  *,
  batch_size: int,
  num_classes: int,
  should_stop: Callable[[], bool] | None = None,
) -> np.ndarray:
  """Class probabilities of a whole image, tile by tile.

  The last batch is filled up with zeros, so that `apply_fn` sees one shape and compiles once.

  Args:
    apply_fn: [batch_size, *tile, C] float32 -> probabilities [batch_size, *tile, K], numpy or JAX.
    image: [*spatial, C], normalised.
    layout: of an image of this size.
    batch_size: tiles per call.
    num_classes: K.
    should_stop: asked before each batch.

  Returns:
    [*spatial, K] float32.

  Raises:
    Interrupted: `should_stop` said so; nothing is returned.
    ValueError: `apply_fn` returns another shape.
  """
  shape, tile = image.shape[:-1], layout.tile
  ends = (origins[-1] + side for origins, side in zip(layout.origins, tile, strict=True))
  padded = layout.pad(image, [max(end - size, 0) for end, size in zip(ends, shape, strict=True)])
  blended = _Blended(padded.shape[:-1], num_classes, layout)
  pending = None
  for places in _batches(layout.origins, batch_size):
    if should_stop is not None and should_stop():
      raise Interrupted('stopped between two batches of tiles; start the same command again')
    # A new array per batch: JAX may still be reading the last one.
    tiles = np.zeros((batch_size, *tile, image.shape[-1]), np.float32)
    for i, place in enumerate(places):
      tiles[i] = padded[_box(place, tile)]
    running = places, apply_fn(tiles)
    if pending is not None:  # collected while the device works on the batch just started
      blended.add(*pending)
    pending = running
  blended.add(*pending)
  return blended.mean()[tuple(slice(s) for s in shape)]


class _Blended:
  """The weighted average of overlapping tiles; `shape` is spatial."""

  def __init__(self, shape: Sequence[int], num_classes: int, layout: Layout):
    self._layout = layout
    self._sum = np.zeros((*shape, num_classes), np.float32)
    self._weights = np.zeros((*shape, 1), np.float32)

  def add(self, places: Sequence[tuple[int, ...]], probabilities: Any) -> None:
    values, tile = np.asarray(probabilities, np.float32), self._layout.tile
    expected = (*tile, self._sum.shape[-1])
    if values.shape[1:] != expected or len(values) < len(places):
      raise ValueError(f'the network gave {values.shape}, expected [batch, {expected}]')
    for place, result in zip(places, values, strict=False):  # what fills the last batch is dropped
      weight = self._layout.tile_weights(place)[..., None]
      self._sum[_box(place, tile)] += weight * result
      self._weights[_box(place, tile)] += weight

  def mean(self) -> np.ndarray:
    """The average; to be asked for once."""
    self._sum /= self._weights  # in place: an image times its classes may be large
    return self._sum


def _box(place: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
  return tuple(slice(p, p + n) for p, n in zip(place, size, strict=True))


def _batches(origins: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[tuple[int, ...]]]:
  """Where tiles begin, `batch_size` at a time."""
  places = itertools.product(*origins)
  while batch := list(itertools.islice(places, batch_size)):
    yield batch
