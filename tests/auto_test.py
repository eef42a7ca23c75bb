"""Automatic configuration: which layouts are recognised, and what is concluded from the files."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from emseg_jax import auto, check, config_io
from emseg_jax.config import Config
from emseg_jax.data import volumes, writers
from emseg_jax.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


def label_of(values, size):
  """All values in turn, each in whole columns."""
  return np.broadcast_to(np.resize(np.array(values, np.uint8), size[1]), size).copy()


def folder(path, count=5, *, values=None, size=(40, 48)):
  """A folder of images, or of labels with these values."""
  path.mkdir(parents=True)
  for number in range(count):
    array = RNG.integers(0, 256, size, dtype=np.uint8) if not values else label_of(values, size)
    Image.fromarray(array).save(path / f'{number}.png')


def stack(path, count=5, *, values=None, size=(40, 48), dtype=np.uint8):
  path.parent.mkdir(parents=True, exist_ok=True)
  array = RNG.integers(0, 256, (count, *size)) if not values else [label_of(values, size)] * count
  tifffile.imwrite(path, np.asarray(array, dtype), photometric='minisblack')


def sources(config, root):
  """Split -> (images, labels, slices) with paths relative to root."""
  found = {}
  for split in ('train', 'validation', 'test'):
    for s in getattr(config.data, split):
      found[split] = (
        s.images.removeprefix(f'{root}/'),
        s.labels.removeprefix(f'{root}/'),
        s.slices,
      )
  return found


def test_images_and_labels_are_split_by_slices(tmp_path):
  folder(tmp_path / 'images', 11)
  folder(tmp_path / 'labels', 11, values=[0, 1])
  assert sources(auto.suggest(tmp_path), tmp_path) == {
    'train': ('images', 'labels', ':9'),  # 20 % of 11 are 2.2: the last 2 validate
    'validation': ('images', 'labels', '9:'),
  }


@pytest.mark.parametrize(
  'names', [('raw.zarr', 'labels.h5'), ('em.n5', 'seg.mrc'), ('raw.nii', 'gt.tif')]
)
def test_volumes_of_any_format_are_found_by_their_names(tmp_path, names):
  image = RNG.integers(0, 256, (6, 40, 48), dtype=np.uint8)
  label = np.stack([label_of([0, 1], (40, 48))] * 6)
  for name, array in zip(names, (image, label), strict=True):
    writers.write_like(volumes.ArrayVolume(array), tmp_path / name, iter(array))
  assert sources(auto.suggest(tmp_path), tmp_path) == {
    'train': (*names, ':5'),
    'validation': (*names, '5:'),
  }


@pytest.mark.parametrize('validation', ['val', 'valid', 'Validation'])
def test_folders_of_splits_are_recognised(tmp_path, validation):
  for split in ('training', validation, 'test'):
    folder(tmp_path / split / 'imgs')
    folder(tmp_path / split / 'masks', values=[0, 1])
  assert sources(auto.suggest(str(tmp_path)), tmp_path) == {
    'train': ('training/imgs', 'training/masks', None),
    'validation': (f'{validation}/imgs', f'{validation}/masks', None),
    'test': ('test/imgs', 'test/masks', None),
  }


def test_splits_inside_the_kinds_are_recognised(tmp_path):
  for split in ('train', 'val'):
    folder(tmp_path / 'raw' / split)
    folder(tmp_path / 'ground_truth' / split, values=[0, 1])
  assert sources(auto.suggest(tmp_path), tmp_path) == {
    'train': ('raw/train', 'ground_truth/train', None),
    'validation': ('raw/val', 'ground_truth/val', None),
  }


@pytest.mark.parametrize(
  ('images', 'labels'),
  [
    ('train-volume.tif', 'train-labels.tif'),
    ('image.tif', 'labels.tif'),
    ('raw.tiff', 'gt.tiff'),
    ('EM_01.tif', 'EM_01.Seg.tif'),
    ('x.tif', 'y.tif'),
    ('images/stack.tif', 'annotations/stack.tif'),
  ],
)
def test_two_stacks_are_recognised_by_their_names(tmp_path, images, labels):
  stack(tmp_path / images)
  stack(tmp_path / labels, values=[0, 1])
  stack(tmp_path / 'unlabelled-volume.tif')
  (tmp_path / 'notes.txt').write_text('image and labels')
  assert sources(auto.suggest(tmp_path), tmp_path) == {
    'train': (images, labels, ':4'),
    'validation': (images, labels, '4:'),
  }


def test_stacks_with_splits_in_their_names_are_recognised(tmp_path):
  for split in ('train', 'test'):
    stack(tmp_path / f'{split}-image.tif')
    stack(tmp_path / f'{split}-gt.tif', values=[0, 1])
  config = auto.suggest(tmp_path)
  assert sources(config, tmp_path)['test'] == ('test-image.tif', 'test-gt.tif', None)
  assert config.data.normalisation == 'per_volume'  # two stacks


def test_several_kinds_of_labels_are_listed_not_guessed(tmp_path):
  folder(tmp_path / 'images')
  folder(tmp_path / 'labels', values=[0, 1])
  folder(tmp_path / 'masks', values=[0, 1])
  with pytest.raises(
    ConfigError, match=r'labels, .*masks could all be the labels of train'
  ) as info:
    auto.suggest(tmp_path)
  written = str(info.value).partition('write ')[2].partition(' to my.json')[0]
  (tmp_path / 'my.json').write_text(written)
  config = config_io.from_json(tmp_path / 'my.json')  # what the message says works
  assert config.data.train[0].images == str(tmp_path / 'images')


def test_folders_without_a_telling_name_are_left_out_and_mentioned(tmp_path):
  folder(tmp_path / 'images')
  folder(tmp_path / 'labels', values=[0, 1])
  folder(tmp_path / 'synapses', values=[0, 1])
  config = auto.suggest(tmp_path)
  assert sources(config, tmp_path)['train'][:2] == ('images', 'labels')
  assert f'Not used: {tmp_path}/synapses.' in auto.explain(config)


def test_missing_labels_are_explained_with_what_is_there(tmp_path):
  folder(tmp_path / 'images')
  folder(tmp_path / 'synapses', values=[0, 1])
  with pytest.raises(
    ConfigError, match=r'finds no labels for training.* there are images, synapses'
  ):
    auto.suggest(tmp_path)


@pytest.mark.parametrize('name', ['', 'missing'])
def test_folder_without_images_is_refused(tmp_path, name):
  with pytest.raises(ConfigError, match='is not a folder' if name else 'finds no images'):
    auto.suggest(tmp_path / name)


def test_single_section_is_refused(tmp_path):
  folder(tmp_path / 'images', 1)
  folder(tmp_path / 'labels', 1, values=[0, 1])
  with pytest.raises(ConfigError, match='two are needed'):
    auto.suggest(tmp_path)


@pytest.mark.parametrize(
  ('values', 'classes', 'mapping'),
  [
    ([0, 1], ('background', 'foreground'), None),
    ([0, 255], ('background', 'foreground'), {0: 0, 255: 1}),
    ([0, 1, 2], ('class_0', 'class_1', 'class_2'), None),
    ([255, 7, 9], ('class_7', 'class_9', 'class_255'), {7: 0, 9: 1, 255: 2}),
  ],
)
def test_label_values_become_classes_in_rising_order(tmp_path, values, classes, mapping):
  folder(tmp_path / 'images')
  folder(tmp_path / 'labels', values=values)
  config = auto.suggest(tmp_path)
  assert config.task.classes == classes
  assert config.data.label_mapping == mapping
  assert check.check(config).ok


def test_values_of_every_split_count(tmp_path):
  for split, values in (('train', [0, 1]), ('val', [0, 1]), ('test', [0, 1, 2])):
    folder(tmp_path / split / 'images')
    folder(tmp_path / split / 'labels', values=values)
  assert len(auto.suggest(tmp_path).task.classes) == 3


def test_too_many_values_are_no_classes(tmp_path):
  folder(tmp_path / 'images')
  folder(tmp_path / 'labels', values=list(range(33)))
  with pytest.raises(
    ConfigError, match=r'33 label values from 0 to 32.*instance ids or an anti-al'
  ):
    auto.suggest(tmp_path)


def test_one_value_is_no_task(tmp_path):
  folder(tmp_path / 'images')
  folder(tmp_path / 'labels', values=[0])
  with pytest.raises(ConfigError, match='all labels are 0'):
    auto.suggest(tmp_path)


@pytest.mark.parametrize(
  ('size', 'patch'), [((40, 48), 64), ((255, 300), 64), ((256, 300), 128), ((600, 512), 128)]
)
def test_patch_is_at_most_half_the_smaller_side(tmp_path, size, patch):
  stack(tmp_path / 'image.tif', 2, size=size)
  stack(tmp_path / 'labels.tif', 2, values=[0, 1], size=size)
  assert auto.suggest(tmp_path).data.patch == (patch, patch)


def test_normalisation_follows_the_files(tmp_path):
  folder(tmp_path / 'train/images')
  folder(tmp_path / 'train/labels', values=[0, 1])
  assert auto.suggest(tmp_path).data.normalisation == 'dataset'
  stack(tmp_path / 'val/image.tif', dtype=np.uint16)
  stack(tmp_path / 'val/labels.tif', values=[0, 1])
  assert auto.suggest(tmp_path).data.normalisation == 'per_volume'  # uint8 and uint16


def test_broken_files_are_left_to_the_doctor(tmp_path):
  folder(tmp_path / 'images')
  folder(tmp_path / 'labels', values=[0, 1])
  (tmp_path / 'images/1.png').write_bytes(b'')
  (tmp_path / 'labels/2.png').write_bytes((tmp_path / 'labels/2.png').read_bytes()[:50])
  report = check.check(auto.suggest(tmp_path))
  assert any('images/1.png' in p.message for p in report.problems)
  assert any('labels/2.png' in p.message for p in report.problems)


def test_nothing_readable_is_a_data_error(tmp_path):
  folder(tmp_path / 'images', 2)
  folder(tmp_path / 'labels', 2, values=[0, 1])
  for file in (tmp_path / 'images').iterdir():
    file.write_bytes(b'')
  with pytest.raises(DataError, match=r'0\.png'):
    auto.suggest(tmp_path)


def test_explanation_ends_in_a_configuration(tmp_path):
  folder(tmp_path / 'images')
  folder(tmp_path / 'labels', values=[0, 1, 255])
  config = auto.suggest(tmp_path)
  text = auto.explain(config)
  assert f'train: 4 sections of {tmp_path}/images' in text
  assert f'validation: 1 section of {tmp_path}/images' in text
  assert '255 is class_255' in text
  assert 'task.ignore_value=255' in text
  shown = text[text.index('{') :]
  assert 'keep' not in json.loads(shown)['train']  # defaults are not shown
  (tmp_path / 'my.json').write_text(shown)
  assert config_io.from_json(tmp_path / 'my.json') == config


def test_explanation_takes_configurations_of_other_origin():
  assert auto.explain(Config()).startswith('train: 16 synthetic sections.')  # Data's default
  gone = config_io.apply_overrides(Config(), ['data.validation.0={"images": "/gone/a.tif"}'])
  assert 'validation: 0 sections of /gone/a.tif' in auto.explain(gone)


def test_command_line_name_is_auto(tmp_path):
  folder(tmp_path / 'images')
  folder(tmp_path / 'labels', values=[0, 1])
  assert config_io.load(f'auto:{tmp_path}') == auto.suggest(tmp_path)
  with pytest.raises(ConfigError, match='needs a folder'):
    config_io.load('auto')
