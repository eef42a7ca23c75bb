"""Training with images split over devices: the steps of one device, in 2D and 3D, on any mesh."""

import functools

import jax
import numpy as np
import pytest

from emseg_jax import experiment, sharding, train_step
from emseg_jax.config import Config

# Rows for eight devices, each with two at the coarsest level.
PATCHES = {'unet': (256, 16), 'unet3d': (128, 8, 8)}
MESHES = [(1, 8), (4, 2), (2, 4)]
# Of the way of the parameters: with BatchNorm, in the 3D network, rounding flips ReLUs and maxima.
TOLERANCE = {'unet': 1e-4, 'unet3d': 0.02}
CASES = [
  pytest.param(name, *mesh, marks=() if (name, mesh) == ('unet', (2, 4)) else pytest.mark.long)
  for name in PATCHES
  for mesh in MESHES
]
BATCH, STEPS = 4, 2


@functools.cache
def _trained(name, data, space):
  """Parameters before and after, as vectors, and the losses of the steps."""
  config = Config.model_validate(
    {
      'model': {'name': name, 'options': {'width': 1 / 32}},
      'data': {'patch': PATCHES[name]},
      'task': {'classes': ['background', 'bright']},
      'augment': {'flip': 'yx', 'rotate90': False, 'contrast': 0.2},
      'optim': {'learning_rate': 0.05},
      'train': {'batch_size': BATCH, 'steps': STEPS},
      'mesh': {'data': data, 'space': space},
    }
  )
  setup = experiment.set_up(config, batch_size=BATCH)
  step = train_step.make_train_step(
    setup.model, setup.optimizer, setup.schedule, config, setup.mesh
  )
  state, losses, compiled = setup.initial_state(), [], None
  before = _vector(state.params)
  for number in range(STEPS):
    batch = sharding.put_batch(_batch(name, number), setup.mesh)
    if compiled is None:
      compiled = train_step.compile_train_step(step, state, batch, setup.mesh)
    state, metrics = compiled(state, batch)
    losses.append(float(metrics['loss']))
  return before, _vector(state.params), losses


def _vector(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(tree))])


def _batch(name, step):
  shape = (BATCH, *PATCHES[name])
  image = np.random.default_rng(step).normal(size=(*shape, 1)).astype(np.float32)
  return {
    'image': image,
    'label': (image[..., 0] > 0.3).astype(np.int32),
    'weight': np.ones(shape, np.float32),
    'valid': np.tile(np.array(shape[1:], np.int32), (BATCH, 1)),
    'index': np.arange(BATCH, dtype=np.int32) + BATCH * step,
  }


@pytest.mark.parametrize(('name', 'data', 'space'), CASES)
def test_every_mesh_takes_the_steps_of_one_device(name, data, space):
  """A halo that is missing, statistics of a shard alone, or a gradient that is not summed would be
  off by tens of percents.
  """
  start, end, losses = _trained(name, 1, 1)
  same_start, found, split_losses = _trained(name, data, space)
  np.testing.assert_array_equal(start, same_start)
  np.testing.assert_allclose(split_losses, losses, rtol=1e-4)
  away = np.linalg.norm(found - end) / np.linalg.norm(end - start)
  print(f'{name} on {data} x {space}: {away:.2e} of the way')
  assert away < TOLERANCE[name]
