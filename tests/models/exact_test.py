"""predict.blend=exact against the whole image at once, for every network it is possible for."""

import functools

import jax
import numpy as np
import pytest
from model_support import variables

from emseg_jax import models, tiling

FINITE = [
  name for name in models.MODELS if models.create_model(name, 2).receptive_field is not None
]
# These see hundreds of voxels with hundreds of channels.
LONG = {'cheng3d', 'fcn8s', 'segnet', 'seget'}


@functools.cache
def _network(name):
  width = 1 / 32 if name in ('fcn8s', 'segnet') else 1 / 16
  model = models.create_model(name, 2, width=width)
  shape = (1, *(2 * max(d, 2) for d in model.divisor), 1)
  weights = variables(model, shape)
  return model, jax.jit(lambda x: jax.nn.softmax(model.apply(weights, x, train=False)['logits']))


def _axes(name):
  field = models.create_model(name, 2).receptive_field
  return sorted(field.index(span) for span in set(field))


def _predict(name, image, tile, blend):
  model, apply = _network(name)
  layout = tiling.lay_out(
    image.shape[:-1],
    tile,
    overlap=0.0,
    blend=blend,
    divisor=model.divisor,
    receptive_field=model.receptive_field,
  )
  assert [len(origins) > 1 for origins in layout.origins].count(True) == 1
  return tiling.predict_tiled(apply, image, layout, batch_size=1, num_classes=2)


def _case(name, axis):
  return pytest.param(name, axis, marks=[pytest.mark.long] if name in LONG else [])


@pytest.mark.parametrize(('name', 'axis'), [_case(n, a) for n in FINITE for a in _axes(n)])
def test_exact_tiles_give_the_whole_image(name, axis):
  model, apply = _network(name)
  step, field = model.divisor[axis], model.receptive_field[axis]
  tile = list(model.divisor)
  tile[axis] = 2 * tiling.halo(field, step) + 2 * step
  shape = list(model.divisor)
  # Two tiles more than one, and a rest that the network has to pad.
  shape[axis] = tile[axis] + 3 * step + (step + 1) // 2
  image = np.random.default_rng(0).normal(size=(*shape, 1)).astype(np.float32)
  expected = np.asarray(apply(image[None])[0])
  np.testing.assert_allclose(_predict(name, image, tile, 'exact'), expected, atol=1e-5)
  # The same tiles without a margin show where they end.
  blended = _predict(
    name, image, [t // d * d for t, d in zip(tile, model.divisor, strict=True)], 'uniform'
  )
  assert np.abs(blended - expected).max() > 1e-3
