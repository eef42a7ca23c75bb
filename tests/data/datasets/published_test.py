"""Every data set from tiny files in its published layout; counts, sizes and files are enforced."""

import json
import subprocess
import sys

import datasets_support as support
import numpy as np
import pytest

from emseg_jax import prepare
from emseg_jax.data import datasets, tfds_volume
from emseg_jax.errors import ConfigError, DataError

KEYS = tuple(support.COUNTS)


def build(key, source, output, **options):
  name, _, variant = key.partition('/')
  return prepare.prepare(name, source=source, output=output, variant=variant or None, **options)


def read(key, output, split, label=None):
  uri = f'tfds://{key}?split={split}&dir={output}' + (f'&label={label}' if label else '')
  return tfds_volume.open_dataset(uri)


def test_every_builder_is_tested():
  built = {
    f'{n}/{v}'.rstrip('/') for n in datasets.BUILDERS for v in support.variant_of(n)[0].VARIANTS
  }
  assert built == set(KEYS)


@pytest.mark.parametrize('key', KEYS)
def test_a_data_set_says_where_it_is_from(key):
  cls, variant = support.variant_of(key)
  published = cls.VARIANTS[variant]
  assert published.homepage.startswith('http')
  assert all((published.description, published.citation, published.licence, published.manual))
  assert set(published.values.values()) == set(range(len(published.classes)))
  assert {s: p.count for s, p in published.splits.items()} == support.COUNTS[key]


@pytest.mark.parametrize('key', KEYS)
def test_a_data_set_is_built_whole_and_reads_as_its_files(key, tmp_path, monkeypatch):
  published = support.shrink(monkeypatch, key)
  written = support.write(key, tmp_path / 'source')
  report = build(key, tmp_path / 'source', tmp_path / 'out')
  assert {s.split: s.examples for s in report.splits} == support.COUNTS[key]
  for split, (image, labels) in written.items():
    for name, label in labels.items():
      images, truth = read(key, tmp_path / 'out', split, label=name)
      assert len(images) == len(truth) == support.COUNTS[key][split]
      np.testing.assert_array_equal(images[:], image)
      np.testing.assert_array_equal(truth[:], label)
      assert truth.dtype == label.dtype
    sizes = published.voxel_size_zyx
    assert images.voxel_size_zyx == (sizes if any(sizes) else None)
    assert len(set(images.names)) == len(images)
  about = json.loads((report.folder / 'metadata.json').read_text())
  assert tuple(about['classes']) == published.classes
  info = json.loads((report.folder / 'dataset_info.json').read_text())
  assert info['fileFormat'] == 'array_record'
  assert info['citation']
  assert info['location']['urls'] == [published.homepage]


@pytest.mark.parametrize(
  ('key', 'split', 'count'), [('rat_liver', 'train', 8), ('isbi2012', 'test', 6)]
)
def test_another_number_of_examples_is_refused(key, split, count, tmp_path, monkeypatch):
  support.shrink(monkeypatch, key)
  source = tmp_path / 'source'
  support.write(key, source)
  if key == 'rat_liver':
    for kind in ('images', 'labels'):
      (source / 'train' / kind / '003.png').unlink()
  else:
    for name in ('train-volume.tif', 'train-labels.tif'):
      support.write_stack(source / name, support.pixels(29, values=(0, 255)))
  with pytest.raises(
    DataError, match=f'{split} of {key} has {count - 1} .* {count} were published'
  ):
    build(key, source, tmp_path / 'out')
  assert list((tmp_path / 'out').iterdir()) == []
  report = build(key, source, tmp_path / 'out', partial=True)
  assert {s.split: s.examples for s in report.splits} == support.COUNTS[key] | {split: count - 1}


def test_another_size_is_refused(tmp_path):
  support.write('rat_liver', tmp_path / 'source')  # of 8 x 12
  with pytest.raises(DataError, match=r'is 8 x 12 \(y x\), but 262 x 400 was published'):
    build('rat_liver', tmp_path / 'source', tmp_path / 'out')


def test_images_that_are_no_multiple_of_the_tiles_are_refused(tmp_path, monkeypatch):
  support.shrink(monkeypatch, 'sem_material')
  support.write('sem_material', tmp_path)
  for kind in ('images', 'labels'):
    support.write_folder(tmp_path / 'test' / kind, np.zeros((26, 16, 10), np.uint8))
  with pytest.raises(DataError, match=r'16 x 10 \(y x\) is not a multiple of the tiles of 4 x 4'):
    build('sem_material', tmp_path, tmp_path / 'out')


def test_tiles_that_were_cut_before_are_taken_as_they_are(tmp_path, monkeypatch):
  support.shrink(monkeypatch, 'sem_material')
  written = support._folders(tmp_path, values=(0, 1, 2), shape=(4, 4), train=3, val=2, test=2)
  build('sem_material', tmp_path, tmp_path / 'out', partial=True)
  images, _ = read('sem_material', tmp_path / 'out', 'train')
  np.testing.assert_array_equal(images[:], written['train'][0])
  assert images.names == ('000', '001', '002')


def test_a_missing_file_is_named_with_all_that_is_expected(tmp_path, monkeypatch):
  support.shrink(monkeypatch, 'cardiac')
  support.write('cardiac', tmp_path)
  (tmp_path / 'val' / 'labels').rename(tmp_path / 'val' / 'masks')
  with pytest.raises(DataError) as caught:
    build('cardiac', tmp_path, tmp_path / 'out')
  message = str(caught.value)
  assert f'{tmp_path}: cardiac lacks files (validation: val/labels).' in message
  for expected in ('train/images', 'train/labels', 'test/labels', 'doi.org', 'ask the authors'):
    assert expected in message
  report = build('cardiac', tmp_path, tmp_path / 'out', partial=True)
  assert [s.split for s in report.splits] == ['train', 'test']


def test_what_is_built_of_a_part_is_not_taken_for_the_whole(tmp_path, monkeypatch):
  support.shrink(monkeypatch, 'rat_liver')
  support.write('rat_liver', tmp_path)
  first = build('rat_liver', tmp_path, tmp_path / 'out', partial=True)
  with pytest.raises(DataError, match=r'was built from a part of the data; remove it'):
    build('rat_liver', tmp_path, tmp_path / 'out')
  again = build('rat_liver', tmp_path, tmp_path / 'out', partial=True)
  assert again.seconds is None
  assert again.splits == first.splits


def test_one_mask_per_class_becomes_one_label(tmp_path, monkeypatch):
  support.shrink(monkeypatch, 'muscle_fm')
  truth = {}
  for folder, split, count in (('train_local', 'train', 10), ('val_local', 'validation', 6)):
    place = tmp_path / 'dataset' / folder
    support.write_folder(
      place / 'images' / 'img', support.pixels(count, shape=(*support.SHAPE, 3)), 'a{}.png'
    )
    truth[split] = support.pixels(count, seed=9, values=(0, 1, 2, 3))
    for k in range(4):
      mask = np.where(truth[split] == k, 255, 0).astype(np.uint8)
      support.write_folder(place / 'masks' / f'msk{k}', mask, 'a{}.png')
  build('muscle_fm', tmp_path, tmp_path / 'out')
  for split, label in truth.items():
    np.testing.assert_array_equal(read('muscle_fm', tmp_path / 'out', split)[1][:], label)


def test_wrong_types_and_colours_are_refused(tmp_path, monkeypatch):
  support.shrink(monkeypatch, 'isbi2012')
  support.write('isbi2012', tmp_path)
  support.write_stack(tmp_path / 'train-volume.tif', support.pixels(30).astype(np.uint16))
  with pytest.raises(
    DataError, match=r'its pixels are uint16, but those of this data set are uint8'
  ):
    build('isbi2012', tmp_path, tmp_path / 'out')
  support.write_stack(tmp_path / 'train-volume.tif', support.pixels(30))
  support.write_stack(tmp_path / 'train-labels.tif', np.full((30, *support.SHAPE), 300, np.uint16))
  with pytest.raises(DataError, match=r'label: value 300 does not fit uint8'):
    build('isbi2012', tmp_path, tmp_path / 'out')
  support.shrink(monkeypatch, 'kasthuripp')
  support.write('kasthuripp', tmp_path)
  colour = support.pixels(85, shape=(*support.SHAPE, 3))
  support.write_folder(tmp_path / 'Kasthuri++' / 'Train_Out', colour, '{}.png')
  with pytest.raises(DataError, match=r'mask0000: label: is in colour, but must be grey'):
    build('kasthuripp', tmp_path, tmp_path / 'out')
  assert list((tmp_path / 'out').iterdir()) == []


def test_a_label_of_another_size_is_named(tmp_path, monkeypatch):
  support.shrink(monkeypatch, 'rat_liver')
  support.write('rat_liver', tmp_path)
  support.write_folder(tmp_path / 'train' / 'labels', np.zeros((8, 8, 11), np.uint8))
  with pytest.raises(
    DataError, match=r'train/labels, 000: is 8 x 11 \(y x\), its image 000 is 8 x'
  ):
    build('rat_liver', tmp_path, tmp_path / 'out')


def test_two_folders_with_the_files_are_refused(tmp_path):
  for name in ('a', 'b'):
    support.write_stack(tmp_path / name / 'train-volume.tif', support.pixels(2))
  with pytest.raises(
    DataError, match=r'has a/train-volume.tif and b/train-volume.tif; give the one'
  ):
    build('isbi2012', tmp_path, tmp_path / 'out')


def test_an_unknown_data_set_is_answered_with_the_nearest():
  with pytest.raises(ConfigError, match=r"'isbi2021' is no published data set.*mean isbi2012\?"):
    datasets.builder_class('isbi2021')


def test_unknown_variants_name_the_known(tmp_path):
  with pytest.raises(ConfigError, match=r"'lucchi3'; allowed: one of lucchi, lucchipp"):
    prepare.prepare('epfl', variant='lucchi3', source=tmp_path, output=tmp_path)
  with pytest.raises(ConfigError, match=r"configuration ''; allowed: one of lucchi, lucchipp"):
    prepare.prepare('epfl', source=tmp_path, output=tmp_path)


def test_building_and_reading_need_no_tensorflow_and_no_jax(tmp_path):
  code = f"""
import sys
sys.path.insert(0, 'tests')
import datasets_support as support
from pathlib import Path
from emseg_jax import prepare
from emseg_jax.data import tfds_volume
assert 'tensorflow_datasets' not in sys.modules
support.write('rat_liver', Path({str(tmp_path)!r}))
prepare.prepare('rat_liver', source=Path({str(tmp_path)!r}), output=Path({str(tmp_path)!r}) / 'out',
                partial=True)
images, labels = tfds_volume.open_dataset('tfds://rat_liver?split=train&dir={tmp_path}/out')
assert images.section(3).shape == labels.section(3).shape == (8, 12)
print(*sys.modules)
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  loaded = {name.partition('.')[0] for name in done.stdout.split()}
  assert 'tensorflow_datasets' in loaded
  assert not loaded & {'tensorflow', 'jax', 'grain', 'apache_beam'}
