"""Marker watershed by levels, defined so that blocks do not matter.

Meyer's flooding takes equal voxels in the order in which they happen to be met, which no two blocks
agree on. Here the order is part of the definition, that of an image foresting transform (Falcao et
al. 2004) whose path cost is lexicographic:

    C(marker) = (0, 0)
    C(path to v) = (h, 1)               where the height h of v is above the level so far, else
                   (level, steps + 1)
    C(v) = the least cost of all paths inside the mask from any marker to v

So water rises level by level, and crosses a plateau one voxel per step from all of its shores at
once. v gets the label of the neighbour u that C(v) comes from; of several, of that with the least
C(u), and of these, the smallest label. Every step raises the cost, so costs and labels are unique;
where no two heights are equal, they are those of Meyer's flooding. What no marker reaches stays 0.

Blocks start from the costs of the voxels around them, and are computed again until none of these
changes any more. That ends at the one solution, whatever the blocks and their order. Which blocks
are to be computed again is written down before a block changes, so that a flood may be interrupted
at any moment: a block that was written in part is computed again.
"""

import heapq
import itertools
import logging
import math

import numpy as np

from emseg_jax.postprocess.components import Components
from emseg_jax.postprocess.grid import Box, Grid, Place, Scratch, grown
from emseg_jax.postprocess.journal import Journal, records
from emseg_jax.postprocess.work import Work, nothing

__all__ = ['flood_block', 'watershed']

LOGGER = logging.getLogger(__name__)
NEVER = np.iinfo(np.int64).max
BITS = 32  # of the steps; the level stands above them


def watershed(work: Work, relief: Scratch, markers: Components, joined: np.ndarray) -> Scratch:
  """Extends markers to all of the mask that they reach.

  Neighbouring blocks depend on each other, so one process floods all of them; others wait for it,
  and go on if it dies.

  Args:
    work: the blocks, and what is done.
    relief: uint16, see `relief`; markers lie where it is 1.
    markers: numbered from 1.
    joined: [3, 3, 3] bool, the neighbours that water flows to.

  Returns:
    Labels uint32, the numbers of the markers.

  Raises:
    Gone, Interrupted: as `Work.tasks`.
  """
  costs, labels = work.scratch('costs', 'i8'), work.scratch('labels', 'u4')

  def mark(box: Box) -> np.ndarray:
    ids = markers.ids(*box)
    labels.write(box[0], ids.astype('u4'))
    costs.write(box[0], np.where(ids > 0, 0, NEVER))
    return nothing()

  work.blocks('marks', mark)

  def flood(task: int) -> np.ndarray:
    del task  # there is but one
    _flood(work, relief, costs, labels, joined)
    return nothing()

  work.tasks('flood', 1, flood)
  return labels


def _flood(
  work: Work, relief: Scratch, costs: Scratch, labels: Scratch, joined: np.ndarray
) -> None:
  grid, path = work.grid, work.folder / 'flooded'
  with Journal.locked(path) as journal:  # free: this task has a lock of its own
    due = set(range(math.prod(grid.counts)))
    for number, changed in records(path):
      due = due | set(changed.ravel().tolist()) if changed.size else due - {number}
    sweep = 0
    while due:
      if len(due) > 1:
        LOGGER.info('Watershed, sweep %d: %d blocks', sweep + 1, len(due))
      # There and back again, so that water crosses many blocks in one sweep.
      for number in sorted(due, reverse=sweep % 2 == 1):
        due.discard(number)
        due |= _update(grid, number, relief, costs, labels, joined, journal)
        journal.add(number, nothing())
      sweep += 1


def _update(
  grid: Grid,
  number: int,
  relief: Scratch,
  costs: Scratch,
  labels: Scratch,
  joined: np.ndarray,
  journal: Journal,
) -> set[int]:
  """Floods a block, and returns the neighbours for which that changed something."""
  place = grid.place(number)
  box = start, stop = grid.box(place)
  heights = relief.read(start, stop)
  if not heights.any():
    return set()
  around, core = grown(box, (1, 1, 1), grid.shape)
  cost, label = costs.read(*around), labels.read(*around)
  old_cost, old_label = cost[core], label[core]
  free = old_cost > 0  # all but markers
  new_cost, new_label = cost.copy(), label.copy()
  new_cost[core] = np.where(free, NEVER, old_cost)
  new_label[core] = np.where(free, 0, old_label)
  height = np.zeros(cost.shape, np.uint16)
  height[core] = np.where(free, heights, 0)
  new_cost, new_label = (a[core] for a in flood_block(height, new_cost, new_label, joined))
  changed = (new_cost != old_cost) | (new_label != old_label)
  if not changed.any():
    return set()
  neighbours = _touched(grid, place, changed)
  if neighbours:
    journal.add(number, np.array([sorted(neighbours)]), sync=True)
  costs.write(start, new_cost)
  labels.write(start, new_label)
  return neighbours


def _touched(grid: Grid, place: Place, changed: np.ndarray) -> set[int]:
  """Numbers of the blocks beside the voxels that changed, bool, of a block."""
  side = {-1: slice(None, 1), 0: slice(None), 1: slice(-1, None)}
  neighbours = set()
  for step in itertools.product((-1, 0, 1), repeat=3):
    other = tuple(i + d for i, d in zip(place, step, strict=True))
    there = all(0 <= i < n for i, n in zip(other, grid.counts, strict=True))
    if any(step) and there and changed[tuple(side[d] for d in step)].any():
      neighbours.add(int(np.ravel_multi_index(other, grid.counts)))
  return neighbours


def flood_block(
  height: np.ndarray, cost: np.ndarray, label: np.ndarray, joined: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Floods an array from all voxels with a cost.

  Args:
    height: [z, y, x] uint16 of the voxels to flood; 0 elsewhere.
    cost: int64, level * 2^32 + steps where water starts, NEVER elsewhere.
    label: uint32, where water starts.
    joined: [3, 3, 3] bool, the neighbours that water flows to.

  Returns:
    Costs and labels everywhere.
  """
  shape = tuple(n + 2 for n in height.shape)  # so that no neighbour is outside
  steps = np.argwhere(joined) - 1
  offsets = [int(s @ (shape[1] * shape[2], shape[2], 1)) for s in steps if s.any()]
  height = np.pad(height, 1).ravel()
  cost = np.pad(cost, 1, constant_values=NEVER).ravel()
  label = np.pad(label, 1).ravel()
  queue: dict[int, list[np.ndarray]] = {}
  heap: list[int] = []
  sources = np.flatnonzero(cost != NEVER)
  _push(queue, heap, sources, cost[sources])
  while heap:
    current = heapq.heappop(heap)
    wave = np.concatenate(queue.pop(current))
    wave = wave[cost[wave] == current]  # others were reached at less cost meanwhile
    reached, labels = [], []
    for offset in offsets:
      to = wave + offset
      open_ = (height[to] > 0) & (cost[to] > _next(current, height[to]))
      reached.append(to[open_])
      labels.append(label[wave[open_]])
    to, labels = np.concatenate(reached), np.concatenate(labels)
    label[to] = np.iinfo(label.dtype).max
    np.minimum.at(label, to, labels)
    to = np.unique(to)
    cost[to] = _next(current, height[to])
    _push(queue, heap, to, cost[to])
  inside = (slice(1, -1),) * 3
  return cost.reshape(shape)[inside], label.reshape(shape)[inside]


def _next(cost: int, height: np.ndarray) -> np.ndarray:
  """The cost of a step to voxels of these heights."""
  return np.where(height > cost >> BITS, (height.astype(np.int64) << BITS) + 1, cost + 1)


def _push(
  queue: dict[int, list[np.ndarray]], heap: list[int], voxels: np.ndarray, costs: np.ndarray
) -> None:
  """Puts voxels into the queue of their cost."""
  order = np.argsort(costs, kind='stable')
  values, first = np.unique(costs[order], return_index=True)
  for value, some in zip(values.tolist(), np.split(voxels[order], first)[1:], strict=True):
    if value not in queue:
      queue[value] = []
      heapq.heappush(heap, value)
    queue[value].append(some)
