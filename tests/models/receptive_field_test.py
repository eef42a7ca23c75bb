"""Fields of view, measured as the span of input voxels that have a gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_support import variables

from emseg_jax import models, tiling

FINITE = [
  name for name in models.MODELS if models.create_model(name, 2).receptive_field is not None
]


@functools.cache
def _tiny(name):
  # The deepest ones see the most voxels; two channels at full size are enough.
  return models.create_model(name, 2, width=1 / 32 if name in ('fcn8s', 'segnet') else 1 / 16)


@functools.cache
def _matters(name, axis):
  """Where a cell of output voxels along `axis` begins, and which input voxels each depends on.

  All weights and inputs are positive, so that no activation and no cancellation hides a dependency.
  Max pooling passes on one voxel of each cell, and on a constant image a share of each: that image,
  several draws and a sum over the other axes reach all of them.
  """
  model = _tiny(name)
  cell, reach = model.divisor[axis], model.receptive_field[axis]
  length = -(-(2 * reach + cell) // cell) * cell
  start = (length // 2) // cell * cell
  shape = [max(d, 2) if d > 1 else 3 for d in model.divisor]
  shape[axis] = length
  # Fields of view beyond the extent of the other axes do no harm there.
  positive = jax.tree.map(np.abs, variables(model, (1, *shape, 1)))
  # Unpooling passes on the largest voxel only, wherever others are as large.
  draws = 8 if name == 'segnet' else 4 if len(shape) == 2 else 2
  image = np.random.default_rng(0).uniform(size=(draws, *shape, 1)).astype(np.float32)
  image[0] = 1

  def of_a_cell(image):
    logits = model.apply(positive, image, train=False)['logits']
    cells = jax.lax.slice_in_dim(logits, start, start + cell, axis=axis + 1)
    return jnp.sum(cells, axis=[a for a in range(cells.ndim) if a != axis + 1])

  matters = np.asarray(jax.jit(jax.jacrev(of_a_cell))(image)) != 0
  others = tuple(a + 1 for a in range(image.ndim) if a != axis + 1)
  return start, [np.flatnonzero(found) for found in matters.any(axis=others)]


def _axes(name):
  """One axis for each value of the receptive field."""
  field = _tiny(name).receptive_field
  return sorted(field.index(span) for span in set(field))


# Shares its code with cheng2d, whose volume is a hundred times smaller.
LONG = {'cheng3d', 'fcn8s', 'segnet'}


def _case(name, axis):
  return pytest.param(name, axis, marks=[pytest.mark.long] if name in LONG else [])


@pytest.mark.parametrize(('name', 'axis'), [_case(n, a) for n in FINITE for a in _axes(n)])
def test_the_receptive_field_is_the_largest_span_that_has_a_gradient(name, axis):
  start, seen = _matters(name, axis)
  spans = [found[-1] - found[0] + 1 for found in seen]
  field = models.create_model(name, 2).receptive_field[axis]
  assert max(spans) == field
  # What predict.blend=exact drops at the edges of a tile is enough on either side.
  halo = tiling.halo(field, _tiny(name).divisor[axis])
  assert max(start + p - found[0] for p, found in enumerate(seen)) <= halo
  assert max(found[-1] - start - p for p, found in enumerate(seen)) <= halo


@pytest.mark.parametrize('name', FINITE)
def test_the_width_does_not_change_the_receptive_field(name):
  assert _tiny(name).receptive_field == models.create_model(name, 2).receptive_field
