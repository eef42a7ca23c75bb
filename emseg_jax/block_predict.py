"""Volumes of any size, block by block: read, predicted and written at the same time, resumable.

Memory is that of a block. Probabilities are added up and reduced to labels, and to integer maps
where these are wanted, on the device. A block that is on disk is never computed again.
"""

import concurrent.futures
import dataclasses
import datetime
import functools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from emseg_jax.block_plan import Block, Plan
from emseg_jax.errors import Interrupted

__all__ = ['Result', 'Work', 'compute_blocks', 'predict_blocks']

LOGGER = logging.getLogger(__name__)
Result = tuple[np.ndarray | None, np.ndarray | None]  # labels and maps


@dataclasses.dataclass(frozen=True)
class Work:
  """How a block is computed.

  Attributes:
    read: (origin, size) -> normalised image f32 [z, y, x, C], inside the volume.
    apply: image tiles f32 [batch_size, *tile, C] -> probabilities [batch_size, *tile, K] on the
      device; tiles of one section have no z axis.
    decide: probabilities [..., K] -> label values [...] uint8, on the device; None: there are none.
    write: (start, labels uint8 [z, y, x], maps [z, y, x, K] or None); start counts from the first
      voxel of the output. Needed by `predict_blocks`.
    mask: (start, size) -> bool [z, y, x], False where nothing is to be predicted; None: everywhere.
    flat: tiles are sections.
    channels: C.
    num_maps: K.
    batch_size: tiles per call of `apply`.
    scaled: integer type of the maps, or 'float32': as they are; None: none are made.
  """

  read: Callable[[Sequence[int], Sequence[int]], np.ndarray]
  apply: Callable[[np.ndarray], jax.Array]
  decide: Callable[[jax.Array], jax.Array] | None
  write: Callable[[Sequence[int], np.ndarray, np.ndarray | None], None] | None
  mask: Callable[[Sequence[int], Sequence[int]], np.ndarray] | None
  flat: bool
  channels: int
  num_maps: int
  batch_size: int
  scaled: str | None = None


def predict_blocks(
  plan: Plan,
  work: Work,
  *,
  numbers: Collection[int],
  on_block: Callable[[int], None],
  should_stop: Callable[[], bool] | None = None,
) -> int:
  """Computes blocks in order. The next one is read, and the last one written, meanwhile.

  Args:
    plan: geometry.
    work: how a block is computed.
    numbers: which blocks.
    on_block: called with the number of a block that has been written.
    should_stop: asked before each batch of tiles.

  Returns:
    How many blocks were computed; those without a voxel in the mask are only written.

  Raises:
    Interrupted: `should_stop` said so. Blocks reported to `on_block` are whole.
    DataError, OutputError: of reading and writing.
  """
  wanted = set(numbers)
  todo = [block for block in plan.blocks() if block.number in wanted]
  progress, computed = _Progress(todo), 0
  with concurrent.futures.ThreadPoolExecutor(1) as writer:
    written: concurrent.futures.Future | None = None
    for block, result in compute_blocks(plan, work, todo=todo, should_stop=should_stop):
      computed += result is not None
      if written is not None:
        progress.log(written.result())
      written = writer.submit(_write, plan, work, block, result or _nothing(block, work), on_block)
    if written is not None:
      progress.log(written.result())
  return computed


def compute_blocks(
  plan: Plan,
  work: Work,
  *,
  todo: Sequence[Block],
  should_stop: Callable[[], bool] | None = None,
) -> Iterator[tuple[Block, Result | None]]:
  """Blocks in order with what was computed, None without a voxel in the mask; reads one ahead.

  Raises:
    DataError, Interrupted: as `predict_blocks`.
  """
  with concurrent.futures.ThreadPoolExecutor(1) as reader:
    coming = _read_ahead(reader, functools.partial(_read, plan, work), todo)
    for block, (image, mask) in zip(todo, coming, strict=True):
      if image is None:
        yield block, None
      else:
        yield block, _masked(_compute(plan, work, block, image, should_stop), mask)


def _read_ahead(
  pool: concurrent.futures.Executor, read: Callable[[Block], tuple], todo: Sequence[Block]
) -> Iterator[tuple]:
  """What is read for each block, one block ahead."""
  ahead = None
  for block in todo:
    current, ahead = ahead, pool.submit(read, block)
    if current is not None:
      yield current.result()
  if ahead is not None:
    yield ahead.result()


def _read(plan: Plan, work: Work, block: Block) -> tuple[np.ndarray | None, np.ndarray | None]:
  """Image of all tiles of a block, and its mask; no image if nothing is to be predicted."""
  mask = None
  if work.mask is not None:
    size = [b - a for a, b in zip(block.start, block.stop, strict=True)]
    mask = work.mask(block.start, size)
    if not mask.any():
      return None, mask
  last = [max(place) for place in zip(*block.tiles, strict=True)]
  size = [place + tile for place, tile in zip(last, plan.tile, strict=True)]
  left = [end - o for end, o in zip(plan.layout.shape, block.origin, strict=True)]
  image = work.read(block.origin, tuple(map(min, size, left)))
  return plan.layout.pad(image, [max(n - m, 0) for n, m in zip(size, left, strict=True)]), mask


def _nothing(block: Block, work: Work) -> Result:
  size = tuple(b - a for a, b in zip(block.start, block.stop, strict=True))
  maps = np.zeros((*size, work.num_maps), work.scaled) if work.scaled else None
  return np.zeros(size, np.uint8), maps


def _masked(result: Result, mask: np.ndarray | None) -> Result:
  """Label 0 and probability 0 outside the mask."""
  if mask is None:
    return result
  labels, maps = result
  return labels * mask, None if maps is None else maps * mask[..., None]


def _compute(
  plan: Plan,
  work: Work,
  block: Block,
  image: np.ndarray,
  should_stop: Callable[[], bool] | None,
) -> Result:
  """Labels and maps of a block from the image of its tiles."""
  total = jnp.zeros((*plan.extent, work.num_maps), jnp.float32)
  for first in range(0, len(block.tiles), work.batch_size):
    if should_stop is not None and should_stop():
      raise Interrupted('stopped between two batches of tiles; start the same command again')
    places = block.tiles[first : first + work.batch_size]
    # A new array per batch: JAX may still be reading the last one.
    tiles = np.zeros((work.batch_size, *plan.tile, work.channels), np.float32)
    for row, place in enumerate(places):
      tiles[row] = image[tuple(slice(p, p + t) for p, t in zip(place, plan.tile, strict=True))]
    probabilities = work.apply(tiles[:, 0] if work.flat else tiles)
    if work.flat:
      probabilities = probabilities[:, None]
    padded = np.zeros((work.batch_size, 3), np.int32)
    padded[: len(places)] = places
    weights = _weights(plan, block, padded)
    total = _add(total, probabilities, *weights, padded, len(places))
  sums = plan.weights(block)
  labels, maps = _reduce(total, *sums, decide=work.decide, scaled=work.scaled)
  inside = block.inside
  return tuple(None if a is None else np.asarray(a)[inside] for a in (labels, maps))


def _weights(plan: Plan, block: Block, places: np.ndarray) -> list[np.ndarray]:
  """Of each tile along each axis, [batch_size, tile] float32 three times."""
  return [
    np.stack([plan.layout.weights(axis, block.origin[axis] + place[axis]) for place in places])
    for axis in range(3)
  ]


@functools.partial(jax.jit, donate_argnums=0)
def _add(
  total: jax.Array,
  probabilities: jax.Array,
  z: jax.Array,
  y: jax.Array,
  x: jax.Array,
  places: jax.Array,
  count: jax.Array,
) -> jax.Array:
  """Adds the first `count` tiles, weighted along each axis, where they belong."""

  def add(row: jax.Array, total: jax.Array) -> jax.Array:
    place = (*places[row], 0)
    weight = z[row, :, None, None] * y[row, None, :, None] * x[row, None, None, :]
    tile = weight[..., None] * probabilities[row]
    old = jax.lax.dynamic_slice(total, place, tile.shape)
    return jax.lax.dynamic_update_slice(total, old + tile, place)

  return jax.lax.fori_loop(0, count, add, total)


@functools.partial(jax.jit, static_argnames=('decide', 'scaled'))
def _reduce(
  total: jax.Array,
  z: jax.Array,
  y: jax.Array,
  x: jax.Array,
  *,
  decide: Callable[[jax.Array], jax.Array] | None,
  scaled: str | None,
) -> tuple[jax.Array | None, jax.Array | None]:
  """Labels, and maps, perhaps scaled to an integer type, from weighted sums and their weights."""
  weights = z[:, None, None, None] * y[None, :, None, None] * x[None, None, :, None]
  probabilities = total / weights
  maps = probabilities if scaled == 'float32' else None
  if scaled and maps is None:
    maps = jnp.round(probabilities * jnp.iinfo(scaled).max).astype(scaled)
  return None if decide is None else decide(probabilities), maps


def _write(
  plan: Plan, work: Work, block: Block, result: Result, on_block: Callable[[int], None]
) -> Block:
  start = [a - first for a, first in zip(block.start, plan.start, strict=True)]
  work.write(start, *result)
  on_block(block.number)
  return block


class _Progress:
  """Says after each block how fast it goes and how long it will take."""

  def __init__(self, todo: Sequence[Block]) -> None:
    self._total, self._blocks = sum(map(_voxels, todo)), len(todo)
    self._done = self._count = 0
    self._began = time.monotonic()

  def log(self, block: Block) -> None:
    self._done, self._count = self._done + _voxels(block), self._count + 1
    speed = self._done / max(time.monotonic() - self._began, 1e-9)
    left = datetime.timedelta(seconds=round((self._total - self._done) / speed))
    speed /= 1e6
    LOGGER.info('Block %d of %d, %.3g Mvoxel/s, %s left', self._count, self._blocks, speed, left)


def _voxels(block: Block) -> int:
  return int(np.prod([b - a for a, b in zip(block.start, block.stop, strict=True)], dtype=np.int64))
