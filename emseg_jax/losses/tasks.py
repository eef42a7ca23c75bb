"""What each output of a network is asked for: one task of classes, or one of yes and no per output.

Where classes overlap, output k says whether class k is there; of affinities, whether a voxel and
the one at offset k belong to one object. A loss of logits then is the mean over these tasks.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emseg_jax import config as config_lib
from emseg_jax.losses.label_maps import affinities

__all__ = ['Labels', 'Task', 'label_options', 'tasks']


@dataclasses.dataclass(frozen=True)
class Labels:
  """What labels say.

  Attributes:
    multilabel: bit k of a label is class k.
    offsets: labels are instance ids, output k is for the k-th offset; empty: labels are classes.
  """

  multilabel: bool = False
  offsets: tuple[tuple[int, ...], ...] = ()

  @property
  def several(self) -> bool:
    """Whether there is more than one task."""
    return self.multilabel or bool(self.offsets)


@dataclasses.dataclass(frozen=True)
class Task:
  """Attributes:
  logits: [B, *spatial, K], K = 1 of one task among several.
  label: [B, *spatial] integer.
  weight: [B, *spatial].
  class_counts: voxels per class of the training labels [K]; None if not known.
  """

  logits: jax.Array
  label: jax.Array
  weight: jax.Array
  class_counts: jax.Array | None


def label_options(task: config_lib.Task) -> dict[str, Any]:
  """The arguments of `total_loss` and `validate_terms` that say what labels mean."""
  return {'multilabel': task.multilabel, 'offsets': task.offsets}


def tasks(
  logits: jax.Array, batch: Mapping[str, jax.Array], class_counts: jax.Array | None, labels: Labels
) -> list[Task]:
  """The tasks of an output.

  Args:
    logits: [B, *spatial, K].
    batch: 'label' and 'weight', [B, *spatial].
    class_counts: as in `losses.total_loss`.
    labels: what labels say.

  Raises:
    ValueError: there is not one output per offset, or an offset does not fit.
  """
  label, weight = batch['label'], batch['weight']
  if not labels.several:
    return [Task(logits, label, weight, class_counts)]
  channels = range(logits.shape[-1])
  if not labels.offsets:
    counts = [None if class_counts is None else class_counts[k] for k in channels]
    return [Task(logits[..., k : k + 1], label >> k & 1, weight, counts[k]) for k in channels]
  if len(labels.offsets) != len(channels):
    raise ValueError(f'{len(channels)} outputs for {len(labels.offsets)} offsets')
  same, counted = affinities(label, weight, offsets=labels.offsets)
  same = same.astype(jnp.int32)
  return [Task(logits[..., k : k + 1], same[..., k], counted[..., k], None) for k in channels]
