"""Cells with numbers for the tests of affinities: bright squares between dark walls."""

import json

import numpy as np
import tifffile

CELL, WALL = 16, 3
FIRST_ID = 70_000  # more than 16 bits hold
OFFSETS = ((1, 0), (0, 1), (3, 0), (0, -3))


def make_cells(shape=(4, 64, 64), *, seed=0) -> tuple[np.ndarray, np.ndarray]:
  """Image uint8 and ids uint32 [Z, Y, X], 0 in the walls; cells go through all sections."""
  _, height, width = shape
  y, x = np.mgrid[:height, :width]
  ids = FIRST_ID + 5 * (y // CELL * -(-width // CELL) + x // CELL)
  ids[(y % CELL < WALL) | (x % CELL < WALL)] = 0
  ids = np.broadcast_to(ids, shape).astype(np.uint32)
  noise = np.random.default_rng(seed).normal(0, 10, shape)
  return (60 + 120 * (ids > 0) + noise).clip(0, 255).astype(np.uint8), ids


def write_cells(folder, **options) -> np.ndarray:
  """Writes image.tif and ids.tif, and returns the ids."""
  image, ids = make_cells(**options)
  metadata = {'axes': 'ZYX'}
  tifffile.imwrite(folder / 'image.tif', image, photometric='minisblack', metadata=metadata)
  tifffile.imwrite(folder / 'ids.tif', ids, photometric='minisblack', metadata=metadata)
  return ids


def arguments(folder) -> list[str]:
  """The tiny configuration, made one of affinities on these files."""
  source = json.dumps([{'images': f'{folder}/image.tif', 'labels': f'{folder}/ids.tif'}])
  return [
    '--config=tiny',
    '--config.task.activation=affinities',
    f'--config.task.offsets={json.dumps(OFFSETS)}',
    f'--config.data.train={source}',
    f'--config.data.validation={source}',
  ]
