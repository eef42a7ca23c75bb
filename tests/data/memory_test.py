"""Reading goes on for ever in the same memory."""

import itertools

import numpy as np
import pytest

from emseg_jax.config import Data, Source, Task
from emseg_jax.data import normalise, pairs, pipeline, volumes, writers

SHAPE = (32, 256, 256)


def resident():
  """Megabytes of this process."""
  with open('/proc/self/status', encoding='ascii') as file:
    return next(int(line.split()[1]) / 1e3 for line in file if line.startswith('VmRSS'))


@pytest.mark.long
@pytest.mark.parametrize('extension', ['.tif', '.h5', '.zarr', '.mrc'])
@pytest.mark.parametrize('cache_gb', [0.0, 1.0])
def test_ten_thousand_patches_need_no_more_memory_than_a_thousand(tmp_path, extension, cache_gb):
  rng = np.random.default_rng(0)
  paths = []
  for name, high in (('image', 256), ('label', 3)):
    array = rng.integers(0, high, SHAPE).astype(np.uint8)
    volume = volumes.ArrayVolume(array, name=name)
    paths.append(str(writers.write_like(volume, tmp_path / f'{name}{extension}', iter(array))))
  data = Data(patch=(4, 32, 32), cache_gb=cache_gb)
  source = Source(images=paths[0], labels=paths[1])
  dataset = pipeline.train_dataset(
    pairs.open_split([source], task=Task(), data=data),
    data,
    region=data.patch,
    normalisation=normalise.Normalisation('scale', 1, 0.0, 1.0, 'uint8'),
    seed=0,
    batch_size=10,
  )
  batches = pipeline.train_iterator(dataset, start_step=0, threads=2, prefetch=2)
  sizes = []
  for count in (100, 900):
    for _ in itertools.islice(batches, count):
      pass
    sizes.append(resident())
  assert sizes[1] - sizes[0] < 20
