"""What a task of affinities needs of the other sections, and what it cannot be combined with."""

from collections.abc import Iterator

from emseg_jax.config.data import Data
from emseg_jax.config.postprocess import Postprocess
from emseg_jax.config.running import Eval, Predict
from emseg_jax.config.task import Task

__all__ = ['check', 'check_steps']

NOT_FOR_AFFINITIES = ('label', 'high', 'holes', 'marker_distance')


def check(
  task: Task, data: Data, scoring: Eval, predict: Predict, postprocess: Postprocess
) -> None:
  """Checks a task of affinities against the sections that it depends on.

  Raises:
    ValueError: an offset does not fit the patch, there is an axis along which none leads to the
      nearest voxel, or an option is for classes.
  """
  axes = 'zyx'[-len(data.patch) :]
  for offset in task.offsets:
    if len(offset) != len(axes):
      raise ValueError(
        f'task.offsets: {list(offset)} has {len(offset)} axes, data.patch={data.patch} has '
        f'{len(axes)}'
      )
    if any(abs(n) >= size for n, size in zip(offset, data.patch, strict=True)):
      raise ValueError(
        f'task.offsets: {list(offset)} must be shorter than data.patch={data.patch} along each axis'
      )
  for axis, name in enumerate(axes):
    nearest = [int(a == axis) for a in range(len(axes))]
    if not {tuple(nearest), tuple(-n for n in nearest)} & set(task.offsets):
      raise ValueError(
        f'task.offsets: nothing links neighbours along {name}, which objects are made of; add '
        f'{nearest}'
      )
  check_steps(postprocess)
  for refused in _refused(data, scoring, predict):
    raise ValueError(f'{refused}, which task.activation=affinities does not have')


def check_steps(options: Postprocess) -> None:
  """Makes sure that no step is asked for that affinities do not have.

  Raises:
    ValueError: one is.
  """
  for name in NOT_FOR_AFFINITIES:
    if getattr(options, name) is not None:
      raise ValueError(f'postprocess.{name}: is not for affinities; leave it out')
  if options.instances == 'none':
    raise ValueError(
      'postprocess.instances=none: affinities make instances; choose components or watershed'
    )


def _refused(data: Data, scoring: Eval, predict: Predict) -> Iterator[str]:
  """Options that make no sense, each with what it needs."""
  if data.label_mapping is not None:
    yield 'data.label_mapping: needs classes'
  if data.labels.other is not None:
    yield 'data.labels.other: needs classes'
  if data.labels.kind == 'instances':
    yield 'data.labels.kind=instances: makes classes of instance ids'
  if data.sampling.kind == 'balanced':
    yield 'data.sampling.kind=balanced: needs classes'
  if scoring.metrics:
    yield f'eval.metrics={list(scoring.metrics)}: needs classes'
  if predict.augment:
    # A mirrored copy has the affinity of a pair at the other voxel of it.
    yield f'predict.augment={list(predict.augment)}: needs outputs without a direction'
