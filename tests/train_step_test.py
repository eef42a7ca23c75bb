"""The training step on one and on eight devices, its compilation, and what it learns."""

import chex
import jax
import numpy as np
import pytest

from emseg_jax import config as config_lib
from emseg_jax import experiment, sharding, train_step


def _config(**mesh: int) -> config_lib.Config:
  return config_lib.Config(
    data=config_lib.Data(patch=(64, 64)),
    augment=config_lib.Augment(resize=(0.5, 2.0), contrast=0.2, noise=0.1),
    model=config_lib.Model(options={'width': 0.0625, 'norm': 'batch'}),
    optim=config_lib.Optim(learning_rate=0.05),
    train=config_lib.Train(steps=10, batch_size=8),
    mesh=config_lib.Mesh(**mesh),
  )


def _batch(step: int) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(step)
  image = rng.normal(size=(8, 128, 128, 1)).astype(np.float32)
  return {
    'image': image,
    'label': (image[..., 0] > 0.3).astype(np.int32),
    'weight': (rng.random((8, 128, 128)) > 0.1).astype(np.float32),
    'valid': np.full((8, 2), 128, np.int32),
    'index': np.arange(8, dtype=np.int32) + 8 * step,
  }


def _train(config: config_lib.Config, steps: int):
  setup = experiment.set_up(config, batch_size=8)
  step_fn = train_step.make_train_step(
    setup.model, setup.optimizer, setup.schedule, config, setup.mesh
  )
  state, losses, compiled = setup.initial_state(), [], None
  start = jax.device_get(state)
  for step in range(steps):
    batch = sharding.put_batch(_batch(step), setup.mesh)
    if compiled is None:
      compiled = train_step.compile_train_step(step_fn, state, batch, setup.mesh)
    state, metrics = compiled(state, batch)  # a second compilation would be an error
    losses.append(float(metrics['loss']))
  return (start, jax.device_get(state)), losses


def _flat(tree) -> np.ndarray:
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.fixture(scope='module')
def one_device():
  return _train(_config(data=1, space=1), 3)


@pytest.mark.parametrize('mesh', [{'data': 8}, {'data': 4, 'space': 2}])
def test_eight_devices_take_the_same_steps_as_one(one_device, mesh):
  """Loss and BatchNorm statistics to float32 rounding, the parameters' way to within 2 %.

  Rounding alone flips a few ReLUs and max-pool choices of this tiny network, each of which moves a
  gradient by up to a percent. Statistics per device, or a sum where a mean belongs, would be off
  by tens of percents.
  """
  (start, expected), losses = one_device
  (_, state), sharded_losses = _train(_config(**mesh), 3)
  np.testing.assert_allclose(sharded_losses[0], losses[0], rtol=1e-5)
  np.testing.assert_allclose(sharded_losses, losses, rtol=5e-3)
  way = _flat(expected.params) - _flat(start.params)
  difference = _flat(state.params) - _flat(expected.params)
  assert np.linalg.norm(difference) < 0.02 * np.linalg.norm(way)


@pytest.mark.parametrize('mesh', [{'data': 8}, {'data': 4, 'space': 2}])
def test_batchnorm_statistics_are_those_of_the_global_batch(mesh):
  """After one step: running statistics come from the forward pass alone, so they are tight."""
  (_, one), _ = _train(_config(data=1, space=1), 1)
  (_, eight), _ = _train(_config(**mesh), 1)
  np.testing.assert_allclose(_flat(eight.batch_stats), _flat(one.batch_stats), rtol=1e-4, atol=1e-6)


def test_the_loss_falls_on_a_task_a_threshold_solves():
  _, losses = _train(_config(data=1, space=1), 10)
  assert losses[-1] < 0.8 * losses[0]


def test_the_same_seed_and_batches_give_the_same_bits(one_device):
  (_, expected), _ = one_device
  (_, again), _ = _train(_config(data=1, space=1), 3)
  chex.assert_trees_all_equal(again, expected)


def test_a_batch_of_another_shape_is_an_error_not_a_second_compilation():
  setup = experiment.set_up(_config(data=1, space=1), batch_size=8)
  step_fn = train_step.make_train_step(
    setup.model, setup.optimizer, setup.schedule, setup.config, setup.mesh
  )
  state = setup.initial_state()
  batch = sharding.put_batch(_batch(0), setup.mesh)
  compiled = train_step.compile_train_step(step_fn, state, batch, setup.mesh)
  with pytest.raises(TypeError, match='compiled'):
    compiled(state, {name: value[:4] for name, value in batch.items()})


def test_metrics_name_every_loss_term(one_device):
  del one_device
  setup = experiment.set_up(_config(data=1), batch_size=8)
  step_fn = train_step.make_train_step(
    setup.model, setup.optimizer, setup.schedule, setup.config, setup.mesh
  )
  batch = sharding.put_batch(_batch(0), setup.mesh)
  _, metrics = jax.eval_shape(step_fn, setup.abstract_state(), batch)
  assert set(metrics) == {'loss', 'ce', 'dice', 'learning_rate', 'grad_norm'}
