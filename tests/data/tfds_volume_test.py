"""Built data sets as volumes: random access that is lazy, shared and picklable; addresses."""

import concurrent.futures
import os
import pickle
import shutil
from pathlib import Path

import datasets_support as support
import numpy as np
import pytest

from emseg_jax import prepare
from emseg_jax.config import Config, Data, Source, Task
from emseg_jax.data import matching, tfds_volume
from emseg_jax.errors import DataError


@pytest.fixture(scope='module')
def isbi2012(tmp_path_factory):
  """The folder of all data sets, and what was written."""
  folder = tmp_path_factory.mktemp('isbi2012')
  written = support.write('isbi2012', folder / 'source')
  prepare.prepare('isbi2012', source=folder / 'source', output=folder / 'out', partial=True)
  return folder / 'out', written


def build(tmp_path, arrays, *, labels=None):
  """A data set 'mine' with the arrays as its only split; opened."""
  for i, array in enumerate(arrays):
    (tmp_path / 'images').mkdir(exist_ok=True)
    support.tifffile.imwrite(tmp_path / 'images' / f'{i:03d}.tif', array, photometric='minisblack')
  source = Source(images=str(tmp_path / 'images'), labels=labels)
  config = Config(task=Task(classes=('a', 'b')), data=Data(train=(source,), validation=()))
  prepare.prepare_sources(config, output=tmp_path / 'mine')
  return tfds_volume.open_dataset(f'tfds://mine?split=train&dir={tmp_path}')


def test_a_split_is_a_volume_with_all_its_properties(isbi2012):
  folder, written = isbi2012
  images, labels = tfds_volume.open_dataset(f'tfds://isbi2012?split=validation&dir={folder}')
  assert (len(images), images.axes, images.channels) == (6, 'ZYX', 1)
  assert images.dtype == labels.dtype == np.uint8
  assert images.section_shape(5) == support.SHAPE
  assert images.voxel_size_zyx == (50.0, 4.0, 4.0)
  assert images.names[:2] == ('train-volume[018]', 'train-volume[019]')
  assert [Path(f).name for f in images.files] == ['isbi2012-validation.array_record-00000-of-00001']
  np.testing.assert_array_equal(images.section(4), written['validation'][0][4])
  assert matching.match(images, labels) == [(i, i) for i in range(6)]


def test_joined_splits_are_one_volume_if_they_are_neighbours(isbi2012):
  folder, written = isbi2012
  images, labels = tfds_volume.open_dataset(f'tfds://isbi2012?split=train+validation&dir={folder}')
  image = np.concatenate([written[s][0] for s in ('train', 'validation')])
  np.testing.assert_array_equal(images[:], image)
  assert len(labels) == 24
  assert images.axes == 'ZYX'
  gap, _ = tfds_volume.open_dataset(f'tfds://isbi2012?split=train+test&dir={folder}')
  np.testing.assert_array_equal(gap[18], written['test'][0][0])
  assert gap.axes == 'NYX'


def test_held_out_slices_leave_single_sections(tmp_path):
  support.write('ctl_synapse', tmp_path)
  prepare.prepare('ctl_synapse', source=tmp_path, output=tmp_path / 'out', partial=True)
  images, _ = tfds_volume.open_dataset(
    f'tfds://ctl_synapse?split=train&dir={tmp_path}/out&label=mts'
  )
  assert images.axes == 'NYX'
  assert images.voxel_size_zyx == (None, 2.255, 2.255)
  with pytest.raises(DataError, match='has several labels, add &label= one of synapse, mts, cent'):
    tfds_volume.open_dataset(f'tfds://ctl_synapse?split=train&dir={tmp_path}/out')


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_sizes_may_differ_and_types_are_kept(dtype, tmp_path):
  rng = np.random.default_rng(0)
  arrays = [rng.normal(100, 20, (5 + i, 9 - i)).astype(dtype) for i in range(4)]
  images, labels = build(tmp_path, arrays)
  assert labels is None
  assert images.dtype == dtype
  for i in (2, 0, 3, 1):
    assert images.section_shape(i) == arrays[i].shape
    np.testing.assert_array_equal(images.section(i), arrays[i])


@pytest.mark.skipif(not os.path.exists('/proc/self/io'), reason='counts the bytes read on Linux')
def test_reading_one_section_does_not_read_the_file(tmp_path):
  arrays = list(support.pixels(64, shape=(256, 256)))  # noise, 64 kB each however compressed
  images, _ = build(tmp_path, arrays)
  images.section(0)  # imports, headers

  def bytes_read():
    return int(Path('/proc/self/io').read_text().split()[1])

  before = bytes_read()
  np.testing.assert_array_equal(images.section(40), arrays[40])
  assert bytes_read() - before < 4 * 256 * 256
  assert sum(os.path.getsize(f) for f in images.files) > 60 * 256 * 256


def test_threads_share_a_volume_and_processes_get_a_copy(isbi2012):
  folder, written = isbi2012
  images, _ = tfds_volume.open_dataset(f'tfds://isbi2012?split=train&dir={folder}')
  expected = written['train'][0]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for i, section in enumerate(pool.map(images.section, list(range(18)) * 20)):
      np.testing.assert_array_equal(section, expected[i % 18])
  copy = pickle.loads(pickle.dumps(images))
  np.testing.assert_array_equal(copy[:], expected)


@pytest.mark.parametrize('damage', ['cut', 'flip', 'remove'])
def test_damaged_files_are_named(damage, tmp_path):
  images, _ = build(tmp_path, list(support.pixels(16, shape=(64, 64))))
  file = Path(images.files[0])
  content = bytearray(file.read_bytes())
  if damage == 'cut':
    file.write_bytes(content[: len(content) // 2])
  elif damage == 'flip':
    content[20_000] ^= 1  # of 16 records of 4 kB at the start of the file
    file.write_bytes(content)
  else:
    file.unlink()
  message = r'mine/1\.0\.0:train/image: section .* cannot be read'
  with pytest.raises(DataError, match=message):
    [images.section(i) for i in range(16)]


@pytest.mark.parametrize(
  ('uri', 'what'),
  [
    ('tfds://isbi2012', 'names no split, add'),
    ('tfds://?split=train', 'is not of the form'),
    ('tfds://a/b/c?split=train', 'is not of the form'),
    ('tfds://isbi2012?split=train&folder=x', r'is not of the form .*\(folder is unknown\)'),
    ('isbi2012?split=train', 'is not of the form'),
  ],
)
def test_addresses_of_another_form_are_refused(uri, what):
  with pytest.raises(DataError, match=what):
    tfds_volume.open_dataset(uri)


def test_what_is_not_there_is_named_with_what_is(isbi2012, tmp_path):
  folder, _ = isbi2012
  with pytest.raises(DataError, match='no split valid, only train, validation, test'):
    tfds_volume.open_dataset(f'tfds://isbi2012?split=valid&dir={folder}')
  with pytest.raises(DataError, match='label= one of label'):
    tfds_volume.open_dataset(f'tfds://isbi2012?split=train&dir={folder}&label=membrane')
  with pytest.raises(DataError, match='holds no data set; make it with --mode=prepare'):
    tfds_volume.open_dataset(f'tfds://snemi3d?split=train&dir={folder}')
  shutil.copytree(folder / 'isbi2012', tmp_path / 'isbi2012' / 'b')
  with pytest.raises(DataError, match=r'several configurations, add .*: tfds://isbi2012/b'):
    tfds_volume.open_dataset(f'tfds://isbi2012?split=train&dir={tmp_path}')
