"""What a training step needs, and whether what is proposed in its place fits."""

import functools
import logging
import math
import re
import shlex
from types import SimpleNamespace

import jax
import pytest
import support

from emseg_jax import config_io, experiment, memory, sharding, train_input, train_memory, train_step
from emseg_jax.errors import DeviceError

SMALL = (
  *(override.removeprefix('--config.') for override in support.SMALL_NETWORK),
  'mesh.data=1',
  'train.batch_size=4',
  'train.steps=21',
  'optim.accumulate=2',
)
compiled_bytes = train_memory.training_bytes  # the real one, where a test replaces it


def _config(*overrides):
  return config_io.apply_overrides(config_io.load('tiny'), [*SMALL, *overrides])


def _set_up(config):
  return experiment.set_up(config, batch_size=config.train.batch_size)


@functools.cache
def _bytes_of_batch(size):
  return compiled_bytes(_config(f'train.batch_size={size}', f'optim.accumulate={8 // size}'))


def _once(config):
  """The bytes of a configuration that differs from `_config` by its batch only."""
  size = config.train.batch_size
  changed = {f'train.batch_size={size}', f'optim.accumulate={8 // size}'}
  same = _config(*sorted(changed), f'train.steps={config.train.steps}')
  assert config == same
  return _bytes_of_batch(size)


def _affine(config):
  """100 bytes of parameters, and one for each voxel of the batch."""
  return 100 + config.train.batch_size * math.prod(config.data.patch)


def _follow(config, sentence):
  """The configuration with the flags of a sentence, read as a shell would."""
  words = shlex.split(re.sub(r',(?= |$)', '', sentence))
  flags = [w.removeprefix('--config.') for w in words if w.startswith('--config.')]
  assert flags, sentence
  return config_io.apply_overrides(config, flags)


@pytest.fixture
def limit(monkeypatch):
  def set_limit(size):
    monkeypatch.setattr(memory, 'device_memory', lambda: size)

  return set_limit


def _real_batch(config):
  split = train_input.open_splits(config)['train']
  normalisation = train_input.fit_normalisation(config, split)
  return train_input.training_batches(config, split, normalisation)[0]


@pytest.mark.parametrize(
  'overrides',
  [
    (),
    ('data.neighbours=1', 'data.train.0.phantom.depth=3'),
    ('data.patch=(2,16,16)', 'data.train.0.phantom.depth=3', 'augment.rotate90=false'),
    (
      'loss.terms={"mse":{}}',
      'run.target_cache=none',
      'data.label_mapping={"0":0,"1":1,"2":0}',
    ),
  ],
  ids=['images', 'neighbours', 'volumes', 'targets'],
)
def test_the_abstract_batch_is_that_of_the_data(overrides):
  config = _config(*overrides)
  expected = {name: (a.shape, a.dtype) for name, a in _real_batch(config).items()}
  found = train_memory._abstract_batch(_set_up(config))
  assert {name: (a.shape, a.dtype) for name, a in found.items()} == expected


def test_the_bytes_are_those_of_the_step_that_runs():
  config = _config()
  setup = _set_up(config)
  step = train_step.make_train_step(
    setup.model, setup.optimizer, setup.schedule, config, setup.mesh, class_counts=None
  )
  batch = sharding.put_batch(_real_batch(config), setup.mesh)
  compiled = train_step.compile_train_step(step, setup.initial_state(), batch, setup.mesh)
  needed = memory.step_bytes(compiled)
  assert needed == _bytes_of_batch(4)
  # At least the batch and the state: parameters, momentum and the sum of gradients.
  arrays = jax.tree.leaves((setup.abstract_state(), batch))
  assert needed > sum(a.size * a.dtype.itemsize for a in arrays if a.dtype != bool)


def test_a_larger_batch_needs_more():
  assert _bytes_of_batch(1) < _bytes_of_batch(2) < _bytes_of_batch(4)


@pytest.mark.parametrize('size', [1, 2])
def test_the_batch_proposed_fits_and_keeps_updates_as_they_were(monkeypatch, limit, size):
  monkeypatch.setattr(train_memory, 'training_bytes', _once)
  needed = _bytes_of_batch(4)
  limit(_bytes_of_batch(size) / memory.USABLE + 1)
  config = _config()
  sentence = train_memory.propose_training(_set_up(config), needed=needed)
  assert sentence.startswith(f'it needs {memory.format_bytes(needed)} of ')
  assert sentence.endswith(f', which needs {memory.format_bytes(_bytes_of_batch(size))}')
  found = _follow(config, sentence)
  assert found.train.batch_size == size
  assert found.train.batch_size * found.optim.accumulate == 4 * 2
  assert found.train.steps == 21 * 4 // size
  assert _once(found) <= memory.USABLE * memory.device_memory()


@pytest.mark.parametrize(
  ('size', 'overrides', 'batch', 'accumulate', 'patch'),
  [
    # 0.9 of the limit is left: 100 + 4 x 1024 = 4196 bytes fit into 4500, not 100 + 8 x 1024.
    (5000, ('train.batch_size=16',), 4, 8, (32, 32)),
    # Of 12 patches per update, 6, 4, 3, 2 and 1 go without a rest: 4196 bytes again.
    (5000, ('train.batch_size=6',), 4, 3, (32, 32)),
    # Batches are shared by two devices.
    (5000, ('train.batch_size=6', 'mesh.data=2'), 4, 3, (32, 32)),
    # Eighths of 32 are multiples of 4: 28 x 28 = 784 fit into 900 - 100.
    (1000, ('train.batch_size=2',), 1, 4, (28, 28)),
    (1000, ('train.batch_size=1',), 1, 2, (28, 28)),
    # Two devices along y: 2 x 2 rows at least, of a network without strides.
    (1000, ('train.batch_size=1', 'mesh.space=2'), 1, 2, (28, 28)),
  ],
)
def test_what_is_proposed_is_the_largest(
  monkeypatch, limit, size, overrides, batch, accumulate, patch
):
  monkeypatch.setattr(train_memory, 'training_bytes', _affine)
  limit(size)
  config = _config(*overrides)
  found = _follow(config, train_memory.propose_training(_set_up(config), needed=None))
  assert (found.train.batch_size, found.optim.accumulate) == (batch, accumulate)
  assert found.data.patch == patch


def test_what_has_not_fitted_bounds_the_proposal_where_memory_seems_enough(monkeypatch, limit):
  monkeypatch.setattr(train_memory, 'training_bytes', _affine)
  limit(10**9)  # others use most of it
  config = _config('train.batch_size=8')
  found = _follow(config, train_memory.propose_training(_set_up(config), needed=_affine(config)))
  assert found.train.batch_size == 4


def test_it_says_so_if_nothing_fits(monkeypatch, limit):
  monkeypatch.setattr(train_memory, 'training_bytes', _affine)
  limit(100)
  sentence = train_memory.propose_training(_set_up(_config()), needed=7000)
  assert sentence == (
    'it needs 0.007 MB of 0.0001 MB on each device; '
    'no smaller batch or patch fits either; take a smaller network'
  )


def test_an_impossible_configuration_needs_infinitely_much():
  assert train_memory.training_bytes(_config('train.steps=1')) == math.inf  # 2 make an update


def test_without_numbers_or_alone_nothing_is_compiled(monkeypatch, limit):
  monkeypatch.setattr(train_memory, 'training_bytes', lambda config: pytest.fail('compiles'))
  setup = _set_up(_config())
  limit(None)
  expected = 'lower train.batch_size=4 or data.patch=(32, 32)'
  assert train_memory.propose_training(setup, needed=None) == expected
  limit(1000)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  assert train_memory.propose_training(setup, needed=None) == expected


class _Step:
  """A compiled step that needs 2 MB, and does not get them."""

  def memory_analysis(self):
    sizes = {'argument': 10**6, 'output': 10**6, 'temp': 0, 'alias': 0}
    return SimpleNamespace(**{f'{name}_size_in_bytes': size for name, size in sizes.items()})

  def __call__(self):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 1000000 bytes.')


def test_running_out_in_a_step_ends_with_the_proposal(monkeypatch, limit):
  monkeypatch.setattr(train_memory, 'training_bytes', _affine)
  limit(1_500_000)
  step, setup = _Step(), _set_up(_config())
  with (
    pytest.raises(DeviceError, match=r'step ran out .*2 MB of 1\.5 MB .*batch_size=2') as caught,
    train_memory.explain_training(setup, step),
  ):
    step()
  assert caught.value.exit_code == 2
  with (
    pytest.raises(DeviceError, match=r'step ran out of memory: start anew with .*batch_size=2'),
    train_memory.explain_training(setup),  # while it was being compiled
  ):
    step()


def test_what_the_step_needs_is_logged_before_it_runs(caplog, limit):
  caplog.set_level(logging.INFO)
  limit(3_000_000)
  train_memory.check_training(_set_up(_config()), _Step())
  assert caplog.messages == ['The training step needs 2 MB of 3 MB on each device.']


def test_a_step_that_cannot_fit_is_refused_but_only_warned_of_on_cpu(monkeypatch, caplog, limit):
  monkeypatch.setattr(train_memory, 'training_bytes', _affine)
  setup = _set_up(_config())
  limit(1_500_000)
  train_memory.check_training(setup, _Step())
  assert 'may be killed' in caplog.messages[-1]
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  with pytest.raises(DeviceError, match=r'^the training step does not fit: it needs 2 MB of 1\.5'):
    train_memory.check_training(setup, _Step())


def test_a_device_that_does_not_say_refuses_nothing(caplog, limit):
  caplog.set_level(logging.INFO)
  limit(None)
  train_memory.check_training(_set_up(_config()), _Step())
  assert not caplog.messages
