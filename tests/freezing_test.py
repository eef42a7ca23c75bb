"""What is frozen stays bit by bit, computes as in evaluation, and all else learns."""

import re

import bundle_support
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
from process_support import finish, launch

from emseg_jax import bundle as bundle_lib
from emseg_jax import config_io, errors, experiment, freezing, optim, start_table, trainer
from emseg_jax.checkpoint import Checkpoints
from emseg_jax.config import Optim
from emseg_jax.errors import ConfigError
from emseg_jax.pretrained import own

MODEL = {'name': 'unet', 'options': {'width': 1 / 64, 'norm': 'batch'}}
ENCODER = ('down[1-4]', 'bridge/block1')
TREE = {
  'down1': {'block1': {'conv': {'kernel': jnp.zeros(2)}}, 'block2': {'conv': {'kernel': 0}}},
  'up1': {'block1': {'conv': {'kernel': jnp.ones(3)}}},
}


@pytest.mark.parametrize(
  ('patterns', 'frozen'),
  [
    (('down1',), [True, True, False]),
    (('down1/block2',), [False, True, False]),
    (('.*/block1',), [True, False, True]),
    (('block1',), [False, False, False]),  # of the whole path
    (('down1/block1/conv/kernel',), [False, False, False]),  # of modules, not of arrays
    (('down', 'up1'), [False, False, True]),
    ((), [False, False, False]),
  ],
)
def test_a_pattern_matches_the_whole_path_of_a_module(patterns, frozen):
  assert jax.tree.leaves(freezing.mask(TREE, patterns)) == frozen


@pytest.mark.parametrize(
  ('patterns', 'message'),
  [
    (['dwn1'], r"'dwn1' matches no module with parameters; did you mean down1\?.*down1, up1\)"),
    (['down1', '('], r"'\(' is not a regular expression"),
    (['.*'], 'leaves nothing to learn'),
  ],
)
def test_patterns_that_make_no_sense_are_refused(patterns, message):
  with pytest.raises(ConfigError, match=message):
    freezing.check(TREE, patterns)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  path = tmp_path_factory.mktemp('freezing') / 'model'
  config = bundle_support.make_config(model=MODEL)
  return path, bundle_lib.write_bundle(path, bundle_support.make_bundle(config))


def make_config(path, *overrides, freeze=ENCODER):
  config = config_io.load('tiny')
  fields = {'init_from': str(path), 'freeze': freeze, **MODEL}
  changed = config.model_copy(update={'model': config.model.model_copy(update=fields)})
  return config_io.apply_overrides(
    changed,
    [
      'optim.optimizer=adamw', 'optim.learning_rate=0.01', 'optim.weight_decay=0.1',
      'optim.accumulate=2', 'optim.ema=0.9', 'train.steps=6', 'train.batch_size=2',
      'data.validation=[]', 'train.checkpoint_every=100', 'data.patch=(16,16)',
      'augment.resize=(1,1)', 'run.tensorboard=false', 'mesh.data=1', *overrides,
    ],
  )  # fmt: skip


def latest(config, folder):
  checkpoints = Checkpoints(folder / 'checkpoints', keep=2, read_only=True)
  return checkpoints.restore(experiment.set_up(config).abstract_state(), which='latest')[0]


def train(config, folder, *, stop_at=None):
  asked = []

  def should_stop():
    asked.append(0)
    return stop_at is not None and len(asked) > stop_at

  trainer.train(config, folder, should_stop=should_stop)


def test_frozen_arrays_stay_bit_by_bit_through_a_restart_and_the_others_learn(
  model, tmp_path, capfd
):
  path, bundle = model
  config = make_config(path)
  with pytest.raises(errors.Interrupted, match='stopped at step 3'):
    train(config, tmp_path, stop_at=3)
  more = '--config.model.freeze=["down1"]'
  assert support.run_main(f'--workdir={tmp_path}', more) == 2
  assert 'model.freeze' in capfd.readouterr().err
  train(config, tmp_path)
  state = latest(config, tmp_path)
  assert state.step == 6
  start = own.flat(bundle.variables)
  end = own.flat({'params': state.params, 'batch_stats': state.batch_stats})
  average = own.flat({'params': state.ema})
  encoder = ('params/down', 'params/bridge/block1', 'batch_stats/down', 'batch_stats/bridge/block1')
  frozen = [name for name in end if name.startswith(encoder)]
  # 4 levels of 2 blocks, one of the bridge; each has kernel, bias, scale, offset, mean, variance.
  assert len(frozen) == 9 * 6
  for name in frozen:
    np.testing.assert_array_equal(end[name], start[name], err_msg=name)
    if name in average:
      np.testing.assert_array_equal(average[name], start[name], err_msg=name)
  changed = {name for name in end if not np.array_equal(end[name], start.get(name))}
  # A bias in front of a batch norm has no gradient; decay is on kernels.
  blind = {n for n in end if n.endswith('conv/bias')}
  assert end.keys() - set(frozen) - blind <= changed


@pytest.mark.parametrize('processes', [1, pytest.param(2, marks=pytest.mark.long)])
def test_frozen_arrays_stay_where_the_state_is_split_over_devices(tmp_path, processes):
  """Their large arrays are split like those that learn, on two devices of one process or of two."""
  wide = {'name': 'unet', 'options': {'width': 1 / 8, 'norm': 'batch'}}
  made = bundle_support.make_bundle(bundle_support.make_config(model=wide))
  start = own.flat(bundle_lib.write_bundle(tmp_path / 'model', made).variables)
  config = make_config(
    tmp_path / 'model', 'model.options={"width":0.125,"norm":"batch"}', 'mesh.data=2',
    'mesh.shard_state=true', 'train.steps=2', 'run.report=false',
  )  # fmt: skip
  if processes == 1:
    train(config, tmp_path / 'run')
  else:
    file = tmp_path / 'config.json'
    config_io.write_text(file, config_io.to_json(config))
    code, output = finish(launch(tmp_path / 'run', base=[f'--config={file}'], count=processes))
    assert code == 0, output
  state = latest(config, tmp_path / 'run')
  end = own.flat({'params': state.params, 'batch_stats': state.batch_stats})
  split = {name for name, leaf in end.items() if not leaf.sharding.is_fully_replicated}
  frozen = {name for name in end if re.match('(params|batch_stats)/(down|bridge/block1)', name)}
  assert split & frozen  # what the test is about
  assert split - frozen
  for name in frozen:
    np.testing.assert_array_equal(end[name], start[name], err_msg=name)
  assert not [name for name in split - frozen if np.array_equal(end[name], start[name])]


def test_the_optimiser_keeps_nothing_for_what_is_frozen(model):
  config = make_config(model[0])
  names = [
    jax.tree_util.keystr(path)
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      experiment.set_up(config).abstract_state().opt_state
    )
    if leaf.ndim > 0
  ]
  assert any('up1' in name for name in names)
  assert not [name for name in names if 'down' in name or "'bridge']['block1" in name]


def test_a_frozen_part_computes_as_in_evaluation(model):
  network, variables = model[1].model, model[1].variables
  image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 1)), jnp.float32)

  def seen(train, patterns):
    with freezing.evaluating(patterns):
      _, found = network.apply(
        variables, image, train=train, mutable=['batch_stats', 'intermediates'],
        capture_intermediates=lambda m, _: m.name in ('down1', 'down2'),
      )  # fmt: skip
    return found['intermediates']

  evaluated, frozen, trained = seen(False, ()), seen(True, ('down1',)), seen(True, ())
  first = lambda found, name: found[name]['__call__'][0]  # noqa: E731
  np.testing.assert_array_equal(first(frozen, 'down1'), first(evaluated, 'down1'))
  assert np.abs(first(trained, 'down1') - first(evaluated, 'down1')).max() > 0.01
  assert np.abs(first(frozen, 'down2') - first(evaluated, 'down2')).max() > 0.01
  # A norm by itself, whose parent goes on training.
  norms = seen(True, ('down1/block[12]/norm',))
  np.testing.assert_array_equal(first(norms, 'down1'), first(evaluated, 'down1'))


def test_gradients_and_decay_pass_frozen_parameters_by():
  params = {'a': {'kernel': jnp.ones(2)}, 'b': {'kernel': jnp.ones(2)}}
  options = Optim(optimizer='sgd', learning_rate=1.0, momentum=0.0, weight_decay=0.5, clip_norm=5.0)
  optimizer = optim.make_optimizer(options, steps=10, freeze=('a',))
  grads = {'a': {'kernel': jnp.zeros(2)}, 'b': {'kernel': jnp.array([6.0, 8.0])}}
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  np.testing.assert_array_equal(updates['a']['kernel'], [0, 0])
  # The norm is 10, clipped to 5; a decay of 0.5 comes on top, at a rate of 1.
  np.testing.assert_allclose(updates['b']['kernel'], [-3.5, -4.5])


def test_the_table_says_what_is_frozen_and_refuses_what_would_start_fresh(model):
  config = make_config(model[0])
  table = start_table.describe_start(config)
  assert '54 tensors of' in table.splitlines()[-1]
  assert table.splitlines()[-1].startswith('frozen ')
  # The bundle has two classes, `tiny` three.
  with pytest.raises(ConfigError, match=r'config\.model\.freeze: head/.* has nothing for it'):
    start_table.describe_start(make_config(model[0], freeze=('head',)))
  with pytest.raises(ConfigError, match=r"'encoder' matches no module .*down1, down2"):
    experiment.validate(make_config(model[0], freeze=('encoder',)))


def test_without_weights_to_start_from_nothing_is_frozen(capfd, tmp_path):
  arguments = ('--config=tiny', f'--workdir={tmp_path}/run', '--config.model.freeze=["down1"]')
  assert support.run_main(*arguments) == 2
  assert 'needs init_from' in capfd.readouterr().err
