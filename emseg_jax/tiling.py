"""Tiles: how an image of any size goes through a network of one input size without seams.

Evaluation and prediction share this code. Images are [*spatial, C] with two or three spatial axes;
tiles overlap, and where they do their probabilities are averaged with the weights of `window`.
Everything here is numpy; the network is a callable, whose result may be a JAX array that is still
being computed.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from emseg_jax.errors import Interrupted

__all__ = ['plan', 'predict_tiled', 'window']

Blend = Literal['gaussian', 'uniform']


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


def window(tile: Sequence[int], blend: Blend) -> np.ndarray:
  """Weights of a tile's voxels in the average over overlapping tiles.

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
  *,
  tile: Sequence[int],
  overlap: float,
  blend: Blend,
  batch_size: int,
  num_classes: int,
  should_stop: Callable[[], bool] | None = None,
) -> np.ndarray:
  """Class probabilities of a whole image, tile by tile.

  An image smaller than the tile is mirrored beyond its far edges. The last batch is filled up with
  zeros, so that `apply_fn` sees one shape and compiles once.

  Args:
    apply_fn: [batch_size, *tile, C] float32 -> probabilities [batch_size, *tile, K], numpy or JAX.
    image: [*spatial, C], normalised.
    tile: size of a tile, voxels.
    overlap: share of a tile that neighbours overlap, at least 0 and below 1.
    blend: see `window`.
    batch_size: tiles per call.
    num_classes: K.
    should_stop: asked before each batch.

  Returns:
    [*spatial, K] float32.

  Raises:
    Interrupted: `should_stop` said so; nothing is returned.
    ValueError: as `plan`, or `apply_fn` returns another shape.
  """
  shape = image.shape[:-1]
  origins = plan(shape, tile, overlap)
  margins = [(0, max(t - s, 0)) for s, t in zip(shape, tile, strict=True)]
  # 'symmetric' repeats the edge voxel and so, unlike 'reflect', works on an axis of one voxel.
  padded = np.pad(image, [*margins, (0, 0)], mode='symmetric') if np.any(margins) else image
  blended = _Blended(padded.shape[:-1], num_classes, window(tile, blend))
  pending = None
  for places in _batches(origins, tile, batch_size):
    if should_stop is not None and should_stop():
      raise Interrupted('stopped between two batches of tiles; start the same command again')
    # A new array per batch: JAX may still be reading the last one.
    tiles = np.zeros((batch_size, *tile, image.shape[-1]), np.float32)
    for i, place in enumerate(places):
      tiles[i] = padded[place]
    running = places, apply_fn(tiles)
    if pending is not None:  # collected while the device works on the batch just started
      blended.add(*pending)
    pending = running
  blended.add(*pending)
  return blended.mean()[tuple(slice(s) for s in shape)]


class _Blended:
  """The weighted average of overlapping tiles; `shape` is spatial, `weight` [*tile]."""

  def __init__(self, shape: Sequence[int], num_classes: int, weight: np.ndarray):
    self._weight = weight[..., None]
    self._sum = np.zeros((*shape, num_classes), np.float32)
    self._weights = np.zeros((*shape, 1), np.float32)

  def add(self, places: Sequence[tuple[slice, ...]], probabilities: Any) -> None:
    values = np.asarray(probabilities, np.float32)
    expected = (*self._weight.shape[:-1], self._sum.shape[-1])
    if values.shape[1:] != expected or len(values) < len(places):
      raise ValueError(f'the network gave {values.shape}, expected [batch, {expected}]')
    for place, result in zip(places, values, strict=False):  # what fills the last batch is dropped
      self._sum[place] += self._weight * result
      self._weights[place] += self._weight

  def mean(self) -> np.ndarray:
    """The average; to be asked for once."""
    self._sum /= self._weights  # in place: an image times its classes may be large
    return self._sum


def _batches(
  origins: Sequence[Sequence[int]], tile: Sequence[int], batch_size: int
) -> Iterator[list[tuple[slice, ...]]]:
  """The tiles' places in the image, `batch_size` at a time."""
  places = (
    tuple(slice(o, o + t) for o, t in zip(origin, tile, strict=True))
    for origin in itertools.product(*origins)
  )
  while batch := list(itertools.islice(places, batch_size)):
    yield batch
