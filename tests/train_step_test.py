"""The training step on one and on eight devices, its compilation, and what it learns."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emseg_jax import config as config_lib
from emseg_jax import losses, optim, sharding, train_state, train_step

SIZE = 32


class Pooled(nn.Module):
  """Two levels with BatchNorm, for what devices have to agree on."""

  @nn.compact
  def __call__(self, x, *, train):
    def convolve(x, name):
      x = nn.Conv(4, (3, 3), name=name)(x)
      return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))

    x = convolve(x, 'fine')
    y = convolve(nn.max_pool(x, (2, 2), (2, 2)), 'coarse')
    y = jnp.repeat(jnp.repeat(y, 2, axis=1), 2, axis=2)
    return {'logits': nn.Conv(2, (1, 1), name='head')(jnp.concatenate([x, y], axis=-1))}


class Tiny(nn.Module):
  """One convolution to the logits; norm and dropout in front of it by option."""

  norm: bool = False
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x, *, train):
    if self.norm:
      x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return {'logits': nn.Conv(2, (3,) * (x.ndim - 2), name='head')(x)}


def _config(*, mesh=(1, 1), patch=(8, 8), augment=None, steps=20, **optimisation):
  return config_lib.Config(
    data=config_lib.Data(patch=patch),
    augment=augment or config_lib.Augment(flip='off', rotate90=False),
    optim=config_lib.Optim(**optimisation),
    train=config_lib.Train(steps=steps, batch_size=8),
    mesh=config_lib.Mesh(data=mesh[0], space=mesh[1]),
  )


def _set_up(config, model, **kwargs):
  """The training step, its mesh, and a function that makes the first state."""
  mesh = sharding.make_mesh(config.mesh, batch_size=8)
  optimizer = optim.make_optimizer(config.optim, steps=config.train.steps)
  schedule = optim.make_schedule(config.optim, steps=config.train.steps)
  step_fn = train_step.make_train_step(model, optimizer, schedule, config, mesh, **kwargs)

  def create():
    return train_state.create(
      model,
      optimizer,
      seed=0,
      shape=(2, *config.data.patch, 1),
      ema=config.optim.ema is not None,
    )

  return step_fn, mesh, jax.jit(create, out_shardings=sharding.replicated(mesh))


def _batch(step, *, shape=(8, 8), count=8):
  rng = np.random.default_rng(step)
  image = rng.normal(size=(count, *shape, 1)).astype(np.float32)
  return {
    'image': image,
    'label': (image[..., 0] > 0.3).astype(np.int32),
    'weight': np.ones((count, *shape), np.float32),
    'valid': np.tile(np.array(shape, np.int32), (count, 1)),
    'index': np.arange(count, dtype=np.int32) + count * step,
  }


def _flat(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _run(config, model, batches, *, state=None):
  """All states after `batches`, on the host, and all metrics; from `state` if given."""
  step_fn, mesh, create = _set_up(config, model)
  state = create() if state is None else jax.device_put(state, sharding.replicated(mesh))
  states, metrics, compiled = [jax.device_get(state)], [], None
  for host_batch in batches:
    batch = sharding.put_batch(host_batch, mesh)
    if compiled is None:
      compiled = train_step.compile_train_step(step_fn, state, batch, mesh)
    state, found = compiled(state, batch)  # a second compilation would be an error
    states.append(jax.device_get(state))
    metrics.append({name: float(value) for name, value in found.items()})
  return states, metrics


# ---- a network with BatchNorm, augmentation, several devices ------------------------------------


def _pooled_run(steps, *, mesh=(1, 1)):
  config = _config(
    mesh=mesh,
    patch=(SIZE, SIZE),
    augment=config_lib.Augment(resize=(0.5, 2.0), contrast=0.2, noise=0.1),
    steps=10,
    learning_rate=0.05,
  )
  batches = []
  for step in range(steps):
    batch = _batch(step, shape=(2 * SIZE, 2 * SIZE))
    drawn = np.random.default_rng(step).random(batch['label'].shape)
    batches.append(batch | {'weight': (drawn > 0.1).astype(np.float32)})
  return _run(config, Pooled(), batches)


@pytest.fixture(scope='module')
def one_device():
  return _pooled_run(10)


@pytest.mark.parametrize('mesh', [(8, 1), (4, 2)])
def test_eight_devices_take_the_same_steps_as_one(one_device, mesh):
  """Loss and BatchNorm statistics to float32 rounding, the parameters' way to within 2 %.

  Rounding alone flips a few ReLUs and max-pool choices of this tiny network, each of which moves a
  gradient by up to a percent. Statistics per device, or a sum where a mean belongs, would be off
  by tens of percents.
  """
  (start, first, _, third, *_), metrics = one_device
  states, sharded_metrics = _pooled_run(3, mesh=mesh)
  values = [m['loss'] for m in metrics[:3]]
  sharded_values = [m['loss'] for m in sharded_metrics]
  np.testing.assert_allclose(sharded_values[0], values[0], rtol=1e-5)
  np.testing.assert_allclose(sharded_values, values, rtol=5e-3)
  way = _flat(third.params) - _flat(start.params)
  difference = _flat(states[3].params) - _flat(third.params)
  assert np.linalg.norm(difference) < 0.02 * np.linalg.norm(way)
  # After one step running statistics come from the forward pass alone: those of the global batch.
  np.testing.assert_allclose(
    _flat(states[1].batch_stats), _flat(first.batch_stats), rtol=1e-4, atol=1e-6
  )


def test_the_loss_falls_on_a_task_a_threshold_solves(one_device):
  _, metrics = one_device
  assert metrics[-1]['loss'] < 0.8 * metrics[0]['loss']


def test_the_same_seed_and_batches_give_the_same_bits(one_device):
  states, _ = one_device
  again, _ = _pooled_run(3)
  chex.assert_trees_all_equal(again, states[:4])


# ---- compilation and metrics --------------------------------------------------------------------


def test_a_batch_of_another_shape_is_an_error_not_a_second_compilation():
  step_fn, mesh, create = _set_up(_config(), Tiny())
  state = create()
  batch = sharding.put_batch(_batch(0), mesh)
  compiled = train_step.compile_train_step(step_fn, state, batch, mesh)
  with pytest.raises(TypeError, match='compiled'):
    compiled(state, {name: value[:4] for name, value in batch.items()})


def test_metrics_name_every_loss_term():
  step_fn, _, create = _set_up(_config(mesh=(8, 1)), Tiny())
  state, metrics = jax.eval_shape(step_fn, jax.eval_shape(create), _batch(0))
  assert set(metrics) == {'loss', 'ce', 'dice', 'learning_rate', 'grad_norm'}
  assert {(m.shape, m.dtype) for m in metrics.values()} == {((), jnp.dtype('float32'))}
  before = jax.eval_shape(create)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), (state, before)) == jax.tree.map(
    lambda x: (x.shape, x.dtype), (before, before)
  )


def test_the_loss_sees_targets_parameters_and_class_counts(monkeypatch):
  def total_loss(outputs, batch, params, *, loss, class_counts, multilabel, offsets):
    assert loss == config.loss
    assert not multilabel
    assert not offsets
    value = jnp.sum(class_counts) * jnp.mean(batch['proximity']) * jnp.sum(params['head']['bias'])
    return value + 0 * jnp.sum(outputs['logits']), {'mine': value}

  config = _config(momentum=0.0, learning_rate=0.1, weight_decay=0.0, schedule='constant')
  step_fn, _, create = _set_up(config, Tiny(), class_counts=np.array([3, 4]))
  monkeypatch.setattr(losses, 'total_loss', total_loss)
  batch = _batch(0) | {'proximity': np.full((8, 8, 8), 0.5, np.float32)}
  state, metrics = jax.jit(step_fn)(create(), batch)
  # d/db of (3 + 4) 0.5 sum(b) is 3.5 for both biases, which start at 0
  np.testing.assert_allclose(state.params['head']['bias'], [-0.35, -0.35], rtol=1e-6)
  assert float(metrics['mine']) == 0.0
  np.testing.assert_allclose(metrics['grad_norm'], 3.5 * 2**0.5, rtol=1e-6)


def test_dropout_differs_from_step_to_step():
  step_fn, _, create = _set_up(_config(), Tiny(dropout=0.5))
  step_fn, state, batch = jax.jit(step_fn), create(), _batch(0)
  first, again, later = (
    float(step_fn(state.replace(step=jnp.asarray(s, jnp.int32)), batch)[1]['ce']) for s in (0, 0, 1)
  )
  assert first == again
  assert abs(first - later) > 1e-3


# ---- accumulation, averaging, reduced rates -----------------------------------------------------


@pytest.mark.parametrize('shape', [(8, 8), pytest.param((4, 8, 8), marks=pytest.mark.long)])
def test_accumulated_batches_take_the_step_of_one_large_batch(shape):
  options = {'learning_rate': 0.3, 'clip_norm': 0.5, 'ema': 0.5, 'patch': shape}
  whole = [_batch(step, shape=shape) for step in range(3)]
  parts = [{n: x[i : i + 2] for n, x in b.items()} for b in whole for i in (0, 2, 4, 6)]
  (start, *_, expected), metrics = _run(_config(steps=10, **options), Tiny(), whole)
  states, part_metrics = _run(_config(steps=40, accumulate=4, **options), Tiny(), parts)
  way = _flat(expected.params) - _flat(start.params)
  assert np.abs(way).max() > 0.05
  np.testing.assert_allclose(_flat(states[-1].params), _flat(expected.params), rtol=0, atol=1e-5)
  np.testing.assert_allclose(_flat(states[-1].ema), _flat(expected.ema), rtol=0, atol=1e-5)
  means = np.mean([m['loss'] for m in part_metrics], where=np.arange(12) < 4)
  np.testing.assert_allclose(means, metrics[0]['loss'], rtol=1e-5)
  # poly: 0.3 (1 - n/10)^0.9 for all batches of update n
  rates = [m['learning_rate'] for m in part_metrics]
  np.testing.assert_allclose(rates, np.repeat([0.3, 0.3 * 0.9**0.9, 0.3 * 0.8**0.9], 4), rtol=1e-5)


def test_between_updates_only_statistics_and_gradients_move():
  config = _config(accumulate=3, ema=0.9, optimizer='adam')
  states, _ = _run(config, Tiny(norm=True), [_batch(step) for step in range(4)])
  for before, after in ((0, 1), (1, 2), (3, 4)):
    chex.assert_trees_all_equal(states[before].params, states[after].params)
    chex.assert_trees_all_equal(states[before].ema, states[after].ema)
  assert np.all(_flat(states[2].params) != _flat(states[3].params))
  # Single-channel images, momentum growing into 0.5 as (1 + n) / (10 + n): 0.1, 2/11, 3/12, 4/13.
  mean = 0.0
  for step in range(4):
    kept = (1 + step) / (10 + step)
    mean = kept * mean + (1 - kept) * _batch(step)['image'].astype(np.float64).mean()
    found = states[step + 1].batch_stats['BatchNorm_0']['mean']
    np.testing.assert_allclose(found, [mean], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(('decay', 'accumulate'), [(0.6, 1), (0.9999, 1), (0.6, 2)])
def test_the_average_is_the_weighted_mean_of_all_updates(decay, accumulate):
  config = _config(ema=decay, accumulate=accumulate, learning_rate=0.3)
  states, _ = _run(config, Tiny(), [_batch(step) for step in range(6)])
  updates = [_flat(s.params).astype(np.float64) for s in states[accumulate::accumulate]]
  for n in range(1, len(updates) + 1):
    weights = decay ** np.arange(n - 1, -1, -1)
    expected = np.average(updates[:n], axis=0, weights=weights)
    np.testing.assert_allclose(_flat(states[n * accumulate].ema), expected, rtol=0, atol=1e-6)
  last = states[-1]
  assert np.abs(_flat(last.ema) - _flat(last.params)).max() > 0.01
  assert train_step.predict_variables(last)['params'] is last.ema
  assert train_step.predict_variables(last.replace(ema={}))['params'] is last.params


@pytest.mark.parametrize('optimizer', ['sgd', 'adamw'])
def test_a_reduced_rate_scales_update_decay_and_what_is_logged(optimizer):
  config = _config(
    mesh=(8, 1), optimizer=optimizer, learning_rate=0.2, weight_decay=0.5, schedule='constant'
  )
  step_fn, mesh, create = _set_up(config, Tiny())
  batch = sharding.put_batch(_batch(0), mesh)
  compiled = train_step.compile_train_step(step_fn, create(), batch, mesh)
  start = jax.device_get(create())
  full, metrics = compiled(create(), batch)
  # what was compiled for the first state takes the reduced one, too
  quarter, reduced_metrics = compiled(train_state.reduce_rate(create(), 0.25), batch)
  np.testing.assert_allclose(metrics['learning_rate'], 0.2, rtol=1e-6)
  np.testing.assert_allclose(reduced_metrics['learning_rate'], 0.05, rtol=1e-6)
  assert float(quarter.rate_scale) == 0.25
  way = _flat(full.params) - _flat(start.params)
  assert np.abs(way).max() > 0.05
  np.testing.assert_allclose(_flat(quarter.params) - _flat(start.params), way / 4, atol=1e-6)


def test_a_run_from_a_stored_state_goes_on_bit_for_bit():
  config = _config(
    optimizer='radam', accumulate=2, ema=0.9, clip_norm=1.0, warmup_steps=2, groups={'bias$': 2.0}
  )
  model, batches = Tiny(norm=True, dropout=0.2), [_batch(step) for step in range(7)]
  first, _ = _run(config, model, batches[:3])
  reduced = train_state.reduce_rate(first[-1], 0.5)
  whole, metrics = _run(config, model, batches[3:], state=reduced)
  middle, _ = _run(config, model, batches[3:5], state=reduced)
  rest, rest_metrics = _run(config, model, batches[5:], state=middle[-1])
  chex.assert_trees_all_equal(rest, whole[2:])
  assert rest_metrics == metrics[2:]
