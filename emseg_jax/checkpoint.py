"""Checkpoints of a run: saved asynchronously by orbax, verified by content when read back.

Every checkpoint holds two items: `state` (arrays) and `meta` (JSON: `Meta`, a digest per array, a
digest of itself). A reader recomputes the digests, so a truncated or altered file is noticed
whatever layer it corrupts, and the checkpoint before it is used instead. Latest and best are kept;
the best step is our own record because orbax's `best_step()` ignores preservation policies.
"""

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as ocp_managers

from emseg_jax import processes
from emseg_jax.errors import CheckpointError, OutputError
from emseg_jax.train_state import TrainState

__all__ = ['Checkpoints', 'Meta', 'state_digests']

LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Meta:
  """What a checkpoint knows beside its arrays.

  Attributes:
    step: updates done.
    evaluated_step: last step at which validation was scored, -1 before the first.
    best_step: step with the best validation score so far, -1 before the first.
    best_score: that score.
    normalisation: `Normalisation.to_json()`.
    data: fingerprint of the training data.
    config: the configuration, JSON form.
    versions: package name -> version that wrote it.
    since_best: evaluations since the best one.
    since_cut: of these, those since the learning rate was last reduced.
    finished: training ended before train.steps, for lack of improvement.
    voxel_size: (z, y, x) in nm of the training volumes, as far as known.
  """

  step: int
  evaluated_step: int
  best_step: int
  best_score: float
  normalisation: dict[str, Any]
  data: str
  config: dict[str, Any]
  versions: dict[str, str]
  since_best: int = 0
  since_cut: int = 0
  finished: bool = False
  voxel_size: tuple[float | None, ...] | None = None


@dataclasses.dataclass
class _KeepLatestAndBest(ocp_managers.PreservationPolicy):
  """Keeps the last n checkpoints and the one whose step `best_step` names."""

  n: int
  best_step: int = -1

  def should_preserve(
    self,
    checkpoints: Sequence[ocp_managers.PolicyCheckpointInfo],
    *,
    context: ocp_managers.PreservationContext,
  ) -> Sequence[bool]:
    del context
    first = len(checkpoints) - self.n
    return [i >= first or info.step == self.best_step for i, info in enumerate(checkpoints)]


class Checkpoints:
  """The `checkpoints/` folder of a work directory."""

  def __init__(self, folder: Path, *, keep: int, read_only: bool = False):
    self.folder = folder.absolute()
    self._read_only = read_only
    self._policy = _KeepLatestAndBest(keep)
    if read_only and not self.folder.is_dir():
      raise CheckpointError(f'{folder}: no such folder; train first, or give another --workdir')
    options = ocp.CheckpointManagerOptions(
      save_decision_policy=ocp_managers.FixedIntervalPolicy(1),  # the trainer decides when
      preservation_policy=self._policy,
      step_format_fixed_length=8,
      read_only=read_only,
      create=not read_only,
      cleanup_tmp_directories=not read_only,
    )
    try:
      self._manager = ocp.CheckpointManager(self.folder, options=options)
    except OSError as error:
      raise OutputError(f'{folder}: cannot hold checkpoints: {error}') from error

  def save(self, state: TrainState, meta: Meta) -> None:
    """Starts an asynchronous save; the arrays may be donated as soon as this returns.

    Raises:
      OutputError: this or an earlier save could not be written.
    """
    self._policy.best_step = meta.best_step
    record = dataclasses.asdict(meta) | {'digests': state_digests(state)}
    record['meta_digest'] = _text_digest(record)
    arguments = ocp.args.Composite(
      state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(record)
    )
    try:
      if meta.step in self._manager.all_steps():
        # Stopped during this step's evaluation, resumed, and now it is known to be the best.
        self._manager.wait_until_finished()
        self._manager.delete(meta.step)
      self._manager.save(meta.step, args=arguments, force=True)
    except Exception as error:  # orbax wraps disk errors in several types; all mean "not written"
      raise self._not_written(meta.step, error) from error

  def wait(self) -> None:
    """Waits until everything saved so far is on disk.

    Raises:
      OutputError: it could not be written.
    """
    try:
      self._manager.wait_until_finished()
    except Exception as error:  # as in save
      raise self._not_written(None, error) from error

  def close(self) -> None:
    self._manager.close()

  def _not_written(self, step: int | None, error: Exception) -> OutputError:
    which = 'a checkpoint' if step is None else f'the checkpoint of step {step}'
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else repr(error)
    return OutputError(f'{self.folder}: {which} could not be written: {reason}')

  def steps(self) -> list[int]:
    """Steps on disk, oldest first."""
    return sorted(self._manager.all_steps())

  def restore_latest(self, abstract: TrainState) -> tuple[TrainState, Meta] | None:
    """Restores the newest checkpoint that is intact; None where there is none at all.

    A broken one is reported, and moved aside to `broken/` unless the folder was opened read-only.

    Args:
      abstract: shapes, dtypes and shardings to restore into.

    Raises:
      CheckpointError: there are checkpoints, but none is intact.
    """
    steps = self.steps()
    for step in reversed(steps):
      restored = self._try_restore(step, abstract)
      if restored is not None:
        return restored
      if not self._read_only:
        self._move_aside(step)
    if steps:
      raise CheckpointError(
        f'{self.folder}: none of the checkpoints of steps {steps} is intact; '
        'move the work directory away to start over'
      )
    return None

  def restore(
    self, abstract: TrainState, *, which: Literal['best', 'latest']
  ) -> tuple[TrainState, Meta]:
    """Restores the latest checkpoint, or the best one that the latest names, for use after
    training.

    Raises:
      CheckpointError: nothing intact is there.
    """
    latest = self.restore_latest(abstract)
    if latest is None:
      raise CheckpointError(f'{self.folder}: holds no checkpoint yet; train first')
    best_step = latest[1].best_step
    if which == 'latest' or best_step in (-1, latest[1].step):
      return latest
    best = self._try_restore(best_step, abstract) if best_step in self.steps() else None
    if best is None:
      LOGGER.warning('The best checkpoint (step %d) is gone; using the latest.', best_step)
    return best or latest

  def _try_restore(self, step: int, abstract: TrainState) -> tuple[TrainState, Meta] | None:
    arguments = ocp.args.Composite(
      state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
    )
    try:
      restored = self._manager.restore(step, args=arguments)
      record = dict(restored['meta'])
      digests = record.pop('digests')
      if record.pop('meta_digest') != _text_digest(record | {'digests': digests}):
        raise ValueError('its meta data were altered')
      if list(digests) != state_digests(restored['state']):
        raise ValueError('its arrays were altered')
      return restored['state'], Meta(**record)
    except Exception as error:  # any failure means: not intact. Reported, then the next is tried.
      reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
      LOGGER.warning('Checkpoint of step %d in %s is not intact (%s).', step, self.folder, reason)
      return None

  def _move_aside(self, step: int) -> None:
    source = self.folder / f'{step:08d}'
    target = self.folder.parent / 'broken' / source.name
    if processes.is_first():
      shutil.rmtree(target, ignore_errors=True)
      target.parent.mkdir(exist_ok=True)
      if source.exists():
        shutil.move(source, target)
    processes.barrier('moved aside')
    LOGGER.warning('Moved the checkpoint of step %d to %s.', step, target)
    self._manager.reload()


def _text_digest(record: dict[str, Any]) -> str:
  """Digest of a JSON record, independent of key order."""
  return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def state_digests(state: TrainState) -> list[int]:
  """One 32-bit digest per array, computed where the arrays are; equal arrays, equal digests.

  d = Σ_i bits(x_i) · (2i + 1) · K mod 2^32. Every factor is odd, so any change of a single element
  changes d.
  """
  return [int(d) for d in np.asarray(_digests(jax.tree.leaves(state)))]


@jax.jit
def _digests(leaves: list[jax.Array]) -> jax.Array:
  return jnp.stack([_digest(leaf) for leaf in leaves])


def _digest(leaf: jax.Array) -> jax.Array:
  bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32).reshape(-1)
  factor = (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1) * jnp.uint32(2_654_435_761)
  return jnp.sum(bits * factor, dtype=jnp.uint32)
