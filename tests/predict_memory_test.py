"""How many tiles are predicted at once, and whether what is proposed in their place fits."""

import logging
import math
import re
import shlex

import jax
import numpy as np
import pytest
import support

from emseg_jax import config_io, experiment, memory, predict_memory, sharding, train_step
from emseg_jax.errors import DeviceError

TILE = (32, 32)


def _set_up(*overrides, batch_size=None):
  small = [override.removeprefix('--config.') for override in support.SMALL_NETWORK]
  config = config_io.apply_overrides(config_io.load('tiny'), [*small, 'mesh.data=1', *overrides])
  predict = config.predict.model_copy(update={'batch_size': batch_size})
  return experiment.set_up(config.model_copy(update={'predict': predict}))


@pytest.fixture
def limit(monkeypatch):
  def set_limit(size):
    monkeypatch.setattr(memory, 'device_memory', lambda: size)

  return set_limit


@pytest.fixture
def accelerator(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')


@pytest.fixture
def affine(monkeypatch):
  """100 bytes of parameters and one for each voxel of a device's tiles; lists what is asked for."""
  asked = []

  def bytes_of(setup, step, variables, *, tile, count):
    del step, variables
    asked.append((tuple(tile), count))
    return 100 + math.prod(tile) * count // setup.mesh.shape['data']

  monkeypatch.setattr(predict_memory, 'prediction_bytes', bytes_of)
  return asked


def _network(setup):
  """The jitted step of a predictor, and its variables."""
  step = train_step.make_predict_step(setup.model)
  jitted = jax.jit(step, out_shardings=sharding.batch_sharding(setup.mesh))
  return jitted, train_step.predict_variables(setup.initial_state())


def _flags(sentence):
  """Of a sentence, read as a shell would: field -> value."""
  words = shlex.split(re.sub(r',(?= |$)', '', sentence))
  flags = [w.removeprefix('--config.predict.') for w in words if w.startswith('--config.predict.')]
  return dict(flag.split('=') for flag in flags)


@pytest.fixture(scope='module')
def real():
  """Network and the bytes that 1, 2 and 4 tiles need."""
  setup = _set_up()
  step, variables = _network(setup)
  needed = {
    n: predict_memory.prediction_bytes(setup, step, variables, tile=TILE, count=n)
    for n in (1, 2, 4)
  }
  return setup, step, variables, needed


def test_more_tiles_need_more_and_the_numbers_are_those_of_the_step_that_runs(real):
  setup, step, variables, needed = real
  assert needed[1] < needed[2] < needed[4]
  image = sharding.put_batch({'image': np.zeros((4, *TILE, 1), np.float32)}, setup.mesh)['image']
  assert needed[4] == memory.step_bytes(step.lower(variables, image).compile())
  # Parameters, image and the probabilities of three classes.
  floats = sum(a.size for a in jax.tree.leaves(variables)) + 4 * 32 * 32 * (1 + 3)
  assert needed[4] >= 4 * floats


def test_what_was_compiled_to_choose_is_what_predicts(real, caplog):
  setup, step, variables, _ = real
  image = sharding.put_batch({'image': np.zeros((4, *TILE, 1), np.float32)}, setup.mesh)['image']
  with jax.log_compiles():
    step(variables, image)
    assert not [m for m in caplog.messages if 'Compiling' in m]
    step(variables, image[:3])  # the test sees compilations
    assert [m for m in caplog.messages if 'Compiling' in m and 'predict' in m]


@pytest.mark.parametrize('expected', [1, 2, 4])
def test_the_batch_chosen_is_the_largest_in_half_of_the_memory(real, caplog, limit, expected):
  setup, step, variables, needed = real
  caplog.set_level(logging.INFO)
  limit(2 * needed[expected])
  assert predict_memory.predict_batch(setup, step, variables, tile=TILE) == expected
  assert caplog.messages == [
    f'Predicting {expected} tiles of (32, 32) at once, which needs '
    f'{memory.format_bytes(needed[expected])} of {memory.format_bytes(2 * needed[expected])} '
    'on each device.'
  ]


@pytest.mark.parametrize(
  ('devices', 'size', 'expected'),
  [
    # Half of the memory holds 100 + n x 1024 bytes; n is 1, 2, 4, 8 or 16 per device.
    (1, 10**9, 16),
    (1, 2 * (100 + 16 * 1024), 16),
    (1, 2 * (100 + 16 * 1024) - 1, 8),
    (1, 2 * (100 + 5 * 1024), 4),
    (4, 2 * (100 + 5 * 1024), 16),
    (1, 2000, 1),  # one takes more than a half, but nothing is less
    (1, None, 1),
  ],
)
@pytest.mark.usefixtures('affine', 'accelerator')
def test_accelerators_take_more_at_once(limit, devices, size, expected):
  limit(size)
  setup = _set_up(f'mesh.data={devices}')
  assert predict_memory.predict_batch(setup, None, None, tile=TILE) == expected


@pytest.mark.parametrize(('devices', 'expected'), [(1, 4), (2, 4), (3, 3), (8, 8)])
def test_cpus_take_four_or_one_each(limit, affine, devices, expected):
  limit(10**9)
  setup = _set_up(f'mesh.data={devices}')
  assert predict_memory.predict_batch(setup, None, None, tile=TILE) == expected
  assert affine == [(TILE, expected)]  # a single compilation, of what is used


@pytest.mark.usefixtures('accelerator')
def test_several_processes_choose_alike_without_looking(monkeypatch, limit, affine):
  limit(1)
  setup = _set_up('mesh.data=2')
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  assert predict_memory.predict_batch(setup, None, None, tile=TILE) == 4
  assert not affine


@pytest.mark.parametrize(('devices', 'wanted', 'expected'), [(1, 5, 5), (4, 5, 8), (4, 64, 64)])
def test_a_batch_that_is_given_is_rounded_up_to_devices(affine, devices, wanted, expected):
  setup = _set_up(f'mesh.data={devices}', batch_size=wanted)
  assert predict_memory.predict_batch(setup, None, None, tile=TILE) == expected
  assert not affine


def test_the_batch_proposed_fits(real, limit):
  setup, step, variables, needed = real
  limit(needed[2] / memory.USABLE + 1)
  sentence = predict_memory.propose_prediction(setup, step, variables, tile=TILE, count=4)
  assert sentence.startswith(f'it needs {memory.format_bytes(needed[4])} of ')
  assert sentence.endswith(f', which needs {memory.format_bytes(needed[2])}')
  assert _flags(sentence) == {'batch_size': '2'}


@pytest.mark.parametrize(
  ('size', 'count', 'options', 'expected'),
  [
    # 0.9 of the memory holds 100 bytes and the voxels of tiles, of 1024 each.
    (6000, 16, {}, {'batch_size': '4'}),
    (10**9, 16, {}, {'batch_size': '8'}),  # that it needs less did not help
    (6000, 5, {}, {'batch_size': '4'}),
    # 800 voxels: 28 x 28 = 784 of the eighths of 32.
    (1000, 16, {}, {'batch_size': '1', 'tile': '(28,28)'}),
    (1000, 1, {}, {'batch_size': '1', 'tile': '(28,28)'}),
    # 600 bytes beside the step: 300 are left, 100 + 12 x 12 fit.
    (1000, 16, {'held': 600}, {'batch_size': '1', 'tile': '(12,12)'}),
    # A block of 8000 voxels takes 8000 of 9000 bytes beside the 1124 of the step, which leave
    # 6976 (0.9 of 9000, less 1124): 10 x 20 x 20.
    (9000, 1, {'block': (20, 20, 20), 'held': 8000}, {'block': '(10,20,20)'}),
    # Halved three times: 872 bytes of 2218 are left, 16 x 8 x 8 would be 1024.
    (2218, 1, {'block': (16, 16, 16), 'held': 4096}, {'block': '(8,8,8)'}),
    # The step alone does not fit: no block helps.
    (1000, 1, {'block': (20, 20, 20), 'held': 8000}, {}),
  ],
)
@pytest.mark.usefixtures('affine')
def test_what_is_proposed_is_the_largest(limit, size, count, options, expected):
  limit(size)
  sentence = predict_memory.propose_prediction(
    _set_up(), None, None, tile=TILE, count=count, **options
  )
  assert _flags(sentence) == expected


@pytest.mark.usefixtures('affine')
def test_tiles_that_cannot_be_exact_are_not_proposed(limit):
  limit(300)
  setup = _set_up('predict.blend=exact')
  assert setup.model.receptive_field == (5, 5)  # a margin of 2 at either end
  sentence = predict_memory.propose_prediction(setup, None, None, tile=(16, 16), count=1)
  assert _flags(sentence) == {'batch_size': '1', 'tile': '(12,12)'}  # 100 + 144 of 270 bytes
  limit(120)  # 100 + 2 x 2 bytes would fit, but 5 are needed for a voxel
  sentence = predict_memory.propose_prediction(setup, None, None, tile=(16, 16), count=1)
  assert sentence.endswith('no smaller batch or tile fits either; take a smaller network')


def test_without_numbers_or_alone_nothing_is_compiled(monkeypatch, limit, affine):
  limit(1000)
  setup = _set_up()
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  sentence = predict_memory.propose_prediction(setup, None, None, tile=TILE, count=4)
  assert sentence == 'lower predict.batch_size=4 or predict.tile=(32, 32)'
  assert not affine


@pytest.mark.usefixtures('affine')
def test_running_out_ends_with_the_proposal(limit):
  limit(3000)
  with (
    pytest.raises(
      DeviceError,
      match=r'^the prediction ran out of memory: it needs .*; set --config.predict.batch_size=2, ',
    ),
    predict_memory.explain_prediction(_set_up(), None, None, tile=TILE, count=4),
  ):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 4196 bytes.')
