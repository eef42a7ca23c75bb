"""Training: the loop that composes data, step, evaluation, checkpoints and logging.

The order at every step boundary is fixed: evaluate, save, stop or go on. A checkpoint therefore
knows whether its step was evaluated, and a restart repeats exactly what is missing: the batches,
the random numbers and the parameters are those of a run that was never interrupted.
"""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from emseg_jax import config as config_lib
from emseg_jax import (
  evaluation,
  experiment,
  instance_evaluation,
  processes,
  sharding,
  train_input,
  train_memory,
  train_start,
  train_state,
  train_step,
  verdict,
  workdir,
)
from emseg_jax.checkpoint import Checkpoints, Meta
from emseg_jax.data import normalise, pairs
from emseg_jax.errors import EmsegError, Interrupted, TrainingError
from emseg_jax.metric_writer import MetricWriter, NoWriter
from emseg_jax.predict import Predictor
from emseg_jax.progress import Progress
from emseg_jax.train_state import TrainState

__all__ = ['TrainResult', 'train']

LOGGER = logging.getLogger(__name__)

StopFn = Callable[[], bool]


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """Attributes:
  step: last step done.
  best_step: step with the best validation score, -1 without validation.
  best_score: that score.
  """

  step: int
  best_step: int
  best_score: float


def train(
  config: config_lib.Config, folder: Path, *, should_stop: StopFn, extend: bool = False
) -> TrainResult:
  """Trains, or goes on training, in a work directory.

  Args:
    config: the validated configuration.
    folder: the work directory; the latest intact checkpoint in it is resumed.
    should_stop: asked at every step and between tiles of an evaluation.
    extend: allow more steps than the run had before.

  Raises:
    Interrupted: `should_stop` said so; the state is saved and the same call resumes it.
    TrainingError: loss or gradient is not finite; checkpoints before that are kept.
    EmsegError: configuration, data, devices, checkpoints or output cannot be used; one of its
      subclasses.
  """
  splits = train_input.open_splits(config)
  setup = experiment.set_up(config, batch_size=config.train.batch_size)
  first = processes.is_first()
  workdir.claim(folder, config, extend=extend, write=first)
  with (
    workdir.occupy(folder) if first else contextlib.nullcontext(),
    contextlib.closing(Checkpoints(folder / 'checkpoints', keep=config.train.keep)) as checkpoints,
  ):
    state, meta = train_start.restore_or_start(setup, checkpoints, splits['train'])
    if extend and meta.finished:
      meta = dataclasses.replace(meta, finished=False, since_best=0, since_cut=0)
    loop = _Loop(setup, splits, checkpoints, folder, state, meta, should_stop)
    try:
      return loop.run()
    finally:
      loop.close()


class _Loop:
  """State of one call of `train`."""

  def __init__(
    self,
    setup: experiment.Experiment,
    splits: dict[str, pairs.Split],
    checkpoints: Checkpoints,
    folder: Path,
    state: TrainState,
    meta: Meta,
    should_stop: StopFn,
  ):
    self._setup, self._config = setup, setup.config
    self._checkpoints, self._validation = checkpoints, splits['validation']
    self._should_stop = should_stop
    self._alone = processes.is_alone()
    self._agreed_to_stop = False  # all processes, in a step that each has seen
    self._state, self._meta = state, meta
    self._saved_step = meta.step
    self._pending: list[tuple[int, dict[str, jax.Array]]] = []
    self._window: list[dict[str, float]] = []
    normalisation = normalise.Normalisation.from_json(meta.normalisation)
    self._predictor = Predictor(setup, normalisation)
    dataset = train_input.training_batches(self._config, splits['train'], normalisation)
    reading = train_input.reading(self._config, splits['train'])
    self._batches = train_input.batches_from(dataset, meta.step, reading)
    train_start.describe(setup, splits, state)
    counts = train_input.class_counts(self._config, splits['train'])
    self._step_fn = None if self._is_over() else self._compile(dataset[0], counts)
    self._writer = NoWriter()
    if processes.is_first():
      self._writer = MetricWriter(
        folder,
        restored_step=meta.step,
        evaluated_step=meta.evaluated_step,
        tensorboard=self._config.run.tensorboard,
      )
    self._progress = Progress(
      start=meta.step,
      total=self._config.train.steps,
      batch_size=self._config.train.batch_size,
    )

  def _compile(
    self, example: dict[str, np.ndarray], class_counts: np.ndarray | None
  ) -> train_step.StepFn:
    step = train_step.make_train_step(
      self._setup.model,
      self._setup.optimizer,
      self._setup.schedule,
      self._config,
      self._setup.mesh,
      class_counts=class_counts,
    )
    if not self._alone:
      step, example = train_step.with_stop_flag(step), self._flagged(example)
    batch = sharding.put_batch(example, self._setup.mesh)
    began = time.perf_counter()
    with train_memory.explain_training(self._setup):
      compiled = train_step.compile_train_step(step, self._state, batch, self._setup.mesh)
    LOGGER.info('Compiled the training step in %.1f s.', time.perf_counter() - began)
    train_memory.check_training(self._setup, compiled)
    return compiled

  def run(self) -> TrainResult:
    # Around all of it: a step that fails says so when its metrics are fetched.
    with train_memory.explain_training(self._setup, self._step_fn):
      self._run()
    self._checkpoints.wait()
    return TrainResult(self._meta.step, self._meta.best_step, self._meta.best_score)

  def _run(self) -> None:
    while True:
      try:
        save = self._evaluation_is_due() and self._evaluate()
      except Interrupted:
        self._save_and_stop()
      if save or self._save_is_due():
        self._save()
      if self._is_over():
        return
      if self._should_stop() if self._alone else self._agreed_to_stop:
        self._save_and_stop()
      self._train_one_step()

  def _is_over(self) -> bool:
    return self._meta.finished or self._meta.step >= self._config.train.steps

  def close(self) -> None:
    self._progress.close()
    self._writer.close()

  def _train_one_step(self) -> None:
    began = time.perf_counter()
    host_batch = self._next_batch()
    waited = time.perf_counter() - began
    batch = sharding.put_batch(self._flagged(host_batch), self._setup.mesh)
    self._state, metrics = self._step_fn(self._state, batch)
    self._meta = dataclasses.replace(self._meta, step=self._meta.step + 1)
    self._progress.step(waited=waited)
    self._pending.append((self._meta.step, metrics))
    # Fetched one step late, so that the device always has the next step queued.
    self._fetch(keep=1)
    if self._meta.step % self._config.train.log_every == 0:
      self._fetch(keep=0)
      self._log()

  def _flagged(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With this process's wish to stop, which the step makes known to all of them."""
    if self._alone:
      return batch
    return {**batch, 'stop': np.full(len(batch['index']), self._should_stop(), np.int32)}

  def _next_batch(self) -> dict[str, np.ndarray]:
    """The next batch; if it cannot be read, what was learnt so far is saved first."""
    try:
      return next(self._batches)
    except EmsegError:
      if self._alone:  # others wait in the next step, not in a checkpoint
        self._keep()
      raise

  def _fetch(self, *, keep: int) -> None:
    """Brings metrics to the host, all but the last `keep`, and stops at the first bad one."""
    while len(self._pending) > keep:
      step, metrics = self._pending.pop(0)
      values = {name: float(value) for name, value in jax.device_get(metrics).items()}
      self._agreed_to_stop |= values.pop('stop', 0.0) > 0
      bad = [name for name, value in values.items() if not math.isfinite(value)]
      if bad:
        self._checkpoints.wait()
        raise TrainingError(
          f'step {step}: {bad[0]} is {values[bad[0]]}; stopped, the checkpoint of step '
          f'{self._saved_step} is kept. Lower optim.learning_rate, or set optim.clip_norm'
        )
      self._window.append(values)

  def _log(self) -> None:
    names = self._window[-1]
    mean = {name: float(np.mean([values[name] for values in self._window])) for name in names}
    scalars = {
      'train/loss': mean.pop('loss'),
      'opt/learning_rate': self._window[-1]['learning_rate'],
      'norm/grads': mean.pop('grad_norm'),
    }
    mean.pop('learning_rate')
    scalars |= {f'train/{name}': value for name, value in mean.items()}
    scalars |= self._progress.window()
    self._window.clear()
    self._writer.write(self._meta.step, scalars)
    self._progress.report(self._meta.step, scalars)

  def _evaluation_is_due(self) -> bool:
    step = self._meta.step
    due = step == self._config.train.steps or step % self._config.train.eval_every == 0
    return due and step > 0 and len(self._validation) > 0 and self._meta.evaluated_step != step

  def _evaluate(self) -> bool:
    """Scores validation and judges it; returns whether a checkpoint is due for that."""
    self._fetch(keep=0)
    self._predictor.load(self._state)
    best = self._config.eval.best
    result = instance_evaluation.evaluate_split(
      self._predictor,
      self._validation,
      # Scores that cost more than a pass over the voxels wait for the end, unless they decide.
      extra_metrics=[
        m for m in self._config.eval.metrics if m == 'soft' or best.startswith(f'{m}/')
      ],
      baselines=False,
      details=False,
      # Processes could not agree on a tile.
      should_stop=self._should_stop if self._alone else None,
    )
    scores = evaluation.flat_scores(result)
    self._writer.write(self._meta.step, {f'validation/{n}': v for n, v in scores.items()})
    found = verdict.judge(self._meta, scores.get(best), self._config)
    self._meta = found.meta
    if found.reduce_rate:
      self._state = train_state.reduce_rate(self._state, self._config.optim.plateau_factor)
    self._progress.say(found.describe(scores, best=best, seconds=result.seconds))
    self._progress.restart()
    return found.improved or found.reduce_rate or self._meta.finished

  def _save_is_due(self) -> bool:
    step = self._meta.step
    due = step == self._config.train.steps or step % self._config.train.checkpoint_every == 0
    return due and step > self._saved_step

  def _save(self) -> None:
    self._fetch(keep=0)  # nothing that is not finite reaches a checkpoint
    self._checkpoints.save(self._state, self._meta)
    self._saved_step = self._meta.step

  def _keep(self) -> None:
    """Saves what was learnt since the last checkpoint, and waits until it is written."""
    if self._meta.step > self._saved_step:
      self._save()
    self._checkpoints.wait()

  def _save_and_stop(self) -> None:
    self._keep()
    where = f'stopped at step {self._meta.step}'
    raise Interrupted(f'{where}, saved; the same command goes on from there')
