"""How many tiles are predicted at once, and what to change if even that does not fit.

The numbers are those of the compiled prediction step (`memory.step_bytes`).
"""

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp

from emseg_jax import experiment, memory, sharding, tiling
from emseg_jax.memory import format_bytes

__all__ = ['explain_prediction', 'predict_batch', 'prediction_bytes', 'propose_prediction']

LOGGER = logging.getLogger(__name__)
ON_CPU = 4  # tiles at once over all devices: more make a CPU no faster
PER_DEVICE = 16  # tiles at once on an accelerator, which is busy with these
SHARE = 0.5  # of the memory; the next tiles and the sums of a block take some, too

Tile = tuple[int, ...]


def prediction_bytes(
  setup: experiment.Experiment, step: Any, variables: Any, *, tile: Sequence[int], count: int
) -> float | None:
  """What the prediction step needs on each device for `count` tiles at once; compiles it.

  A later call of `step` with this shape uses what has been compiled.

  Args:
    setup: of the run.
    step: jitted, (variables, image [B, *tile, C] float32) -> probabilities.
    variables: of the network, arrays or their shapes.
    tile: spatial size, voxels.
    count: B, a multiple of the devices along `data`.

  Returns:
    As `memory.bytes_to_compile`.
  """
  split = sharding.batch_sharding(setup.mesh)
  shape = (count, *tile, setup.config.data.input_channels)
  image = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split)
  return memory.bytes_to_compile(lambda: step.lower(variables, image).compile())


def predict_batch(
  setup: experiment.Experiment, step: Any, variables: Any, *, tile: Sequence[int]
) -> int:
  """How many tiles are predicted at once: a multiple of the devices along `data`.

  predict.batch_size, rounded up; without it the largest of 1, 2, 4, 8, 16 per device whose step
  takes at most half of the memory. On CPUs it is at most 4 in all, or one per device; the same with
  several processes, without looking at the memory, because they have to choose alike.

  Args:
    setup, step, variables, tile: as of `prediction_bytes`.
  """
  shards, wanted = setup.mesh.shape['data'], setup.config.predict.batch_size
  if wanted is not None:
    return -(-wanted // shards) * shards
  limit, together = memory.device_memory(), jax.process_count() > 1
  few = together or jax.default_backend() == 'cpu'
  most = max(1, ON_CPU // shards) if few else PER_DEVICE
  counts = [shards * 2**k for k in range(most.bit_length())]
  if together:
    return counts[-1]
  found = None
  if limit is not None:
    found = memory.largest_fitting(
      counts,
      lambda n: prediction_bytes(setup, step, variables, tile=tile, count=n),
      limit=SHARE * limit,
      size_of=lambda n: n,
    )
  if found is None:
    return counts[0]
  count, needed = found
  LOGGER.info(
    'Predicting %d tiles of %s at once, which needs %s of %s on each device.',
    count,
    tuple(tile),
    format_bytes(needed),
    format_bytes(limit),
  )
  return count


def explain_prediction(
  setup: experiment.Experiment,
  step: Any,
  variables: Any,
  *,
  tile: Sequence[int],
  count: int,
  block: Sequence[int] = (),
  held: int = 0,
) -> AbstractContextManager[None]:
  """Turns running out of memory inside into a `DeviceError` that says what would fit.

  Args:
    setup, step, variables, tile, count: as of `prediction_bytes`.
    block: of a volume predicted in blocks, the size of one, voxels.
    held: bytes that such a block takes beside the step.
  """
  return memory.explain_out_of_memory(
    'the prediction',
    lambda: propose_prediction(
      setup, step, variables, tile=tile, count=count, block=block, held=held
    ),
  )


def propose_prediction(
  setup: experiment.Experiment,
  step: Any,
  variables: Any,
  *,
  tile: Sequence[int],
  count: int,
  block: Sequence[int] = (),
  held: int = 0,
) -> str:
  """The end of a sentence: a smaller block if that takes most; else fewer tiles at once, or else
  smaller ones.

  Args:
    setup, step, variables, tile, count, block, held: as of `explain_prediction`.
  """

  def bytes_of(choice: tuple[Tile, int]) -> float | None:
    return prediction_bytes(setup, step, variables, tile=choice[0], count=choice[1])

  tile, shards = tuple(tile), setup.mesh.shape['data']
  alone = jax.process_count() == 1  # else processes would compile different programs
  needed = bytes_of((tile, count)) if alone else None
  total = None if needed is None else needed + held
  limit, numbers = memory.usable(total), memory.compare(total)
  if needed is None or limit is None:
    return f'{numbers}lower predict.batch_size={count} or predict.tile={tile}'
  if block and needed < min(held, limit):
    part = _halved(block, (limit - needed) / held * math.prod(block))
    return f'{numbers}set {_flag("block", part)}'
  fewer = [shards * 2**k for k in range(count.bit_length()) if shards * 2**k < count]
  for choices in (
    [(tile, n) for n in fewer],
    [(t, shards) for t in _smaller_tiles(setup, tile)],
  ):
    found = memory.largest_fitting(
      choices, bytes_of, limit=limit - held, size_of=lambda c: math.prod(c[0]) * c[1]
    )
    if found is not None:
      (size, number), fitting = found
      flags = f'--config.predict.batch_size={number}'
      if size != tile:
        flags += f' {_flag("tile", size)}'
      return f'{numbers}set {flags}, which needs {format_bytes(fitting + held)}'
  return f'{numbers}no smaller batch or tile fits either; take a smaller network'


def _smaller_tiles(setup: experiment.Experiment, tile: Tile) -> list[Tile]:
  """Those that predict.blend allows."""
  model, least = setup.model, setup.model.divisor
  if setup.config.predict.blend == 'exact':
    axes = zip(model.receptive_field, model.divisor, strict=True)
    least = [2 * tiling.halo(field, step) + step for field, step in axes]
  tiles = memory.smaller(tile, model.divisor)
  return [t for t in tiles if all(n >= m for n, m in zip(t, least, strict=True))]


def _halved(block: Sequence[int], voxels: float) -> tuple[int, ...]:
  """A block of at most so many voxels, halved along its longest side as often as it takes."""
  size = list(block)
  while math.prod(size) > max(1, voxels):
    longest = size.index(max(size))
    size[longest] = -(-size[longest] // 2)
  return tuple(size)


def _flag(field: str, size: Sequence[int]) -> str:
  return f"'--config.predict.{field}=({','.join(map(str, size))})'"  # parentheses are the shell's
