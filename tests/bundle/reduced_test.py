"""Parameters in fewer bits: how far they are off, and what is refused."""

import hashlib
import json

import bundle_support
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

import emseg_jax
from emseg_jax import bundle as bundle_lib
from emseg_jax.bundle import reduced
from emseg_jax.errors import BundleError, ConfigError
from emseg_jax.export import run as export_lib
from emseg_jax.pretrained import own

NAME = 'params/head/kernel'
ARRAYS = st_np.arrays(
  np.float32,
  st_np.array_shapes(min_dims=2, max_dims=4, max_side=4),
  elements=st.floats(-1e6, 1e6, width=32),
)


@settings(max_examples=60, deadline=None)
@given(kernel=ARRAYS)
def test_every_kernel_is_off_by_no_more_than_is_said(kernel):
  stored = reduced.reduce({NAME: kernel}, 'int8')
  assert stored[NAME].dtype == np.int8
  step = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / 127
  found = reduced.expand(stored, 'int8')[NAME]
  # Half a step, and what float32 rounds: w / s up to 127 is off by 127 * 2^-24, s by 2^-24. With a
  # step below 2^-126 all of a channel is taken for zero.
  assert (np.abs(found - kernel) <= step * (0.5 + 1e-4) + 127 * 2.0**-126).all()
  found = reduced.expand(reduced.reduce({NAME: kernel}, 'bf16'), 'bf16')[NAME]
  # 8 bits of precision, rounded: 2^-8 of the value. Below 2^-126 the numbers get sparse.
  assert (np.abs(found - kernel) <= np.abs(kernel) * 2.0**-8 + 2.0**-126).all()


def test_int8_by_hand():
  # Columns are output channels: the largest of the first is 2.54, so that its step is 0.02.
  kernel = np.array([[2.54, 0.0], [-0.02, 0.0], [0.051, 0.0]], np.float32)
  stored = reduced.reduce({NAME: kernel}, 'int8')
  np.testing.assert_array_equal(stored[NAME], [[127, 0], [-1, 0], [3, 0]])
  np.testing.assert_allclose(stored[NAME + '_scale'], [0.02, 1.0], rtol=1e-6)
  found = reduced.expand(stored, 'int8')[NAME]
  np.testing.assert_allclose(found, [[2.54, 0], [-0.02, 0], [0.06, 0]], rtol=1e-6)


@pytest.mark.parametrize('kind', reduced.KINDS)
def test_biases_norms_and_statistics_stay_as_they_are(kind):
  model = {'name': 'unet', 'options': {'width': 1 / 64, 'norm': 'batch'}}
  config = bundle_support.make_config(model=model)
  flat = own.flat(bundle_support.make_bundle(config).variables)
  found = reduced.expand(reduced.reduce(flat, kind), kind)
  assert found.keys() == flat.keys()
  others = [name for name in flat if not name.endswith('kernel')]
  assert {name.split('/')[-1] for name in others} >= {'bias', 'scale', 'mean', 'var'}
  for name in others:
    np.testing.assert_array_equal(found[name], flat[name])
  changed = [name for name in flat if (found[name] != flat[name]).any()]
  assert changed
  assert not set(changed) & set(others)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  path = tmp_path_factory.mktemp('reduced') / 'model'
  forms = export_lib.forms_named(reduced.KINDS, measure=False)
  return path, bundle_lib.write_bundle(path, bundle_support.make_bundle(), forms=forms)


@pytest.fixture
def folder(written, tmp_path):
  """A copy that has the int8 parameters alone."""
  for name in ('model.json', 'params_int8.safetensors', 'sample_input.npy', 'sample_output.npy'):
    (tmp_path / name).write_bytes((written[0] / name).read_bytes())
  return tmp_path


@pytest.mark.parametrize(('kind', 'bound'), [('bf16', 0.51), ('int8', 0.27)])
def test_they_are_smaller_and_segment_nearly_the_same(written, kind, bound):
  path, _ = written
  sizes = {p.name: p.stat().st_size for p in path.glob('params*')}
  # Half and a quarter of the bytes, and what does not shrink.
  tensors = safetensors.numpy.load_file(path / 'params.safetensors').values()
  whole = sum(t.nbytes for t in tensors if t.ndim > 1)
  rest = sizes['params.safetensors'] - whole
  names = len(bundle_support.make_bundle().variables['params']) * 1000  # of factors, in the header
  assert sizes[f'params_{kind}.safetensors'] < bound * whole + rest + names
  image = np.random.default_rng(0).integers(0, 256, (48, 40)).astype(np.uint8)
  full = emseg_jax.load(path).predict(image, probabilities=True)
  found = emseg_jax.load(path, params=kind).predict(image, probabilities=True)
  assert 0 < np.abs(found - full).max() < 0.1
  assert (found.argmax(-1) == full.argmax(-1)).mean() > 0.95


def test_a_folder_without_the_float32_parameters_will_do(folder):
  found = bundle_lib.read_bundle(folder, params='int8')
  assert found.variables['params']['head']['kernel'].dtype == np.float32
  with pytest.raises(BundleError, match=r'params\.safetensors: cannot be read: No such file'):
    bundle_lib.read_bundle(folder)
  with pytest.raises(BundleError, match=r'params_bf16\.safetensors: cannot be read'):
    bundle_lib.read_bundle(folder, params='bf16')


def edited(folder, **fields):
  record = json.loads((folder / 'model.json').read_text())
  record['forms']['int8'] |= fields
  (folder / 'model.json').write_text(json.dumps(record))


def test_altered_ones_are_noticed(folder):
  path = folder / 'params_int8.safetensors'
  content = path.read_bytes()
  path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  with pytest.raises(BundleError, match=r'params_int8\.safetensors: is damaged or was changed'):
    bundle_lib.read_bundle(folder, params='int8')
  path.write_bytes(content[:1000])
  edited(folder, sha256=hashlib.sha256(content[:1000]).hexdigest())
  with pytest.raises(BundleError, match='damaged or cut short'):
    bundle_lib.read_bundle(folder, params='int8')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda a: a.pop(f'{NAME}_scale'), f'{NAME} has no factors for its 2 output channels'),
    (lambda a: a.update({f'{NAME}_scale': np.ones(3, np.float32)}), 'has no factors'),
    (lambda a: a.update({f'{NAME}_scale': np.ones(2)}), 'is float64, it must be float32'),
    (lambda a: a.update({NAME: np.ones((1, 1, 1, 2), np.float32)}), 'it must be int8'),
    (lambda a: a.update({'params/head/bias': np.ones(2, np.int8)}), 'it must be float32'),
    (lambda a: a.pop(NAME), f'{NAME} is missing'),
    (lambda a: a.pop('params/head/bias'), 'params/head/bias is missing'),
  ],
)
def test_arrays_that_are_not_what_was_written_are_refused(folder, change, message):
  path = folder / 'params_int8.safetensors'
  arrays = safetensors.numpy.load_file(path)
  change(arrays)
  path.write_bytes(own.pack(arrays, own.About(1, 2, 'dataset')))
  edited(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
  with pytest.raises(BundleError, match=message):
    bundle_lib.read_bundle(folder, params='int8')


def test_what_the_record_says_of_them_is_checked(folder):
  edited(folder, file='../params_int8.safetensors')
  with pytest.raises(BundleError, match=r'forms\.int8\.file'):
    bundle_lib.read_bundle(folder, params='int8')
  record = json.loads((folder / 'model.json').read_text()) | {'forms': {}}
  (folder / 'model.json').write_text(json.dumps(record))
  with pytest.raises(BundleError, match=r"no parameters 'int8' .there are: float32"):
    bundle_lib.read_bundle(folder, params='int8')
  with pytest.raises(ConfigError, match=r'predict\.params'):
    emseg_jax.load(folder, params='int4')
