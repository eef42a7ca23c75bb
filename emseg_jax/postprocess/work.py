"""Passes over the blocks of a volume that may be interrupted at any moment, and shared.

Every pass is cut into shares of consecutive blocks. A process takes a share that no other one has,
does the blocks of it that are not done, and takes the next; when all are gone it waits for the last
ones. So any number of processes that see the same folder work together, and one that dies leaves
its share to the others, or to the next start. What a pass found is read back by each of them, and a
pass begins when all blocks of the one before are on disk.
"""

import datetime
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from emseg_jax.postprocess.grid import Box, Grid, Scratch
from emseg_jax.postprocess.journal import Journal, records

__all__ = ['Gone', 'Work', 'nothing']

LOGGER = logging.getLogger(__name__)
SHARES = 64  # of a pass, at most
SECONDS = 5.0  # between two lines about progress
WAIT = 0.2  # seconds, before asking again what others have done


class Gone(Exception):
  """Another process has completed everything and removed the folder."""


class Work:
  """A computation over the blocks of a volume.

  Args:
    grid: the blocks.
    folder: exists; holds what is done, and intermediate results.
  """

  def __init__(self, grid: Grid, folder: Path) -> None:
    self.grid, self.folder = grid, folder
    self._node = folder.stat().st_ino

  def scratch(self, name: str, dtype: np.dtype | str) -> Scratch:
    """An intermediate result, in chunks that no two blocks share."""
    self.check_there()
    chunk = tuple(min(b, 64) for b in self.grid.block)
    return Scratch(self.folder / name, self.grid.shape, dtype, chunk)

  def blocks(self, name: str, do: Callable[[Box], np.ndarray]) -> list[np.ndarray]:
    """Does something for every block, as `tasks`."""
    count, voxels = math.prod(self.grid.counts), math.prod(self.grid.block)
    return self.tasks(
      name, count, lambda number: do(self.grid.box(self.grid.place(number))), voxels=voxels
    )

  def tasks(
    self,
    name: str,
    count: int,
    do: Callable[[int], np.ndarray],
    *,
    voxels: int = 0,
  ) -> list[np.ndarray]:
    """Does what has not been done yet, here or by other processes.

    Args:
      name: of the pass.
      count: how many tasks there are.
      do: number -> what was found, int64 [rows, n]; what it writes is on disk when it returns.
      voxels: of a task, for the log; 0: nothing is logged.

    Returns:
      What was found by each task, in order.

    Raises:
      Gone: another process has completed everything.
      Interrupted: `grid.should_stop` said so; what is done is kept.
    """
    shares = min(SHARES, count)
    paths = [self.folder / f'done-{name}-{k}' for k in range(shares)]
    bounds = [count * k // shares for k in range(shares + 1)]
    progress = _Progress(name, count, voxels)
    found: list[np.ndarray | None] = [None] * count
    left, waiting = set(range(shares)), False
    while True:
      for k in sorted(left):
        numbers = range(bounds[k], bounds[k + 1])
        own = self._share(paths[k], numbers, do, progress)
        if len(own) == len(numbers):
          left.discard(k)
          for number in numbers:
            found[number] = own[number]
      if not left:
        return found
      if not waiting:
        LOGGER.info('%s: waiting for other processes', name)
        waiting = True
      self._wait()

  def _share(
    self,
    path: Path,
    numbers: range,
    do: Callable[[int], np.ndarray],
    progress: '_Progress',
  ) -> dict[int, np.ndarray]:
    """What is known of a share; all of it, unless another process works at it."""
    self.check_there()
    try:
      with Journal.locked(path) as journal:
        known = dict(records(path))
        if journal is not None:
          progress.skip(len(known))
          for number in numbers:
            if number not in known:
              known[number] = do(number)
              journal.add(number, known[number])
              progress.step()
        return known
    except FileNotFoundError:
      self.check_there()
      raise

  def _wait(self) -> None:
    self.grid.check_to_stop()
    time.sleep(WAIT)

  def check_there(self) -> None:
    """Raises `Gone` if everything has been completed."""
    try:
      node = self.folder.stat().st_ino
    except FileNotFoundError:
      node = None
    if node != self._node:  # a folder of that name may be another one: stores make theirs
      raise Gone


def nothing() -> np.ndarray:
  """What a task found that found nothing."""
  return np.zeros((0, 0), np.int64)


class _Progress:
  """Says now and then how far a pass is, and how long it will take."""

  def __init__(self, name: str, count: int, voxels: int) -> None:
    self._name, self._count, self._voxels = name, count, voxels
    self._done, self._began = 0, time.monotonic()
    self._said = self._began

  def skip(self, count: int) -> None:
    """So many were done before."""
    self._count -= count

  def step(self) -> None:
    """One more is done."""
    self._done += 1
    now = time.monotonic()
    if not self._voxels or now - self._said < SECONDS:
      return
    self._said = now
    each = (now - self._began) / self._done
    left = datetime.timedelta(seconds=round((self._count - self._done) * each))
    speed = self._voxels / each / 1e6
    LOGGER.info(
      '%s: block %d of %d, %.3g Mvoxel/s, %s left',
      self._name, self._done, self._count, speed, left,
    )  # fmt: skip
