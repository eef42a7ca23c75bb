"""Scores of affinities and instances of whole volumes, with predictors that know the answer."""

import types

import affinity_support
import numpy as np
import pytest

from emseg_jax import config as config_lib
from emseg_jax import errors, experiment, instance_evaluation, metrics
from emseg_jax.data import pairs
from emseg_jax.metrics import affinities

OFFSETS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 3, 0))
SHAPE = (3, 40, 36)


def config_of(folder, **sections):
  source = {'images': f'{folder}/image.tif', 'labels': f'{folder}/ids.tif'}
  fields = {
    'task': {'activation': 'affinities', 'offsets': OFFSETS, **sections.pop('task', {})},
    'data': {'train': [source], 'validation': [source], 'patch': (2, 16, 16)},
    'model': {'name': 'unet3d'},
    **sections,
  }
  return config_lib.Config.model_validate(fields)


@pytest.fixture
def cells(tmp_path):
  """A folder with files, and the ids in them: 3 x 3 cells, some cut by the border."""
  return tmp_path, affinity_support.write_cells(tmp_path, shape=SHAPE).astype(np.int64)


class Knows:
  """Says what the given ids say."""

  def __init__(self, config, ids, *, strength=0.9):
    self.config, self._ids, self._strength = config, ids, strength

  def group_probabilities(self, split, group, should_stop):
    del split, should_stop
    assert tuple(group) == tuple(range(len(self._ids)))
    maps = [affinities.joined(self._ids, offset) for offset in OFFSETS]
    return np.where(np.stack(maps, axis=-1), self._strength, 0.1).astype(np.float32)


def evaluate(config, ids, **options):
  split = pairs.open_split(config.data.validation, task=config.task, data=config.data)
  return instance_evaluation.evaluate_split(Knows(config, ids), split, **options)


def test_the_right_affinities_have_full_scores(cells):
  folder, ids = cells
  shown = {}
  result = evaluate(config_of(folder), ids, on_prediction=shown.__setitem__)
  assert result.scores['accuracy'] == 1.0
  assert [image.index for image in result.images] == [0, 1, 2]
  assert result.extras['rand'] == {'error': 0, 'vi': 0, 'vi_split': 0, 'vi_merge': 0}
  # 3 columns and 3 rows of cells, of which the last are cut by the border.
  assert result.extras['instances']['0.75']['tp'] == 9
  assert sorted(shown) == [0, 1, 2]
  task = config_of(folder).task
  np.testing.assert_array_equal(shown[1], instance_evaluation.label_map(ids[1], task))
  text = instance_evaluation.format_evaluation(result)
  assert 'objects at IoU 0.5: 9 of 9 found, 0 false' in text
  assert 'one object' in text


def test_merged_cells_are_one_object_for_the_scores(cells):
  folder, ids = cells
  merged = ids.copy()
  merged[:, :, 16:19] = merged[:, :, 19:22]  # the wall between the first and second columns
  merged[merged == affinity_support.FIRST_ID] = affinity_support.FIRST_ID + 5
  merged[:, 3:16, 16:19] = affinity_support.FIRST_ID + 5
  result = evaluate(config_of(folder), merged)
  assert result.extras['rand']['error'] > 0.1
  assert result.extras['rand']['vi_merge'] > result.extras['rand']['vi_split']
  assert result.extras['instances']['0.75']['tp'] < 9
  assert result.extras['trivial']['one object']['error'] > result.extras['rand']['error']


def test_what_is_ignored_is_in_no_score(cells):
  folder, ids = cells
  first = affinity_support.FIRST_ID
  config = config_of(folder, task={'ignore_value': first})
  wrong = np.where(ids == first, 0, ids)
  result = evaluate(config, wrong)
  assert result.scores['accuracy'] == 1.0
  assert result.extras['rand']['error'] == 0
  assert result.extras['instances']['0.5'] == {
    **result.extras['instances']['0.5'], 'tp': 8, 'fp': 0, 'fn': 0
  }  # fmt: skip


def test_training_scores_instances_only_where_they_decide(cells):
  folder, ids = cells
  plain = {'baselines': False, 'details': False}
  result = evaluate(config_of(folder), ids, **plain)
  assert set(result.extras) == {'affinities'}
  assert result.baselines == {}
  chosen = evaluate(config_of(folder, eval={'best': 'rand/error'}), ids, **plain)
  assert set(chosen.extras) == {'affinities', 'rand', 'instances'}
  assert metrics.flat(chosen.extras)['rand/error'] == 0
  assert metrics.lower_is_better('rand/error')


def test_the_threshold_of_the_configuration_decides(cells):
  folder, ids = cells
  strict = config_of(folder, postprocess={'threshold': 0.95})  # the links are 0.9
  result = evaluate(strict, ids)
  assert result.extras['instances']['0.5']['tp'] == 0
  rows = {row['threshold']: row['error'] for row in result.extras['by_threshold']}
  assert rows[0.8] == 0 < rows[0.95]
  said = instance_evaluation.format_evaluation(result)
  assert 'postprocess.threshold=0.3 would have a Rand error of 0.0000 on these images' in said
  assert instance_evaluation.better_threshold(result.extras)['threshold'] == 0.3
  fitting = evaluate(config_of(folder, postprocess={'threshold': 0.8}), ids)
  assert instance_evaluation.better_threshold(fitting.extras) is None
  assert 'would have' not in instance_evaluation.format_evaluation(fitting)


def test_scores_that_choose_the_checkpoint_are_known(tmp_path):
  for best in ('miou', 'rand/vi', 'instances/0.75/f1', 'affinities/iou_apart/y3'):
    experiment.validate(config_of(tmp_path, eval={'best': best}))
  with pytest.raises(errors.ConfigError, match=r'eval.best.*affinities/miou/z1'):
    experiment.validate(config_of(tmp_path, eval={'best': 'affinities/miou/z7'}))


def test_any_network_has_an_output_per_offset():
  from emseg_jax import models

  for name in sorted(set(models.MODELS) - {'segmenter', 'segvit'}):
    rank = len(models.create_model(name, 2).divisor)
    config = config_lib.Config.model_validate(
      {
        'task': {'activation': 'affinities', 'offsets': [o[-rank:] for o in OFFSETS[3 - rank :]]},
        'data': {'patch': (64,) * rank},
        'model': {'name': name},
      }
    )
    model = experiment.validate_network(config)
    assert model.num_classes == len(config.task.offsets), name


def test_other_tasks_are_scored_as_before(monkeypatch):
  config = config_lib.Config()
  called = types.SimpleNamespace(config=config)
  monkeypatch.setattr(instance_evaluation.evaluation, 'evaluate_split', lambda *a, **k: (a, k))
  given, options = instance_evaluation.evaluate_split(called, 'split', baselines=False)
  assert given == (called, 'split')
  assert options['baselines'] is False
