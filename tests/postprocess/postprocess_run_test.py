"""From file to file: formats, tables, interruption, and what is refused."""

import csv

import numpy as np
import pydantic
import pytest
from PIL import Image
from postprocess_support import by_first_voxel
from scipy import ndimage

from emseg_jax.config.postprocess import Postprocess
from emseg_jax.data import volumes, writers
from emseg_jax.errors import ConfigError, DataError, OutputError
from emseg_jax.postprocess import postprocess

SIZE = (30.0, 5.0, 4.0)
# More than one chunk of 64 along each axis, objects that cross their faces.
PROBABILITIES = np.zeros((67, 70, 140), np.uint8)
PROBABILITIES[60:66, 10:20, 50:130] = 200
PROBABILITIES[3:9, 60:70, 5:100:2] = 255
PROBABILITIES[30, 30:34, 64] = 150
IDS = by_first_voxel(ndimage.label(PROBABILITIES > 127)[0])
HALF = Postprocess(threshold=0.5, block=(1, 64, 64))


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  path = tmp_path_factory.mktemp('source') / 'prob.zarr'
  reference = volumes.ArrayVolume(PROBABILITIES, voxel_size_zyx=SIZE)
  return writers.write_like(reference, path, iter(PROBABILITIES))


def names(folder):
  return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize('name', ['a.zarr', 'a.n5', 'a.precomputed', 'a.h5:/ids', 'a.tif', 'a.nii'])
def test_instances_in_every_format_that_holds_them(tmp_path, source, name):
  result = postprocess(source, tmp_path / 'sub' / name, HALF)
  file = name.partition(':')[0]
  assert result.path == tmp_path / 'sub' / file
  assert names(result.path.parent) == [file, f'{file}.csv', f'{file}.json']
  volume = volumes.open_volume(tmp_path / 'sub' / name, palette='index')
  assert volume.dtype == np.uint32
  np.testing.assert_array_equal(volume[:], IDS)
  np.testing.assert_allclose(volume.voxel_size_zyx, SIZE, rtol=1e-6)
  assert result.count == IDS.max() == 50
  with open(result.table, encoding='utf-8', newline='') as table:
    rows = list(csv.DictReader(table))
  assert [int(row['voxels']) for row in rows] == np.bincount(IDS.ravel())[1:].tolist()
  assert float(rows[-1]['volume_nm3']) == 6 * 10 * 80 * 600


@pytest.mark.parametrize('extension', ['.mrc', '.tif', '.zarr'])
def test_a_clean_mask(tmp_path, source, extension):
  options = Postprocess(threshold=0.5, min_voxels=5, instances='none')
  result = postprocess(source, tmp_path / f'mask{extension}', options)
  assert (result.table, result.count) == (None, None)
  assert names(tmp_path) == [f'mask{extension}', f'mask{extension}.json']
  expected = PROBABILITIES > 127
  expected[30] = False  # 4 voxels
  np.testing.assert_array_equal(volumes.open_volume(result.path, palette='index')[:], expected)


def test_stacks_are_read_section_by_section_and_stay_stacks(tmp_path):
  values = PROBABILITIES[58:]
  path = writers.write_like(volumes.ArrayVolume(values), tmp_path / 'in.tif', iter(values))
  result = postprocess(path, tmp_path / 'out', HALF)
  assert result.path == tmp_path / 'out.tif'
  np.testing.assert_array_equal(volumes.open_volume(result.path)[:], by_first_voxel(IDS[58:]))


@pytest.fixture
def folder(tmp_path):
  """Three sections of one rod and a dot, labels 7 and 3."""
  (tmp_path / 'in').mkdir()
  for z in range(3):
    section = np.zeros((20, 30), np.uint8)
    section[5:8, 5:25] = 7
    section[15, z] = 3
    Image.fromarray(section).save(tmp_path / 'in' / f's{z}.png')
  return tmp_path / 'in'


@pytest.mark.parametrize(('dimensions', 'sizes'), [(None, [60, 60, 60]), (3, [180])])
def test_folders_are_unrelated_images_unless_told(tmp_path, folder, dimensions, sizes):
  options = Postprocess(label=7, dimensions=dimensions)
  result = postprocess(folder, tmp_path / 'out.zarr', options)
  ids = volumes.open_volume(result.path)[:]
  assert np.bincount(ids.ravel())[1:].tolist() == sizes


def test_a_single_image(tmp_path, folder):
  result = postprocess(folder / 's0.png', tmp_path / 'out', Postprocess())
  assert result.path == tmp_path / 'out.tif'
  ids = volumes.open_volume(result.path)[:]
  assert np.bincount(ids.ravel())[1:].tolist() == [60, 1]


def test_what_is_there_is_not_written_into(tmp_path, source):
  postprocess(source, tmp_path / 'out.zarr', HALF)
  with pytest.raises(OutputError, match=r'out\.zarr: is not empty'):
    postprocess(source, tmp_path / 'out.zarr', Postprocess(threshold=0.4))
  with pytest.raises(OutputError, match='is the input'):
    postprocess(source, source, HALF)


def test_mrc_and_png_cannot_hold_ids(tmp_path, source, folder):
  with pytest.raises(OutputError, match=r'out\.mrc: MRC cannot hold uint32; name the output'):
    postprocess(source, tmp_path / 'out.mrc', HALF)
  with pytest.raises(OutputError, match=r'written as \.tif'):
    postprocess(folder, tmp_path / 'out.png', Postprocess())
  assert names(tmp_path) == ['in']


def test_images_that_are_no_labels_are_refused(tmp_path, folder):
  Image.fromarray(np.zeros((20, 31), np.uint8)).save(folder / 's3.png')
  with pytest.raises(DataError, match='images of 2 sizes'):
    postprocess(folder, tmp_path / 'out.zarr', Postprocess())
  Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / 'colour.png')
  with pytest.raises(DataError, match='is colour'):
    postprocess(tmp_path / 'colour.png', tmp_path / 'out.zarr', Postprocess())


def test_a_volume_in_nanometres_needs_a_voxel_size(tmp_path, folder):
  with pytest.raises(ConfigError, match=r'min_volume=50: the voxel size of .*in is unknown'):
    postprocess(folder, tmp_path / 'out.zarr', Postprocess(min_volume=50))
  options = {'reading': {'voxel_size': (30.0, 5.0, 4.0)}, 'min_volume': 61}
  ids = volumes.open_volume(postprocess(folder, tmp_path / 'o.zarr', Postprocess(**options)).path)[
    :
  ]
  assert np.bincount(ids.ravel())[1:].tolist() == [60, 60, 60]  # the dots have 20 nm²


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'high': 0.5}, 'high is for probabilities and needs threshold'),
    ({'marker_threshold': 0.5, 'instances': 'watershed'}, 'needs threshold'),
    ({'threshold': 0.5, 'label': 1}, 'either label or threshold'),
    ({'threshold': 0.5, 'high': 0.4}, 'high=0.4 must not be below threshold=0.5'),
    ({'min_voxels': 5, 'min_volume': 5}, 'either min_voxels or min_volume'),
    ({'instances': 'watershed'}, 'needs either marker_threshold or marker_distance'),
    ({'marker_distance': 5}, 'nothing else does'),
    ({'threshold': 1}, 'less than 1'),
  ],
)
def test_settings_that_contradict_each_other(options, message):
  with pytest.raises(pydantic.ValidationError, match=message):
    Postprocess(**options)
