"""The training input: the one file that knows grain's options and their order.

endless steps -> map (the batch of a step) -> [step:] -> iterator with threads (-> processes); which
entry an example is of comes from endless shuffled passes (-> mix, if weighted)

The dataset is infinite and random access: example i is a pure function of (seed, i), so a restart
slices at the step, and neither the number of threads, of workers nor of processes changes which
examples a step sees. Process p of P takes rows step*B + p*b .. step*B + p*b + b - 1 with b = B/P.
Grain's elements are batches, not examples: its bookkeeping takes as long as a patch of 128 x 128,
and so its generator per element is one per example here, a Philox of key (seed, i).
"""

import collections
import dataclasses
import functools
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grain
import numpy as np
from absl import flags

from emseg_jax import config
from emseg_jax.data import blocks, normalise, packing, pairs
from emseg_jax.data import targets as targets_lib
from emseg_jax.data.sampling import Region, Sampler, allocate, read_example, weigh
from emseg_jax.errors import DataError, TrainingError

__all__ = ['train_dataset', 'train_iterator', 'useful_threads']

LOGGER = logging.getLogger(__name__)
ENDLESS = 2**48  # steps; some room is left for what grain computes from it
SMALL = 2**16  # voxels; copying so many takes no longer than finding out which
SUBSTITUTES = 20  # examples tried in place of one that cannot be read

Batch = dict[str, np.ndarray]


def train_dataset(
  split: pairs.Split,
  data: config.Data,
  *,
  region: Sequence[int],
  normalisation: normalise.Normalisation,
  targets: Sequence[str] = (),
  cache: Path | None = None,
  seed: int,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.MapDataset:
  """Builds the infinite dataset of this process's share of each batch.

  Args:
    split: the training sections.
    data: its patch, sampling, proximity, neighbours and damaged are used.
    region: size of what is cut out for a patch, from `augment.read_size`.
    normalisation: applied to each region.
    targets: names of maps to bring along; 'proximity' is the only one.
    cache: folder of computed targets and of where foreground is; None: computed anew.
    seed: of the order and of every draw.
    batch_size: examples per step over all processes.
    process_index: which process this is.
    process_count: how many share the batch; must divide batch_size.

  Returns:
    Batches with the keys of `sampling.allocate`; `index` is the global example number.

  Raises:
    DataError: the sampling or the targets do not fit the data.
    OutputError: the cache cannot be written.
  """
  if data.neighbours:
    blocks.groups(split, 3)  # raises if the sections are no volumes
  share, channels = batch_size // process_count, normalisation.channels * (1 + 2 * data.neighbours)
  maps = {'proximity': _proximity(split, data, cache)} if 'proximity' in targets else {}
  sampler = Sampler(split, patch=data.patch, region=region, options=data.sampling, cache=cache)
  read = functools.partial(
    read_example,
    split,
    normalisation=normalisation,
    targets=maps,
    neighbours=data.neighbours,
  )
  draw = functools.partial(_draw, sampler=sampler, read=read, skip=data.damaged == 'skip')
  batch = functools.partial(
    _batch,
    allocate=functools.partial(allocate, share, region, channels=channels, targets=maps),
    entries=_entries(sampler.weights(), seed),
    seed=seed,
    batch_size=batch_size,
    rows=range(process_index * share, (process_index + 1) * share),
    draw=draw,
  )
  return grain.MapDataset.range(ENDLESS).map(batch)


def _proximity(split: pairs.Split, data: config.Data, cache: Path | None) -> list[np.ndarray]:
  options, ndim = data.proximity, len(data.patch)
  if data.sampling.planes_share and (options.dimensions or ndim) == 2:
    raise DataError(
      'data.proximity.dimensions: is 2, but with data.sampling.planes_share sections are cut along '
      'other axes; set it to 3'
    )
  return targets_lib.proximity_sections(split, options, ndim=ndim, cache=cache)


def _batch(
  step: int,
  *,
  allocate: Callable[[], Batch],
  entries: Sequence[int],
  seed: int,
  batch_size: int,
  rows: range,
  draw: Callable[[int, np.random.Generator, Batch], None],
) -> Batch:
  """Rows of the batch of a step."""
  numbers = [int(step) * batch_size + row for row in rows]
  batch = allocate()
  batch['index'][:] = [number % 2**31 for number in numbers]
  fields = {name: array for name, array in batch.items() if name != 'index'}
  for place, (number, own) in enumerate(zip(numbers, _generators(seed, numbers), strict=True)):
    draw(int(entries[number]), own, {name: array[place] for name, array in fields.items()})
  weigh(batch)
  return batch


def _generators(seed: int, numbers: Sequence[int]) -> Iterator[np.random.Generator]:
  """One per example, each to be used up before the next is asked for: making new ones is slow."""
  bits = np.random.Philox(key=0)
  start = bits.state  # a copy; setting it copies again
  key = start['state']['key']
  key[0] = seed % 2**64
  generator = np.random.Generator(bits)
  for number in numbers:
    key[1] = number
    bits.state = start
    yield generator


def _entries(weights: Sequence[float], seed: int) -> Sequence[int]:
  """Endless entry numbers in passes of new order; entries of one weight take turns."""
  numbers = collections.defaultdict(list)
  for entry, weight in enumerate(weights):
    numbers[weight].append(entry)
  streams = [_Passes(tuple(entries), seed + k) for k, entries in enumerate(numbers.values())]
  if len(streams) == 1:
    return streams[0]
  shares = [weight * len(entries) for weight, entries in numbers.items()]
  return grain.MapDataset.mix([grain.MapDataset.source(s) for s in streams], weights=shares)


@dataclasses.dataclass(frozen=True)
class _Passes:
  """Endless entries, each once per pass; every pass has an order of its own.

  Grain's shuffle takes milliseconds per element where there are few.
  """

  entries: tuple[int, ...]
  seed: int

  def __len__(self) -> int:
    return 2**56

  def __getitem__(self, index: int) -> int:
    number, place = divmod(index, len(self.entries))
    return self.entries[_order(len(self.entries), self.seed, number)[place]]


@functools.lru_cache(maxsize=8)
def _order(count: int, seed: int, number: int) -> np.ndarray:
  return np.random.default_rng([seed, number]).permutation(count)


def _draw(
  entry: int,
  rng: np.random.Generator,
  into: Batch,
  *,
  sampler: Sampler,
  read: Callable[[Region, Batch], None],
  skip: bool,
) -> None:
  for left in reversed(range(SUBSTITUTES if skip else 1)):
    try:
      return read(sampler.draw(entry, rng), into)
    except DataError as error:
      if not left:
        raise
      LOGGER.warning('Passed over: %s', error)
      entry = int(rng.integers(len(sampler)))


def useful_threads(
  split: pairs.Split, region: Sequence[int], threads: int, *, workers: int = 0
) -> int:
  """How many of `threads` to read with: none, where they would only wait for each other.

  Nothing is decoded of images in memory, and where a region is small, most of the time goes to
  Python, which runs in one thread at a time: that of the training loop, while the device computes,
  or one in each of the processes that read, if there are `workers`.
  """
  in_memory = all(
    volume is None or volume.kind == 'memory'
    for section in split.sections
    for volume in (section.image_volume, section.label_volume, section.mask_volume)
  )
  return min(threads, 1 if workers else 0) if in_memory and math.prod(region) < SMALL else threads


def train_iterator(
  dataset: grain.MapDataset, *, start_step: int, threads: int, prefetch: int, workers: int = 0
) -> Iterator[Batch]:
  """Iterates from `start_step` on, `prefetch` batches ahead.

  Neither threads nor workers change what a step sees.

  Args:
    dataset: from `train_dataset`.
    start_step: first batch.
    threads: reader threads, of each process that reads.
    prefetch: batches ahead, per process that reads.
    workers: processes that read, started anew (not forked); 0: this one.

  Raises:
    DataError: what a reader raised, when the batch that it was for is asked for.
    TrainingError: a reader process was killed.
  """
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch if threads else 0)
  dataset = dataset[start_step:]
  if workers:
    if not flags.FLAGS.is_parsed():  # grain reads its flags, which a notebook never parses
      flags.FLAGS.mark_as_parsed()
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
    stream = dataset.map(packing.pack).to_iter_dataset(options).mp_prefetch(processes)
    return _unpacked(iter(stream))
  return iter(dataset.to_iter_dataset(options))


def _unpacked(packed: Iterator[packing.Packed]) -> Iterator[Batch]:
  """The batches of reader processes; says in one sentence what grain says of one that is gone."""
  try:
    yield from map(packing.unpack, packed)
  except RuntimeError as error:
    if 'terminated unexpectedly' not in str(error):
      raise
    code = re.search('exit code (-?[0-9]+)', str(error))
    raise TrainingError(
      f'a reader process ended by itself, exit code {code[1] if code else "unknown"}'
      f'{" (killed, perhaps for want of memory)" if code and code[1] == "-9" else ""}; lower '
      'data.workers or data.cache_gb, which counts for each of them'
    ) from error
