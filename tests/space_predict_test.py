"""Prediction with tiles split over devices along their first axis: what one device says."""

import functools

import jax
import numpy as np
import pytest

from emseg_jax import experiment, predict, sharding, train_step
from emseg_jax.config import Config
from emseg_jax.data import normalise
from emseg_jax.errors import ConfigError

# Rows for eight devices, each with two at the coarsest level.
TILES = {'unet': (256, 16), 'unet3d': (128, 8, 8)}
STATISTICS = normalise.Normalisation('dataset', 1, 0.0, 1.0, 'uint8')
MESHES = [(1, 8), (4, 2), (2, 4)]


def _predictor(name, data, space, **options):
  tile = TILES[name]
  config = Config.model_validate(
    {
      'model': {'name': name, 'options': {'width': 1 / 32}},
      'augment': {'rotate90': False},
      'data': {'patch': tile},
      'task': {'classes': ['background', 'square']},
      'mesh': {'data': data, 'space': space},
      'predict': {'tile': tile, 'batch_size': 4, **options},
    }
  )
  setup = experiment.set_up(config)
  predictor = predict.Predictor(setup, STATISTICS)
  predictor.load(setup.initial_state())
  return predictor


def _tiles(name):
  return np.random.default_rng(0).normal(size=(4, *TILES[name], 1)).astype(np.float32)


@functools.cache
def _of_one_device(name):
  return np.asarray(_predictor(name, 1, 1).apply(_tiles(name)))


def _cases():
  for name in TILES:
    for mesh in MESHES:
      often = (name, *mesh) in (('unet', 1, 8), ('unet3d', 2, 4))
      yield pytest.param(name, *mesh, marks=() if often else pytest.mark.long)


@pytest.mark.parametrize(('name', 'data', 'space'), list(_cases()))
def test_split_tiles_are_predicted_as_whole_ones(name, data, space):
  """To float32 rounding: 1e-5 of probabilities."""
  found = _predictor(name, data, space).apply(_tiles(name))
  batch, rows, *others = (4, *TILES[name], 2)
  assert {shard.data.shape for shard in found.addressable_shards} == {
    (batch // data, rows // space, *others)
  }
  np.testing.assert_allclose(found, _of_one_device(name), atol=1e-5)
  assert np.ptp(found[..., 1]) > 0.05  # there is something to agree on


def test_an_image_is_blended_from_split_tiles():
  image = np.random.default_rng(1).normal(size=(300, 20, 1)).astype(np.float32)
  split, whole = (_predictor('unet', *mesh).probabilities(image) for mesh in ((1, 8), (1, 1)))
  np.testing.assert_allclose(split, whole, atol=1e-5)


def test_a_device_needs_an_eighth_of_the_memory_for_a_tile():
  needed = {}
  for space in (1, 8):
    predictor = _predictor('unet', 1, space)
    mesh, model = predictor.setup.mesh, predictor.setup.model
    step = train_step.make_predict_step(model, mesh=mesh)
    variables = train_step.predict_variables(predictor.setup.abstract_state())
    shape = jax.ShapeDtypeStruct((4, *TILES['unet'], 1), np.float32)
    compiled = jax.jit(step, out_shardings=sharding.patch_sharding(mesh)).lower(variables, shape)
    needed[space] = compiled.compile().memory_analysis().temp_size_in_bytes
  # Not quite, for the border rows of the neighbours.
  assert needed[8] < needed[1] / 4


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'tile': (240, 16)}, 'predict.tile: with mesh.space=8, 240 must be a multiple of'),
    (
      {'tile': (256, 16), 'augment': ['rotations']},
      'predict.tile: with mesh.space=8, 256 and 16 must be a multiple of',
    ),
  ],
)
def test_tiles_that_cannot_be_split_are_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    _predictor('unet', 1, 8, **options)
