"""The training input: the one file that knows grain's options and their order.

source -> seed -> shuffle -> repeat -> random_map (every host-side draw) -> map_with_index (`index`)
-> batch(local) -> the batches of this process -> [step:] -> iterator with threads

The dataset is infinite and random access: batch k is a pure function of (seed, k), so a restart
slices at the step, and neither the number of threads nor of processes changes which examples a step
sees. Process p of P takes rows step*B + p*b .. step*B + p*b + b - 1 with b = B/P.
"""

import functools
from collections.abc import Iterator

import grain
import numpy as np

from emseg_jax.data import normalise, pairs, sampling

__all__ = ['train_dataset', 'train_iterator']

Batch = dict[str, np.ndarray]


def train_dataset(
  split: pairs.Split,
  *,
  region: tuple[int, int],
  normalisation: normalise.Normalisation,
  seed: int,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.MapDataset:
  """Builds the infinite dataset of this process's share of each batch.

  Args:
    split: the training sections.
    region: (y, x) size of what is cut out, from `augment.read_size`.
    normalisation: applied to each region.
    seed: of the order and of every draw.
    batch_size: examples per step over all processes.
    process_index: which process this is.
    process_count: how many share the batch; must divide batch_size.

  Returns:
    Batches with the keys of `sampling.draw_example` and `index` int32 [b], the global example
    number.
  """
  draw = functools.partial(_draw, split=split, region=region, normalisation=normalisation)
  dataset = grain.MapDataset.range(len(split)).seed(seed).shuffle().repeat(None)
  dataset = dataset.random_map(draw).map_with_index(_with_index)
  # There is no remainder, but without the option grain's length of batches of 1 overflows.
  dataset = dataset.batch(batch_size // process_count, drop_remainder=True)
  return dataset[process_index::process_count] if process_count > 1 else dataset


def _draw(
  section: int,
  rng: np.random.Generator,
  *,
  split: pairs.Split,
  region: tuple[int, int],
  normalisation: normalise.Normalisation,
) -> Batch:
  return sampling.draw_example(split, int(section), rng, region=region, normalisation=normalisation)


def _with_index(index: int, example: Batch) -> Batch:
  return {**example, 'index': np.int32(index % 2**31)}


def train_iterator(
  dataset: grain.MapDataset, *, start_step: int, threads: int, prefetch: int
) -> Iterator[Batch]:
  """Iterates from `start_step` on, `prefetch` batches ahead in `threads` threads."""
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch if threads else 0)
  return iter(dataset[start_step:].to_iter_dataset(options))
