"""What training reads: opened sources, voxel counts, and batches by step."""

import itertools

import numpy as np
import pytest
import support
import tifffile

from emseg_jax import config_io, errors, train_input
from emseg_jax.config import Augment, Config, Data, LossTerm, Sampling, Weighting
from emseg_jax.data import normalise

RAW = normalise.Normalisation('dataset', 1, 0.0, 1.0, 'uint8')


def _config(folder, *overrides: str) -> Config:
  """The tiny configuration on files of 4 sections of 64² with squares of 16 x 48."""
  support.write_pair(folder)
  arguments = [a.removeprefix('--config.') for a in support.pair_arguments(folder)[1:]]
  return config_io.apply_overrides(config_io.load('tiny'), [*arguments, *overrides])


def _set(config: Config, **sections) -> Config:
  return config.model_copy(update=sections)


def test_both_splits_are_opened_with_the_task_of_the_configuration(tmp_path):
  config = _config(tmp_path, 'data.validation.0.slices=1:2')
  splits = train_input.open_splits(config)
  assert {name: len(split) for name, split in splits.items()} == {'train': 4, 'validation': 1}
  assert set(np.unique(splits['train'].label(0))) == {0, 1}  # mapped from 0 and 255


def test_validation_may_be_empty(tmp_path):
  splits = train_input.open_splits(_config(tmp_path, 'data.validation=[]'))
  assert len(splits['validation']) == 0


@pytest.mark.parametrize('name', ['train', 'validation'])
def test_sources_without_labels_are_found_before_training(tmp_path, name):
  config = _config(tmp_path, f'data.{name}.0.labels=null')
  with pytest.raises(errors.DataError, match=rf'data\.{name}: image\[000\] has no label'):
    train_input.open_splits(config)


def test_the_host_reads_more_than_the_patch_where_augmentation_needs_it():
  data = Data(patch=(30, 40))
  options = {'rotate90': False}
  assert train_input.region(Config(data=data, augment=Augment(**options))) == (30, 40)
  # Zooming out by 2 shows twice the extent.
  zoomed = Augment(resize=(0.5, 2.0), **options)
  assert train_input.region(Config(data=data, augment=zoomed)) == (60, 80)


def test_batches_of_a_step_do_not_depend_on_where_reading_began(tmp_path):
  config = _config(tmp_path)  # resize=(0.8, 1.25) and patches of 32²: regions of 40²
  split = train_input.open_splits(config)['train']
  dataset = train_input.training_batches(config, split, RAW)
  from_start = list(itertools.islice(train_input.batches_from(dataset, 0, config.data), 5))
  assert from_start[0]['image'].shape == (4, 40, 40, 1)
  assert from_start[0]['image'].dtype == np.float32
  assert from_start[0]['label'].shape == (4, 40, 40)
  assert [batch['index'].tolist() for batch in from_start[:2]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
  later = next(train_input.batches_from(dataset, 3, config.data))
  for name, value in from_start[3].items():
    np.testing.assert_array_equal(later[name], value)
    np.testing.assert_array_equal(dataset[3][name], value)
  assert not np.array_equal(from_start[3]['image'], from_start[4]['image'])


def test_another_seed_reads_other_places(tmp_path):
  config = _config(tmp_path)
  split = train_input.open_splits(config)['train']
  other = _set(config, train=config.train.model_copy(update={'seed': 1}))
  first, second = (train_input.training_batches(c, split, RAW)[0] for c in (config, other))
  assert not np.array_equal(first['image'], second['image'])


def test_targets_of_the_loss_come_along_and_are_kept_in_the_cache(tmp_path, monkeypatch):
  config = _config(tmp_path / 'data', 'run.target_cache=~/targets')
  monkeypatch.setenv('HOME', str(tmp_path))
  split = train_input.open_splits(config)['train']
  assert 'proximity' not in train_input.training_batches(config, split, RAW)[0]
  assert not (tmp_path / 'targets').exists()
  terms = config.loss.terms | {'mse': LossTerm()}
  config = _set(config, loss=config.loss.model_copy(update={'terms': terms}))
  batch = train_input.training_batches(config, split, RAW)[0]
  assert batch['proximity'].shape == batch['label'].shape
  # Between 0 far from the squares and 1 on their centreline.
  assert 0 <= batch['proximity'].min() < batch['proximity'].max() <= 1
  assert any((tmp_path / 'targets').rglob('*'))
  without = _set(config, run=config.run.model_copy(update={'target_cache': None}))
  again = train_input.training_batches(without, split, RAW)[0]
  np.testing.assert_array_equal(again['proximity'], batch['proximity'])


def test_sampling_options_reach_the_batches(tmp_path):
  # Foreground is 48 of 64 columns in 16 of 64 rows; a patch of 4² that is half of it lies inside.
  config = _config(tmp_path, 'data.patch=(4,4)', 'augment={}')
  split = train_input.open_splits(config)['train']
  chosen = Sampling(kind='foreground', min_foreground=0.5)
  config = _set(config, data=config.data.model_copy(update={'sampling': chosen}))
  label = train_input.training_batches(config, split, RAW)[0]['label']
  assert ((label == 1).mean(axis=(1, 2)) >= 0.5).all()


def _weighted(values) -> dict[str, LossTerm]:
  options = {} if values is None else {'values': values}
  return {'ce': LossTerm(weighting=Weighting(name='class', options=options))}


def test_voxels_are_counted_per_class_where_a_loss_asks_for_it(tmp_path):
  config = _config(tmp_path, 'task.ignore_value=9', 'task.classes=["no","yes","never"]')
  label = tifffile.imread(tmp_path / 'label.tif')
  label[:, :10] = 9  # ten rows of background that do not count
  tifffile.imwrite(tmp_path / 'label.tif', label, photometric='minisblack')
  split = train_input.open_splits(config)['train']
  assert train_input.class_counts(config, split) is None
  config = _set(config, loss=config.loss.model_copy(update={'terms': _weighted(None)}))
  counts = train_input.class_counts(config, split)
  assert counts.dtype == np.float32
  assert counts.tolist() == [4 * (54 * 64 - 16 * 48), 4 * 16 * 48, 0]


def test_given_class_weights_need_no_counting(tmp_path):
  config = _config(tmp_path)
  config = _set(config, loss=config.loss.model_copy(update={'terms': _weighted([1.0, 2.0])}))
  split = train_input.open_splits(config)['train']
  assert train_input.class_counts(config, split) is None
