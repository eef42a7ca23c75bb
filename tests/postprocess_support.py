"""Arrays through the steps of post-processing, in blocks of any size."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from emseg_jax.config.postprocess import Postprocess
from emseg_jax.postprocess.grid import Grid, window
from emseg_jax.postprocess.steps import Steps
from emseg_jax.postprocess.work import Work

shapes = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 8))
blocks = st.tuples(st.integers(2, 4), st.integers(2, 5), st.integers(3, 6))
# Few values, so that plateaus and ties are common.
volumes = shapes.flatmap(
  lambda s: hnp.arrays(np.uint8, s, elements=st.sampled_from([0, 60, 120, 180, 240]))
)


def in_blocks(array, block, do, *, dimensions=3, voxel_size=None, **options):
  """What `do` (of Steps) gives, and its count if it is one of `instances`, read as a whole."""

  def read(start, stop):
    return array[window(start, stop)]

  with tempfile.TemporaryDirectory() as folder:
    steps = Steps(
      Postprocess(**options),
      Work(Grid(array.shape, block), Path(folder)),
      read,
      voxel_size=voxel_size,
      dimensions=dimensions,
    )
    result, more = do(steps)
    # Again in blocks that are not those of the computation.
    return result((0, 0, 0), array.shape), more


def mask_of(array, block, **options):
  return in_blocks(array, block, Steps.clean, **options)[0]


def instances_of(array, block, **options):
  ids, count = in_blocks(array, block, Steps.instances, **options)
  assert set(np.unique(ids)) - {0} == set(range(1, count + 1))
  return ids


def structure(connectivity, dimensions):
  """As scipy makes it; within sections by setting what is above and below to nothing."""
  found = ndimage.generate_binary_structure(3, connectivity)
  if dimensions == 2:
    found[0] = found[2] = False
  return found


def by_first_voxel(labels):
  """The same objects, numbered as they are met in C order."""
  ids, first = np.unique(labels, return_index=True)
  ids = ids[np.argsort(first)]
  numbers = np.zeros(int(labels.max()) + 1, int)
  numbers[ids[ids > 0]] = np.arange(1, np.count_nonzero(ids) + 1)
  return numbers[labels]
