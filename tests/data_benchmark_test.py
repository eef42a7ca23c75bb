"""The benchmark of reading: every row is there, and both sides read what they are said to read."""

import itertools

import numpy as np
import pytest

from emseg_jax import data_benchmark, torch_reading

SHAPE = (16, 256, 256)
SMALL = {'shape': SHAPE, 'patches': ((32, 32), (4, 16, 16)), 'seconds': 0.0}


@pytest.fixture(scope='module')
def rows():
  return data_benchmark.benchmark_data(**SMALL, workers=(0,))


def test_there_is_a_row_for_every_format_and_patch(rows):
  expected = list(itertools.product(data_benchmark.FORMATS, SMALL['patches']))
  assert [(row.storage, row.patch) for row in rows] == expected
  for row in rows:
    assert row.patches_per_second > 0
    # Image and label have a byte per voxel each.
    megabytes = row.patches_per_second * 2 * np.prod(row.patch) / 1e6
    assert row.megabytes_per_second == pytest.approx(megabytes)


def test_rows_are_reported_as_they_come_and_printed_as_a_table():
  seen = []
  rows = data_benchmark.benchmark_data(
    **SMALL, formats=('memory',), workers=(0,), report=seen.append
  )
  assert seen == rows
  row = data_benchmark.Row('tiff', (64, 128, 128), 2, 3.0, 6.3, 1.5)
  line = data_benchmark.format_text([row]).splitlines()[1]
  assert ' '.join(line.split()) == 'tiff 64 x 128 x 128 2 workers 3.0 6.3 1.5 2.00'
  alone = data_benchmark.Row('tfds', (8, 8), 0, 3.0, 6.3, None)
  assert data_benchmark.format_markdown([alone]).splitlines()[2] == (
    '| tfds | 8 x 8 | threads | 3.0 | 6.3 | - | - |'
  )


@pytest.mark.parametrize('storage', ['memory', 'tiff', 'hdf5', 'zarr'])
@pytest.mark.parametrize('patch', [(12, 10), (3, 12, 10)])
def test_the_patches_for_pytorch_are_random_parts_of_the_volume(tmp_path, storage, patch):
  rng = np.random.default_rng(0)
  image, label = (rng.integers(0, 256, (5, 40, 32)).astype(np.uint8) for _ in range(2))
  source = data_benchmark._write(storage, tmp_path, image, label)
  case = torch_reading.Case(storage, source, (image, label), patch, 2, 0)
  patches = torch_reading.RandomPatches(case)
  places = set()
  for index in range(4):
    grey, classes = patches[index]
    assert grey.shape == (1, *patch)
    assert (grey.dtype, classes.dtype) == (np.float32, np.int64)
    size = (1,) * (3 - len(patch)) + patch
    windows = np.lib.stride_tricks.sliding_window_view(label, size)
    (found,) = np.argwhere((windows == classes.reshape(size)).all(axis=(3, 4, 5)))
    places.add(tuple(found))
    box = tuple(slice(a, a + n) for a, n in zip(found, size, strict=True))
    np.testing.assert_allclose(grey.reshape(size) * 255, image[box], rtol=1e-5)
  assert len(places) == 4


@pytest.mark.parity
def test_the_loader_of_pytorch_gives_batches():
  torch = pytest.importorskip('torch')
  arrays = np.zeros((4, 40, 32), np.uint8), np.ones((4, 40, 32), np.uint8)
  image, label = next(
    torch_reading.batches(torch_reading.Case('memory', None, arrays, (8, 6), 3, 0))
  )
  assert image.shape == (3, 1, 8, 6)
  assert label.dtype == torch.int64
