"""Parameters and the optimiser's state split over `data`: the same training, less on a device."""

import json
import math

import jax
import numpy as np
import pytest
import support
from jax.sharding import PartitionSpec
from process_support import finish, launch

from emseg_jax import config as config_lib
from emseg_jax import config_io, experiment, main, sharding, train_step
from emseg_jax.checkpoint import Checkpoints

NETWORKS = {'unet': (32, 32), 'unet3d': (16, 16, 16)}


def _setup(name, *, split, data=8, space=1):
  config = config_lib.Config(
    data=config_lib.Data(patch=NETWORKS[name]),
    augment=config_lib.Augment(flip='off', rotate90=False),
    model=config_lib.Model(name=name, options={'width': 1 / 8}),
    optim=config_lib.Optim(learning_rate=0.02, clip_norm=1.0, ema=0.9),
    train=config_lib.Train(steps=4, batch_size=8),
    mesh=config_lib.Mesh(data=data, space=space, shard_state=split),
  )
  return experiment.set_up(config, batch_size=8)


def _batch(name, step):
  rng = np.random.default_rng(step)
  shape = (8, *NETWORKS[name])
  image = rng.normal(size=(*shape, 1)).astype(np.float32)
  return {
    'image': image,
    'label': (image[..., 0] > 0.3).astype(np.int32),
    'weight': np.ones(shape, np.float32),
    'valid': np.tile(np.array(shape[1:], np.int32), (8, 1)),
    'index': np.arange(8, dtype=np.int32) + 8 * step,
  }


def _train(setup, name, *, steps=3):
  """The compiled step, the state before and after, and the losses."""
  step_fn = train_step.make_train_step(
    setup.model, setup.optimizer, setup.schedule, setup.config, setup.mesh
  )
  start = state = setup.initial_state()
  before = jax.device_get(start)
  batches = [sharding.put_batch(_batch(name, step), setup.mesh) for step in range(steps)]
  compiled = train_step.compile_train_step(step_fn, state, batches[0], setup.mesh)
  losses = []
  for batch in batches:
    state, metrics = compiled(state, batch)
    losses.append(float(metrics['loss']))
  return compiled, before, state, losses


def _vector(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(tree))])


def _bytes_on_a_device(setup, *, split):
  """By hand: a large array that has an axis divisible by 8 takes an eighth."""
  total = 0
  for leaf in jax.tree.leaves(setup.abstract_state()):
    size = math.prod(leaf.shape)
    divisible = size >= 2**14 and any(axis % 8 == 0 for axis in leaf.shape)
    total += 4 * size // (8 if split and divisible else 1)
  return total


@pytest.mark.parametrize('name', ['unet', pytest.param('unet3d', marks=pytest.mark.long)])
def test_the_training_is_the_same_and_takes_an_eighth_of_the_memory(name):
  """After three steps with momentum, clipped, with an average: parameters to 1 % of their way.

  Only the order of a sum over devices differs. A gradient that is not summed, or an update of the
  wrong share, would be off by much more. (Adam would show more: in front of BatchNorm gradients of
  biases are 0 but for rounding, whose sign is what Adam follows.)
  """
  setups = {split: _setup(name, split=split) for split in (False, True)}
  found = {split: _train(setup, name) for split, setup in setups.items()}
  (whole, start, expected, losses), (split, same_start, state, split_losses) = found.values()
  np.testing.assert_array_equal(_vector(start), _vector(same_start))
  np.testing.assert_allclose(split_losses, losses, rtol=1e-5)
  for part in ('params', 'ema'):
    way = _vector(getattr(expected, part)) - _vector(start.params)
    difference = _vector(getattr(state, part)) - _vector(getattr(expected, part))
    assert np.linalg.norm(difference) < 0.01 * np.linalg.norm(way)

  # Where the arrays are stays as it was, so that a checkpoint goes straight back there.
  abstract = setups[True].abstract_state()
  assert all(
    leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True)
  )
  batch = sum(value.nbytes for value in _batch(name, 0).values()) // 8
  for compiled, is_split in ((whole, False), (split, True)):
    expected_bytes = _bytes_on_a_device(setups[True], split=is_split) + batch
    given = compiled.memory_analysis().argument_size_in_bytes
    assert given == pytest.approx(expected_bytes, rel=0.01)
    print(f'{name}, split={is_split}: {given / 1e6:.2f} MB of arguments on each device')
  assert _bytes_on_a_device(setups[True], split=True) < 0.4 * _bytes_on_a_device(
    setups[True], split=False
  )


@pytest.mark.parametrize(
  ('shape', 'expected'),
  [
    ((3, 3, 64, 128), PartitionSpec(None, None, None, 'data')),  # the longest axis
    ((3, 3, 128, 60), PartitionSpec(None, None, 'data')),  # 60 is no multiple of 8
    ((128, 128), PartitionSpec('data')),  # 2^14 elements are enough
    ((127, 128), PartitionSpec()),  # fewer are not
    ((129, 129), PartitionSpec()),  # no axis is a multiple of 8
    ((), PartitionSpec()),
  ],
)
def test_which_axis_is_split(shape, expected):
  mesh = sharding.make_mesh(config_lib.Mesh())
  leaf = jax.ShapeDtypeStruct(shape, np.float32)
  assert sharding.state_shardings(leaf, mesh, split=True).spec == expected
  assert sharding.state_shardings(leaf, mesh, split=False).spec == PartitionSpec()


# ---- a run --------------------------------------------------------------------------------------

RUN = (
  '--config=tiny',
  '--config.model.options={"width":0.0625}',
  '--config.train.steps=2',
  '--config.train.batch_size=8',
  '--config.train.eval_every=100',
  '--config.augment={}',
  '--config.predict.tile=(32,32)',
  '--config.run.report=false',
  '--config.run.tensorboard=false',
  '--config.mesh.data=2',
  support.COMMON[0],
)


def _main(*arguments):
  return main.main(['emseg_jax', *RUN, *arguments])


def _last(workdir, *, split):
  """State and step of the last checkpoint, restored into one of the two placements."""
  config = config_io.from_json(workdir / 'config.json')
  mesh = config.mesh.model_copy(update={'shard_state': split})
  setup = experiment.set_up(config.model_copy(update={'mesh': mesh}))
  checkpoints = Checkpoints(workdir / 'checkpoints', keep=2, read_only=True)
  state, meta = checkpoints.restore(setup.abstract_state(), which='latest')
  return state, meta.step


def _is_split(state):
  return any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))


@pytest.mark.long
def test_a_run_may_change_the_setting_and_is_evaluated_with_either(tmp_path):
  split, whole = (f'--config.mesh.shard_state={value}' for value in ('true', 'false'))
  assert _main(f'--workdir={tmp_path}', split) == 0
  restored, step = _last(tmp_path, split=True)
  again, _ = _last(tmp_path, split=False)
  assert step == 2
  assert _is_split(restored)
  assert not _is_split(again)
  np.testing.assert_array_equal(_vector(restored), _vector(again))
  scores = []
  assert _main(f'--workdir={tmp_path}', whole, '--config.train.steps=3', '--extend') == 0
  state, step = _last(tmp_path, split=True)
  assert step == 3
  assert np.linalg.norm(_vector(state.params) - _vector(restored.params)) > 0
  for setting in (split, whole):
    arguments = '--mode=evaluate', '--config.train.steps=3', setting
    assert _main(f'--workdir={tmp_path}', *arguments) == 0
    found = json.loads((tmp_path / 'evaluation' / 'validation.json').read_text())
    scores.append(np.array(found['confusion']))
  assert np.abs(scores[0] - scores[1]).sum() <= 0.001 * scores[0].sum()


@pytest.mark.long
def test_two_processes_hold_half_each_and_one_goes_on(tmp_path):
  split = f'--workdir={tmp_path}', '--config.mesh.shard_state=true'
  code, output = finish(launch(tmp_path, split[1], base=RUN, own=['--restarts=0']))
  assert code == 0, output
  assert _last(tmp_path, split=True)[1] == 2
  assert _main(*split, '--config.train.steps=3', '--extend') == 0
  assert _last(tmp_path, split=False)[1] == 3
