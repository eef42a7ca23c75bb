"""The portable folder: what is written is read, and nothing half-written or altered is taken."""

import hashlib
import json
import shutil
from pathlib import Path

import bundle_support
import jax
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from emseg_jax import bundle as bundle_lib
from emseg_jax.bundle import schema
from emseg_jax.errors import BundleError, OutputError
from emseg_jax.export import inference

STORED = Path(__file__).parent


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  path = tmp_path_factory.mktemp('bundle') / 'model'
  scores = {'test': {'scores': {'miou': 0.75, 'per_class': {'cell': {'iou': 0.5, 'dice': None}}}}}
  return path, bundle_lib.write_bundle(path, bundle_support.make_bundle(scores=scores))


@pytest.fixture
def folder(written, tmp_path):
  shutil.copytree(written[0], tmp_path / 'model')
  return tmp_path / 'model'


def edit(folder, field, value):
  """Sets a field of model.json, 'a.b.c'."""
  record = json.loads((folder / 'model.json').read_text())
  node, keys = record, field.split('.')
  for key in keys[:-1]:
    node = node[key]
  node[keys[-1]] = value
  (folder / 'model.json').write_text(json.dumps(record))


def replace_parameters(folder, content):
  """Other parameters, and their checksum, as someone would who wants them to be taken."""
  (folder / 'params.safetensors').write_bytes(content)
  edit(folder, 'parameters.sha256', hashlib.sha256(content).hexdigest())


def changed_arrays(folder, change):
  arrays = safetensors.numpy.load_file(folder / 'params.safetensors')
  change(arrays)
  metadata = {'format': 'emseg_jax', 'inputs': '1', 'outputs': '2', 'normalisation': 'scale'}
  replace_parameters(folder, safetensors.numpy.save(arrays, metadata))


def test_what_is_written_is_read_bit_by_bit(written):
  path, bundle = written
  read = bundle_lib.read_bundle(path)
  assert jax.tree.structure(read.variables) == jax.tree.structure(bundle.variables)
  jax.tree.map(np.testing.assert_array_equal, read.variables, bundle.variables)
  assert read.record == bundle.record
  assert read.config == bundle.config
  assert read.normalisation == bundle.normalisation
  for a, b in zip(read.sample, bundle.sample, strict=True):
    np.testing.assert_array_equal(a, b)
  assert {p.name for p in path.iterdir()} == {
    *('model.json', 'params.safetensors', 'README.md', 'sample_input.npy', 'sample_output.npy')
  }


def test_the_record_says_what_others_need(written):
  record = json.loads((written[0] / 'model.json').read_text())
  assert record['schema_version'] == 1
  assert record['network']['divisor'] == [16, 16]
  assert record['network']['receptive_field'] == [204, 204]  # of a U-Net, models/unet.py
  assert [label['name'] for label in record['labels']] == ['cell', 'membrane']
  assert [label['file_value'] for label in record['labels']] == [0, 1]
  assert record['input']['normalisation']['offset'] == [120.0]
  assert record['input']['normalisation']['scale'] == [40.0]
  assert record['input']['voxel_size_zyx'] == [None, 4.0, 4.0]
  assert record['training']['best_score'] is None  # -inf is no JSON


def test_the_card_names_source_classes_and_scores(written):
  card = (written[0] / 'README.md').read_text()
  for text in ('Ronneberger', '| 1 | membrane | 1 | #', 'miou 0.7500', '| cell | 0.5000 | - |'):
    assert text in card
  assert 'Licence: not stated' in card


@pytest.mark.parametrize('name', sorted(p.name for p in STORED.glob('v*') if p.is_dir()))
def test_a_stored_bundle_of_each_version_gives_what_it_gave(name):
  bundle = bundle_lib.read_bundle(STORED / name)
  given, expected = bundle.sample
  found = jax.jit(inference.of_bundle(bundle))(bundle.variables, given)
  assert np.ptp(expected[..., 0]) > 0.1  # not a constant
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_there_is_a_stored_bundle_of_every_version():
  stored = {int(p.name.removeprefix('v')) for p in STORED.glob('v*')}
  assert stored == set(range(1, schema.SCHEMA_VERSION + 1))
  assert set(schema.MIGRATIONS) == set(range(1, schema.SCHEMA_VERSION))


def test_old_records_are_brought_up_to_date_step_by_step():
  steps = {
    1: lambda raw: {'b': raw['a'], 'schema_version': 2},
    2: lambda raw: {'c': raw['b'] + 1, 'schema_version': 3},
  }
  found = schema.parse({'schema_version': 1, 'a': 4}, where='x', current=3, migrations=steps)
  assert found == {'c': 5, 'schema_version': 3}


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('schema_version', 2, 'schema version 2, this package reads up to 1'),
    ('schema_version', True, 'schema_version is True'),
    ('schema_version', 0, 'schema_version is 0'),
    ('network.name', 'unnet', "network.name is 'unnet', but training.config says 'unet'"),
    ('training.config.model.name', 'unnet', "'unnet' is not known; did you mean 'unet'"),
    ('training.config.model.options', {'wdth': 1}, 'wdth'),
    ('training.config.data.patch', [32], 'training.config: config.data.patch'),
    ('classes', ['cell'], "classes is ('cell',), but"),
    ('input.planes', 3, 'input.planes is 3'),
    ('parameters.file', '../params.safetensors', 'parameters.file'),
    ('sample.input', '/etc/passwd', 'sample.input'),
    ('surprise', 1, 'surprise: extra inputs are not permitted'),
    ('activation', 'relu', 'activation'),
  ],
)
def test_a_record_that_cannot_be_used_is_refused_with_the_field(folder, field, value, message):
  edit(folder, field, value)
  with pytest.raises(BundleError) as error:
    bundle_lib.read_bundle(folder)
  assert 'model.json' in str(error.value)
  assert message in str(error.value)


def test_missing_files_are_named(folder):
  (folder / 'sample_output.npy').unlink()
  with pytest.raises(BundleError, match=r'sample_output\.npy: cannot be read: No such file'):
    bundle_lib.read_bundle(folder)
  (folder / 'params.safetensors').unlink()
  with pytest.raises(BundleError, match=r'params\.safetensors: cannot be read: No such file'):
    bundle_lib.read_bundle(folder)
  (folder / 'model.json').unlink()
  with pytest.raises(BundleError, match=r'is no exported model, it has no model\.json'):
    bundle_lib.read_bundle(folder)


def test_altered_and_truncated_parameters_are_noticed(folder):
  path = folder / 'params.safetensors'
  content = path.read_bytes()
  path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  with pytest.raises(BundleError, match='damaged or was changed, its checksum'):
    bundle_lib.read_bundle(folder)
  replace_parameters(folder, content[: len(content) // 2])
  with pytest.raises(BundleError, match='damaged or cut short'):
    bundle_lib.read_bundle(folder)
  replace_parameters(folder, b'')
  with pytest.raises(BundleError, match='damaged or cut short'):
    bundle_lib.read_bundle(folder)


@pytest.mark.parametrize('length', [10**8, 2**63 - 1])
def test_a_huge_header_is_not_read(folder, length):
  replace_parameters(folder, length.to_bytes(8, 'little') + b'{}' * 10)
  with pytest.raises(BundleError, match=f'claims {length} bytes'):
    bundle_lib.read_bundle(folder)


def test_parameters_of_another_network_are_refused(folder):
  name = 'params/head/bias'

  changed_arrays(folder, lambda a: a.update({name: np.zeros(3, np.float32)}))
  with pytest.raises(BundleError, match=rf'{name} has shape \[3\], the network .* one of \[2\]'):
    bundle_lib.read_bundle(folder)
  changed_arrays(folder, lambda a: a.pop(name))
  with pytest.raises(BundleError, match=f'{name} is missing'):
    bundle_lib.read_bundle(folder)
  changed_arrays(
    folder, lambda a: a.update({name: np.zeros(2, np.float32), 'x/y': np.zeros(2, np.float32)})
  )
  with pytest.raises(BundleError, match=r'x/y has shape \[2\], the network .* has no such array'):
    bundle_lib.read_bundle(folder)
  changed_arrays(folder, lambda a: a.update({name: np.zeros(2, np.float64)}) or a.pop('x/y'))
  with pytest.raises(BundleError, match=f'{name} is float64, it must be float32'):
    bundle_lib.read_bundle(folder)


def test_nothing_is_unpickled(folder):
  np.save(folder / 'sample_input.npy', np.array([{'a': 1}], object), allow_pickle=True)
  with pytest.raises(BundleError, match=r'sample_input\.npy: is no array of numpy'):
    bundle_lib.read_bundle(folder)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_happens_to_the_record_gives_one_error_or_none(written, tmp_path_factory, data):
  content = (written[0] / 'model.json').read_bytes()
  place = data.draw(st.integers(0, len(content) - 1))
  junk = data.draw(st.binary(max_size=3))
  folder = tmp_path_factory.mktemp('fuzzed')
  for name in ('params.safetensors', 'sample_input.npy', 'sample_output.npy'):
    (folder / name).symlink_to(written[0] / name)
  cut = data.draw(st.integers(place, min(place + 5, len(content))))
  (folder / 'model.json').write_bytes(content[:place] + junk + content[cut:])
  try:
    bundle_lib.read_bundle(folder)
  except BundleError as error:
    assert str(folder) in str(error)  # noqa: PT017, it need not be raised


def test_an_output_that_is_there_is_refused_and_an_empty_folder_is_taken(tmp_path):
  bundle = bundle_support.make_bundle()
  path = tmp_path / 'model'
  path.mkdir()
  bundle_lib.write_bundle(path, bundle)
  before = (path / 'model.json').read_bytes()
  with pytest.raises(OutputError, match='exists already'):
    bundle_lib.write_bundle(path, bundle)
  assert (path / 'model.json').read_bytes() == before
  (tmp_path / 'file').touch()
  with pytest.raises(OutputError, match='exists already'):
    bundle_lib.write_bundle(tmp_path / 'file', bundle)
  with pytest.raises(OutputError, match='cannot be written'):
    bundle_lib.write_bundle(tmp_path / 'file' / 'model', bundle)
  assert {p.name for p in tmp_path.iterdir()} == {'model', 'file'}


def test_a_form_that_fails_leaves_nothing_behind(tmp_path):
  def fail(folder, bundle):
    assert (folder / 'params.safetensors').is_file()
    raise OutputError('no room')

  with pytest.raises(OutputError, match='no room'):
    bundle_lib.write_bundle(tmp_path / 'model', bundle_support.make_bundle(), forms={'x': fail})
  assert not list(tmp_path.iterdir())


def test_a_form_is_written_beside_and_described(tmp_path):
  def write(folder, bundle):
    (folder / 'x.txt').write_text(bundle.record.title)
    return {'file': 'x.txt'}

  path = tmp_path / 'model'
  bundle_lib.write_bundle(path, bundle_support.make_bundle(), forms={'x': write})
  assert bundle_lib.read_bundle(path).record.forms == {'x': {'file': 'x.txt'}}
  assert (path / 'x.txt').read_text() == 'A test'
