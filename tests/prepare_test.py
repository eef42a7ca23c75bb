"""Building from a configuration: what it names, in one piece or not at all; the table."""

import json
import os
import time

import datasets_support as support
import numpy as np
import pytest

from emseg_jax import outcome, prepare
from emseg_jax.config import Config, Data, Phantom, Source, Task
from emseg_jax.data import pairs, tfds_volume
from emseg_jax.data.datasets import sections
from emseg_jax.errors import ConfigError, DataError, Interrupted, OutputError


def of_sources(*, classes=('a', 'b'), mapping=None, ignore=None, **splits):
  data = {'validation': ()} | splits
  return Config(
    task=Task(classes=classes, ignore_value=ignore), data=Data(label_mapping=mapping, **data)
  )


def test_a_configuration_builds_the_data_sets_that_it_names(tmp_path, monkeypatch):
  support.shrink(monkeypatch, 'epfl/lucchi')
  written = support.write('epfl/lucchi', tmp_path / 'files')
  uri = f'tfds://epfl/lucchi?dir={tmp_path}/tfds&split='
  config = of_sources(**{s: (Source(images=f'{uri}{s}'),) for s in ('train', 'validation', 'test')})
  (report,) = prepare.prepare_config(config, source=tmp_path / 'files')
  assert report.folder == tmp_path / 'tfds' / 'epfl' / 'lucchi' / '1.0.0'
  assert sorted(p.name for p in (tmp_path / 'tfds').iterdir()) == ['epfl']
  images, labels = tfds_volume.open_dataset(config.data.test[0].images)
  np.testing.assert_array_equal(images[:], written['test'][0])
  np.testing.assert_array_equal(labels[:], written['test'][1]['label'])


def test_without_a_folder_the_files_are_expected_beside_the_data_set(tmp_path, monkeypatch):
  support.shrink(monkeypatch, 'cardiac')
  support.write('cardiac', tmp_path / 'downloads' / 'cardiac')
  config = of_sources(train=(Source(images=f'tfds://cardiac?split=train&dir={tmp_path}'),))
  (report,) = prepare.prepare_config(config)
  assert report.folder == tmp_path / 'cardiac' / '1.0.0'


def test_one_folder_cannot_be_the_files_of_two_data_sets(tmp_path):
  sources = tuple(Source(images=f'tfds://{n}?split=train') for n in ('isbi2012', 'cardiac'))
  with pytest.raises(ConfigError, match='names 2 data sets, prepare them one by one'):
    prepare.prepare_config(of_sources(train=sources), source=tmp_path)


def test_files_of_a_configuration_become_a_data_set(tmp_path):
  """Folders, a part of a stack, masks, labels of 16 bits, sizes that differ."""
  rng = np.random.default_rng(0)
  truth = {}
  for i, shape in enumerate([(6, 9), (5, 7), (8, 8)]):
    truth[i] = rng.integers(0, 256, shape, np.uint8), rng.integers(0, 700, shape).astype(np.uint16)
    support.write_stack(tmp_path / 'images' / f'im{i}.tif', truth[i][0])
    support.write_stack(tmp_path / 'labels' / f'lab{i}.tif', truth[i][1])
    support.write_folder(tmp_path / 'masks', [np.full(shape, 255, np.uint8)], f'm{i}.png')
  stack = support.write_stack(tmp_path / 'stack.tif', support.pixels(5))
  label = support.write_stack(tmp_path / 'label.tif', support.pixels(5, seed=1).astype(np.uint16))
  mask = support.write_stack(tmp_path / 'mask.tif', support.pixels(5, seed=2, values=(0, 1)))
  at = {k: str(tmp_path / k) for k in ('images', 'labels', 'masks')}
  files = {k: str(tmp_path / f'{k}.tif') for k in ('stack', 'label', 'mask')}
  volume = {'images': files['stack'], 'labels': files['label'], 'mask': files['mask']}
  config = of_sources(
    classes=('x', 'y'),
    mapping={0: 0, 7: 1},
    ignore=9,
    train=(Source(images=at['images'], labels=at['labels'], mask=at['masks']),),
    validation=(Source(**volume, slices='1:4'),),
  )
  (report,) = prepare.prepare_config(config, output=tmp_path / 'sets' / 'mine')
  assert report.folder == tmp_path / 'sets' / 'mine' / '1.0.0'
  uri = f'tfds://mine?dir={tmp_path}/sets&split='
  images, labels = tfds_volume.open_dataset(f'{uri}train')
  for i, (image, lab) in truth.items():
    np.testing.assert_array_equal(images.section(i), image)
    np.testing.assert_array_equal(labels.section(i), lab)
  images, labels = tfds_volume.open_dataset(f'{uri}validation')
  np.testing.assert_array_equal(images[:], stack[1:4])
  np.testing.assert_array_equal(labels[:], label[1:4])
  np.testing.assert_array_equal(
    tfds_volume.open_dataset(f'{uri}validation&label=mask')[1][:], mask[1:4]
  )
  assert (images.axes, labels.dtype) == ('ZYX', np.uint16)
  about = json.loads((report.folder / 'metadata.json').read_text())
  assert (about['label_values'], about['ignore_value']) == ({'0': 0, '7': 1}, 9)


def test_what_cannot_become_one_data_set_is_refused(tmp_path):
  support.write_stack(tmp_path / 'a.tif', support.pixels(2))
  support.write_stack(tmp_path / 'b.tif', support.pixels(2).astype(np.uint16))
  a, b = (str(tmp_path / f'{name}.tif') for name in 'ab')
  cases = [
    ((Source(images=a), Source(images=b)), DataError, r'images are of different types'),
    ((Source(images=a, labels=a), Source(images=a)), DataError, r'some sources have a label and'),
    ((Source(phantom=Phantom()),), ConfigError, r'data\.train: a phantom is made on the fly'),
  ]
  for sources, error, what in cases:
    with pytest.raises(error, match=what):
      prepare.prepare_config(of_sources(train=sources), output=tmp_path / 'out' / 'mine')
  assert not list((tmp_path / 'out').iterdir())
  with pytest.raises(ConfigError, match=r"'_', a letter first"):
    prepare.prepare_config(of_sources(train=(Source(images=a),)), output=tmp_path / 'My-data')
  with pytest.raises(ConfigError, match=r'if --output=FOLDER/NAME is given'):
    prepare.prepare_config(of_sources(train=(Source(images=a),)))


@pytest.mark.parametrize('how', ['asked', 'damaged', 'killed'])
def test_an_interrupted_build_leaves_nothing(how, tmp_path, monkeypatch):
  support.shrink(monkeypatch, 'isbi2012')
  support.write('isbi2012', tmp_path / 'files')
  calls = iter(range(1000))
  options, error = {}, DataError
  if how == 'asked':
    options, error = {'should_stop': lambda: next(calls) > 20}, Interrupted
  else:
    read = sections.Reader.read

    def breaks(self, example):
      if next(calls) > 20:  # in the second split
        raise DataError('damaged') if how == 'damaged' else KeyboardInterrupt
      return read(self, example)

    monkeypatch.setattr(sections.Reader, 'read', breaks)
    error = DataError if how == 'damaged' else KeyboardInterrupt
  with pytest.raises(error):
    prepare.prepare('isbi2012', source=tmp_path / 'files', output=tmp_path / 'out', **options)
  assert next(calls) >= 21
  assert list((tmp_path / 'out').iterdir()) == []


def test_nothing_is_to_be_seen_before_a_data_set_is_whole(tmp_path, monkeypatch):
  support.shrink(monkeypatch, 'rat_liver')
  support.write('rat_liver', tmp_path / 'files')
  seen = []

  def look():
    seen.append([p.name for p in (tmp_path / 'out').iterdir()])
    return False

  prepare.prepare('rat_liver', source=tmp_path / 'files', output=tmp_path / 'out', should_stop=look)
  assert len(seen) == 12
  assert all(len(names) == 1 and names[0].startswith('.preparing-') for names in seen)
  assert [p.name for p in (tmp_path / 'out').iterdir()] == ['rat_liver']


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OutputError, match=r'/file/out: cannot be written: Not a directory'):
    prepare.prepare('isbi2012', source=tmp_path, output=tmp_path / 'file' / 'out')


def test_the_table_has_splits_sizes_and_class_shares(tmp_path, monkeypatch, capsys):
  support.shrink(monkeypatch, 'rat_liver')
  support.write('rat_liver', tmp_path)
  for split, count in (('train', 8), ('validation', 4)):
    label = np.zeros((count, *support.SHAPE), np.uint8)
    label[:, :2] = 1  # 2 of 8 rows
    support.write_folder(tmp_path / split / 'labels', label)
  start = time.monotonic()
  report = prepare.prepare('rat_liver', source=tmp_path, output=tmp_path / 'out')
  assert 0 < report.seconds <= time.monotonic() - start
  header, train, validation, where = prepare.format_report(report).splitlines()
  assert header.split() == ['split', 'examples', 'size', '(y', 'x)', 'MB', 'labels']
  assert train.split()[:5] == ['train', '8', '8', 'x', '12']
  assert train.endswith('label: 0 other 75.0%, 1 nucleus 25.0%')
  assert validation.split()[:2] == ['validation', '4']
  assert where.startswith(f'-> {tmp_path}/out/rat_liver/1.0.0 (')
  file = report.folder / 'rat_liver-train.array_record-00000-of-00001'
  assert report.splits[0].size == os.path.getsize(file)
  assert capsys.readouterr().out == ''  # TFDS is kept quiet
  (train, _) = json.loads(outcome.to_json(report))['splits']
  assert (train['examples'], train['values']['label']['1']) == (8, 8 * 2 * support.SHAPE[1])
  again = prepare.prepare('rat_liver', source=tmp_path, output=tmp_path / 'out')
  assert 'was there' in prepare.format_report(again)


def test_the_table_counts_instances(tmp_path, monkeypatch):
  support.shrink(monkeypatch, 'snemi3d')
  support.write('snemi3d', tmp_path)
  report = prepare.prepare('snemi3d', source=tmp_path, output=tmp_path / 'out')
  values = len(report.splits[1].values['label'])
  assert values > 200
  assert f'label: {values} values' in prepare.format_report(report)


def test_large_splits_are_written_in_shards(tmp_path, monkeypatch):
  monkeypatch.setattr('emseg_jax.data.datasets.builder.SHARD_BYTES', 8 * 12 * 2 * 5)
  support.shrink(monkeypatch, 'isbi2012')
  written = support.write('isbi2012', tmp_path)
  prepare.prepare('isbi2012', source=tmp_path, output=tmp_path / 'out')
  images, _ = tfds_volume.open_dataset(f'tfds://isbi2012?split=train&dir={tmp_path}/out')
  assert len(images.files) == 4  # 18 examples, 5 per shard
  np.testing.assert_array_equal(images[:], written['train'][0])


def test_sections_of_a_built_data_set_work_as_those_of_files(tmp_path):
  """The split that training reads, here put together by hand."""
  support.write('isbi2012', tmp_path)
  prepare.prepare('isbi2012', source=tmp_path, output=tmp_path / 'out', partial=True)
  images, labels = tfds_volume.open_dataset(f'tfds://isbi2012?split=train&dir={tmp_path}/out')
  section = pairs.Section(images.names[3], images, 3, labels, 3)
  assert section.shape == support.SHAPE
  source = Source(
    images=str(tmp_path / 'train-volume.tif'), labels=str(tmp_path / 'train-labels.tif')
  )
  files = pairs.open_source(source)[3]
  assert files.name == section.name
  np.testing.assert_array_equal(
    files.image_volume.section(3), section.image_volume.section(section.image_index)
  )
