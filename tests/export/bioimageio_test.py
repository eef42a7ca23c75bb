"""bioimageio.zip: what the libraries of the BioImage Model Zoo say of it."""

import json
import zipfile

import bundle_support
import numpy as np
import pytest
from PIL import Image

from emseg_jax import bundle as bundle_lib
from emseg_jax.export import bioimageio, onnx

pytestmark = pytest.mark.parity  # where the extra is installed for them
pytest.importorskip('onnx')
runtime = pytest.importorskip('onnxruntime')

CONFIGS = {
  'image': {},
  'volume': {'model': bundle_support.FLAT, 'patch': (8, 32, 32)},
  'sections': {'neighbours': 1},
  'per_volume': {'normalisation': 'per_volume'},
  'percentile': {'normalisation': 'percentile'},
  'overlapping': {'activation': 'multilabel'},
}


@pytest.fixture(scope='module', params=CONFIGS)
def package(request, tmp_path_factory):
  """The form in a bundle, and its unpacked files."""
  folder = tmp_path_factory.mktemp(request.param)
  bundle = bundle_support.make_bundle(bundle_support.make_config(**CONFIGS[request.param]))
  form = bioimageio.write(folder, bundle, authors=['Ada Example'])
  with zipfile.ZipFile(folder / form['file']) as file:
    file.extractall(folder / 'unpacked')
  return request.param, bundle, folder


def described(folder):
  return json.loads((folder / 'unpacked' / 'rdf.yaml').read_text(encoding='utf-8'))


def test_the_official_libraries_find_it_valid_and_reproduce_its_output(package):
  spec, core = pytest.importorskip('bioimageio.spec'), pytest.importorskip('bioimageio.core')
  _, _, folder = package
  for source in (folder / bioimageio.FILE, folder / 'unpacked' / 'rdf.yaml'):
    summary = spec.load_description(source, format_version='latest').validation_summary
    assert summary.status == 'valid-format', summary.format()
  tested = core.test_model(folder / bioimageio.FILE, weight_format='onnx')
  assert tested.status == 'passed', tested.format()


def test_they_run_it_tile_by_tile_on_an_image_of_another_size(tmp_path):
  core = pytest.importorskip('bioimageio.core')
  bioimageio.write(tmp_path, bundle_support.make_bundle())
  image = np.random.default_rng(0).integers(0, 256, (1, 1, 50, 70)).astype(np.float32)
  result = core.predict(
    model=tmp_path / bioimageio.FILE,
    inputs={'image': core.Tensor.from_numpy(image, dims=['batch', 'channel', 'y', 'x'])},
    blocksize_parameter=1,
  )
  found = result.members['probabilities'].data
  assert found.shape == (1, 2, 50, 70)
  np.testing.assert_allclose(found.sum('channel'), 1, atol=1e-5)


def test_the_test_output_is_what_onnxruntime_gives_after_the_preprocessing(package):
  name, bundle, folder = package
  files = folder / 'unpacked'
  given, expected = np.load(files / 'test_input.npy'), np.load(files / 'test_output.npy')
  np.testing.assert_array_equal(np.moveaxis(given, 1, -1), bundle.sample[0])
  steps = described(folder)['inputs'][0]['preprocessing']
  if name == 'per_volume':
    assert [step['id'] for step in steps] == ['zero_mean_unit_variance']
    given = (given - given.mean()) / given.std()
  elif name == 'percentile':
    assert [step['id'] for step in steps] == ['scale_range']
    low, high = np.percentile(given, [1, 99])
    given = (given - low) / (high - low)
  else:
    assert steps == []
    np.testing.assert_allclose(np.moveaxis(expected, 1, -1), bundle.sample[1], atol=1e-4)
  session = runtime.InferenceSession(files / 'model.onnx')
  (found,) = session.run(None, {'image': given.astype(np.float32)})
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_axes_have_the_sizes_of_the_tile_and_the_voxels_of_the_training(package):
  name, bundle, folder = package
  given, result = described(folder)['inputs'][0]['axes'], described(folder)['outputs'][0]['axes']
  assert [axis['type'] for axis in given[:2]] == ['batch', 'channel']
  spatial = 'zyx' if name == 'volume' else 'yx'
  assert ''.join(axis['id'] for axis in given[2:]) == spatial
  assert tuple(axis['size'] for axis in given[2:]) == bundle.sample[0].shape[1:-1]
  # (None, 4, 4) nm: what is not known is not said.
  scales = [axis.get('scale') for axis in given[2:]]
  assert scales == ([None, 4.0, 4.0] if name == 'volume' else [4.0, 4.0])
  assert 'unit' not in given[2] or given[2]['unit'] == 'nanometer'
  assert len(given[1]['channel_names']) == bundle.sample[0].shape[-1]
  assert result[1]['channel_names'] == ['cell', 'membrane']
  # A quarter of the tile, since half the receptive field is more than that.
  tile = dict(zip(spatial, bundle.sample[0].shape[1:-1], strict=True))
  assert [axis['halo'] for axis in result[2:]] == [tile[axis['id']] // 4 for axis in result[2:]]


def test_the_cover_shows_the_image_beside_its_classes(package):
  _, bundle, folder = package
  cover = np.asarray(Image.open(folder / 'unpacked' / 'cover.png'))
  height, width = bundle.sample[0].shape[-3:-1]
  assert cover.shape == (height, 2 * width, 3)
  colours = {tuple(colour) for colour in cover[:, width:].reshape(-1, 3)}
  known = {tuple(bytes.fromhex(label.colour.removeprefix('#'))) for label in bundle.record.labels}
  assert colours <= known
  assert len(np.unique(cover[:, :width])) > 10


@pytest.mark.parametrize(
  ('licence', 'expected'),
  [
    (None, None),
    ('CC-BY-4.0', 'CC-BY-4.0'),
    ('Ask us; see the paper.', {'source': 'LICENSE.txt'}),
  ],
)
def test_a_licence_is_an_identifier_or_a_file(licence, expected, tmp_path):
  bundle = bundle_support.make_bundle()
  record = bundle.record.model_copy(update={'licence': licence, 'title': 'Zellen: Grüße!'})
  bundle = bundle_lib.Bundle(
    record, bundle.config, bundle.normalisation, bundle.variables, bundle.sample
  )
  bioimageio.write_folder(tmp_path, bundle)
  description = json.loads((tmp_path / 'rdf.yaml').read_text(encoding='utf-8'))
  found = description.get('license')
  if isinstance(expected, dict):
    assert (tmp_path / 'LICENSE.txt').read_text() == 'Ask us; see the paper.\n'
    found = {'source': found['source']}
  assert found == expected
  assert description['name'] == 'Zellen Gr e'
  spec = pytest.importorskip('bioimageio.spec')
  assert spec.load_description(tmp_path / 'rdf.yaml').validation_summary.status == 'valid-format'


def test_a_network_is_cited_by_its_paper():
  assert bioimageio.cite('unet') == [
    {'text': 'Ronneberger et al. 2015', 'doi': '10.1007/978-3-319-24574-4_28'}
  ]
  assert bioimageio.cite('vgg_unet') == []  # its report has no address


def test_the_form_is_recorded_in_the_bundle(tmp_path):
  forms = {'onnx': onnx.write, 'bioimageio': bioimageio.write}
  bundle_lib.write_bundle(tmp_path / 'model', bundle_support.make_bundle(), forms=forms)
  written = bundle_lib.read_bundle(tmp_path / 'model').record.forms
  assert written['bioimageio']['file'] == 'bioimageio.zip'
  assert (tmp_path / 'model' / 'bioimageio.zip').is_file()
  assert not [path for path in (tmp_path / 'model').iterdir() if path.is_dir()]
