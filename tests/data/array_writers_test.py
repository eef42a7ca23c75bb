"""Volumes come back from every format as they were written, read by the formats' own libraries."""

import json

import h5py
import mrcfile
import numpy as np
import pytest
import tensorstore
import zarr

from emseg_jax.data import array_writers, volumes, writers
from emseg_jax.errors import OutputError

SIZE = (30.0, 5.0, 4.0)  # z, y, x in nm
FORMATS = ('.mrc', '.h5', '.zarr', '.n5', '.precomputed', '.nii', '.tif')
# More sections than a slab of any format has.
LABELS = np.random.default_rng(0).integers(0, 4, (70, 20, 33)).astype(np.uint8)


def reference(*, size=SIZE):
  return volumes.ArrayVolume(LABELS, voxel_size_zyx=size)


@pytest.mark.parametrize('extension', FORMATS)
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('size', [SIZE, None])
def test_what_is_written_is_read_back(tmp_path, extension, dtype, size):
  values = LABELS.astype(dtype) * dtype(80 if dtype == np.uint8 else 20_000)
  path = writers.write_like(reference(size=size), tmp_path / f'out{extension}', iter(values))
  assert path == tmp_path / f'out{extension}'
  assert [p.name for p in tmp_path.iterdir()] == [path.name]
  volume = volumes.open_volume(path, palette='index')
  np.testing.assert_array_equal(volume[:], values)
  assert volume.axes == 'ZYX'
  assert volume.dtype == (np.uint16 if extension == '.mrc' else dtype)
  expected = (1.0, 1.0, 1.0) if extension == '.precomputed' and size is None else size
  if expected is None:
    assert volume.voxel_size_zyx in (None, (None, None, None))
  else:
    np.testing.assert_allclose(volume.voxel_size_zyx, expected, rtol=1e-6)


@pytest.mark.parametrize('extension', FORMATS)
def test_a_volume_keeps_its_format_where_the_output_names_none(tmp_path, extension):
  first = writers.write_like(reference(), tmp_path / f'first{extension}', iter(LABELS))
  again = writers.write_like(volumes.open_volume(first), tmp_path / 'again', iter(LABELS))
  assert again.name == f'again{extension}'
  np.testing.assert_array_equal(volumes.open_volume(again, palette='index')[:], LABELS)


def test_zarr_3_stays_zarr_3(tmp_path):
  array = zarr.create_array(tmp_path / 'in.zarr', shape=LABELS.shape, dtype='u1', zarr_format=3)
  array[...] = LABELS
  volume = volumes.open_volume(tmp_path / 'in.zarr')
  path = writers.write_like(volume, tmp_path / 'out.zarr', iter(LABELS))
  assert zarr.open_group(path, mode='r')['0'].metadata.zarr_format == 3
  np.testing.assert_array_equal(volumes.open_volume(path)[:], LABELS)


def test_other_libraries_read_the_same(tmp_path):
  def write(name):
    return writers.write_like(reference(), tmp_path / name, iter(LABELS))

  with mrcfile.open(write('a.mrc'), permissive=False) as file:
    np.testing.assert_array_equal(file.data, LABELS)
    assert file.is_volume()
    assert float(file.voxel_size.z) == 300  # angstrom
    assert file.header.dmax == 3
  assert mrcfile.validate(tmp_path / 'a.mrc')
  with h5py.File(write('a.h5'), 'r') as file:
    np.testing.assert_array_equal(file['data'][...], LABELS)
    np.testing.assert_array_equal(file['data'].attrs['element_size_um'], [0.03, 0.005, 0.004])
  group = zarr.open_group(write('a.zarr'), mode='r')
  np.testing.assert_array_equal(group['0'][...], LABELS)
  (scale,) = group.attrs['multiscales'][0]['datasets'][0]['coordinateTransformations']
  assert scale == {'type': 'scale', 'scale': list(SIZE)}
  path = write('a.precomputed')
  info = json.loads((path / 'info').read_text())
  assert info['type'] == 'segmentation'
  assert info['scales'][0]['resolution'] == [4, 5, 30]
  store = {'driver': 'n5', 'kvstore': {'driver': 'file', 'path': f'{write("a.n5")}/data/'}}
  np.testing.assert_array_equal(tensorstore.open(store).result().read().result(), LABELS.T)


def test_nifti_is_what_nibabel_reads(tmp_path):
  nibabel = pytest.importorskip('nibabel')
  path = writers.write_like(reference(), tmp_path / 'a.nii', iter(LABELS))
  image = nibabel.load(path)
  np.testing.assert_array_equal(np.asarray(image.dataobj), LABELS.T)
  np.testing.assert_allclose(image.header.get_zooms(), np.array(SIZE[::-1]) * 1e-6, rtol=1e-6)
  assert image.header.get_xyzt_units()[0] == 'mm'


@pytest.mark.parametrize('name', ['out.h5:/volumes/labels', 'out.zarr:/volumes/labels'])
def test_a_dataset_may_be_named(tmp_path, name):
  path = writers.write_like(reference(), tmp_path / name, iter(LABELS))
  again = volumes.open_volume(f'{path}:/volumes/labels', palette='index')
  np.testing.assert_array_equal(again[:], LABELS)


def test_maps_of_probability_stand_beside_the_labels(tmp_path):
  path = writers.write_like(
    reference(), tmp_path / 'out.precomputed', iter(LABELS), suffix='_prob_cell'
  )
  assert path.name == 'out_prob_cell.precomputed'
  assert json.loads((path / 'info').read_text())['type'] == 'image'


@pytest.mark.parametrize('extension', FORMATS)
def test_what_fails_on_the_way_leaves_nothing_behind(tmp_path, extension):
  def breaks():
    yield from LABELS[:66]
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    writers.write_like(reference(), tmp_path / f'out{extension}', breaks())
  assert list(tmp_path.iterdir()) == []


def test_a_store_that_holds_something_is_not_written_into(tmp_path):
  path = writers.write_like(reference(), tmp_path / 'out.zarr', iter(LABELS))
  before = sorted(path.rglob('*'))
  with pytest.raises(OutputError, match=r'out\.zarr: is not empty'):
    writers.write_like(reference(), path, iter(LABELS))
  assert sorted(path.rglob('*')) == before


@pytest.mark.parametrize('form', ['zarr', 'zarr3', 'n5', 'precomputed'])
def test_stores_take_boxes_in_any_order_and_are_gone_on_with(tmp_path, form):
  values = np.arange(70 * 80 * 90, dtype=np.uint16).reshape(70, 80, 90)
  boxes = [(64, 64, 64), (0, 0, 0), (64, 0, 0), (0, 64, 64), (0, 0, 64), (0, 64, 0)]
  about = array_writers.About((4.0, 2.0, 2.0), box=(64, 64, 64))
  for some in (boxes[:3], boxes[3:]):  # the second time as after a restart
    writer = array_writers.WRITERS[form](tmp_path / 'store', values.shape, values.dtype, about)
    for z, y, x in some:
      writer.put_box((z, y, x), values[z : z + 64, y : y + 64, x : x + 64])
  address = f'precomputed://{tmp_path}/store' if form == 'precomputed' else tmp_path / 'store'
  found = volumes.open_volume(address)[:]
  expected = np.zeros_like(values)
  for z, y, x in boxes:
    place = (slice(z, z + 64), slice(y, y + 64), slice(x, x + 64))
    expected[place] = values[place]
  np.testing.assert_array_equal(found, expected)


def test_a_shard_is_what_is_written_at_once(tmp_path):
  values = np.arange(70 * 200 * 150, dtype=np.uint16).reshape(70, 200, 150)
  about = array_writers.About(box=(64, 128, 192))  # 192 of 150: as far as there are chunks
  writer = array_writers.WRITERS['zarr3'](tmp_path / 'store', values.shape, values.dtype, about)
  for z in (0, 64):
    for y in (0, 128):
      writer.put_box((z, y, 0), values[z : z + 64, y : y + 128])
  files = [p for p in (tmp_path / 'store' / '0' / 'c').rglob('*') if p.is_file()]
  assert len(files) == 2 * 2
  array = zarr.open_group(tmp_path / 'store', mode='r')['0']  # an independent reader
  assert (array.shards, array.chunks) == ((64, 128, 192), (64, 64, 64))
  np.testing.assert_array_equal(array[:], values)


OFFSET = (2, 3, 5)


@pytest.mark.parametrize('form', ['zarr', 'zarr3', 'n5', 'precomputed', 'hdf5', 'mrc'])
def test_a_part_of_a_volume_says_where_it_lies(tmp_path, form):
  values = np.arange(4 * 6 * 7, dtype=np.uint16).reshape(4, 6, 7)
  about = array_writers.About((4.0, 2.0, 1.0), OFFSET)
  path = tmp_path / 'out'
  writer = array_writers.WRITERS[form](path, values.shape, values.dtype, about)
  writer.put(0, values)
  writer.close()
  if form in ('zarr', 'zarr3'):
    attributes = zarr.open_group(path, mode='r').attrs.asdict()
    scales = attributes.get('ome', attributes)['multiscales'][0]
    scale, translation = scales['datasets'][0]['coordinateTransformations']
    assert scale == {'type': 'scale', 'scale': [4.0, 2.0, 1.0]}
    assert translation == {'type': 'translation', 'translation': [8.0, 6.0, 5.0]}
  elif form == 'n5':
    assert json.loads((path / 'data' / 'attributes.json').read_text())['translate'] == [5, 6, 8]
  elif form == 'precomputed':
    assert json.loads((path / 'info').read_text())['scales'][0]['voxel_offset'] == [5, 3, 2]
    np.testing.assert_array_equal(volumes.open_volume(f'precomputed://{path}')[:], values)
  elif form == 'hdf5':
    with h5py.File(path) as file:
      assert file['data'].attrs['offset'].tolist() == [8, 6, 5]
  else:
    with mrcfile.open(path, permissive=True) as file:
      assert file.nstart.tolist() == (5, 3, 2)


@pytest.mark.parametrize('wished', [2, 3])
@pytest.mark.parametrize('given', ['zarr', 'zarr3'])
def test_the_format_of_zarr_is_that_asked_for(tmp_path, given, wished):
  first = writers.write_like(
    reference(), tmp_path / 'in.zarr', iter(LABELS), zarr_format=3 if given == 'zarr3' else 2
  )
  volume = volumes.open_volume(first)
  path = writers.write_like(volume, tmp_path / 'out.zarr', iter(LABELS), zarr_format=wished)
  assert (path / 'zarr.json').exists() is (wished == 3)
  assert (path / '.zgroup').exists() is (wished == 2)
  np.testing.assert_array_equal(volumes.open_volume(path)[:], LABELS)
  like = writers.write_like(volume, tmp_path / 'like.zarr', iter(LABELS))  # as the input is
  assert (like / 'zarr.json').exists() is (given == 'zarr3')


def test_what_is_not_zarr_does_not_mind_its_format(tmp_path):
  path = writers.write_like(reference(), tmp_path / 'out.n5', iter(LABELS), zarr_format=3)
  np.testing.assert_array_equal(volumes.open_volume(path)[:], LABELS)
