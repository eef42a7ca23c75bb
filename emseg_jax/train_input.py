"""What training reads: its splits, their normalisation, and the batches of every step."""

import os
from collections.abc import Iterator
from pathlib import Path

import grain
import jax
import numpy as np

from emseg_jax import augment, losses
from emseg_jax import config as config_lib
from emseg_jax.data import normalise, pairs, pipeline, voxel_sizes
from emseg_jax.data.volume import VoxelSize
from emseg_jax.errors import DataError

__all__ = [
  'batches_from',
  'class_counts',
  'fit_normalisation',
  'open_splits',
  'reading',
  'region',
  'training_batches',
  'voxel_size',
]


def open_splits(config: config_lib.Config) -> dict[str, pairs.Split]:
  """Opens the training and validation sources.

  Raises:
    DataError: sources cannot be used, or have no labels.
  """
  splits = {}
  for name in ('train', 'validation'):
    split = pairs.open_split(getattr(config.data, name), task=config.task, data=config.data)
    bare = [section.name for section in split.sections if section.label_volume is None]
    if bare:  # of validation, it would otherwise be found at the first evaluation only
      raise DataError(f'data.{name}: {bare[0]} has no label; set labels in its source')
    splits[name] = split
  return splits


def region(config: config_lib.Config) -> tuple[int, ...]:
  """Size of what the host cuts out for one patch, voxels."""
  return augment.read_size(config.augment, config.data.patch)


def training_batches(
  config: config_lib.Config, split: pairs.Split, normalisation: normalise.Normalisation
) -> grain.MapDataset:
  """This process's share of every batch, by step; computes host targets first, where needed.

  Raises:
    DataError: the sampling or the targets do not fit the data.
    OutputError: run.target_cache cannot be written.
  """
  cache = config.run.target_cache
  return pipeline.train_dataset(
    split,
    config.data,
    region=region(config),
    normalisation=normalisation,
    targets=losses.host_targets(config.loss),
    cache=Path(os.path.expanduser(cache)) if cache else None,
    seed=config.train.seed,
    batch_size=config.train.batch_size,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def batches_from(
  dataset: grain.MapDataset, step: int, data: config_lib.Data
) -> Iterator[dict[str, np.ndarray]]:
  """The batches of step `step` and all later ones, read ahead by threads or processes."""
  return pipeline.train_iterator(
    dataset,
    start_step=step,
    threads=data.threads,
    prefetch=data.prefetch,
    workers=data.workers,
  )


def reading(config: config_lib.Config, split: pairs.Split) -> config_lib.Data:
  """`data` with as many threads as are of use."""
  data = config.data
  threads = pipeline.useful_threads(split, region(config), data.threads, workers=data.workers)
  return data.model_copy(update={'threads': threads})


def fit_normalisation(config: config_lib.Config, split: pairs.Split) -> normalise.Normalisation:
  """Takes the statistics of the training images, of large data those of a fair share.

  Raises:
    DataError: an image cannot be read, or all pixels are equal.
  """
  images = (split.image_block((i,), *box)[0] for i, *box in split.excerpts())
  return normalise.fit(config.data.normalisation, config.data.channels, images)


def voxel_size(config: config_lib.Config, split: pairs.Split) -> VoxelSize | None:
  """What the network is trained on, nm; None if no volume says.

  Raises:
    DataError: the volumes differ.
  """
  used = dict.fromkeys(section.image_volume for section in split.sections)
  return voxel_sizes.common(used, ndim=len(config.data.patch))


def class_counts(config: config_lib.Config, split: pairs.Split) -> np.ndarray | None:
  """Voxels per class of the training labels [K] float32; None unless a loss term asks for it.

  Of a multilabel task they are [K, 2]: without and with class k. Of large data they are those of a
  fair share, see `data.excerpts`.

  Raises:
    DataError: a section has no label.
  """
  if not losses.needs_class_counts(config.loss):
    return None
  counts = np.zeros(256, np.int64)
  for index, *box in split.excerpts():
    counts += np.bincount(split.label_block((index,), *box).ravel(), minlength=256)
  counts = counts[: len(config.task.values)]
  if config.task.multilabel:
    there = np.arange(len(counts)) >> np.arange(len(config.task.classes))[:, None] & 1
    counts = np.stack([(1 - there) @ counts, there @ counts], axis=-1)
  return counts.astype(np.float32)
