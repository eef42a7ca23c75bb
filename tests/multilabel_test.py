"""Classes that may overlap: labels are bit masks, each class has a sigmoid of its own.

Two classes a and b make the masks 0 (none), 1 (a), 2 (b) and 3 (both). Expected numbers are
computed by hand beside them.
"""

import itertools
import types
import warnings

import numpy as np
import pytest

from emseg_jax import config as config_lib
from emseg_jax import errors, experiment, fuse, metrics
from emseg_jax.data import labels
from emseg_jax.predict import label_values

CLASSES = ('mito', 'er')
TASK = config_lib.Task(classes=CLASSES, activation='multilabel')
MASKS = ('none', 'mito', 'er', 'mito + er')


def make_config(**sections) -> config_lib.Config:
  return config_lib.Config(task=TASK, **sections)


def test_masks_are_named_in_the_order_of_their_values():
  assert TASK.values == MASKS
  assert TASK.num_logits == 2
  three = config_lib.Task(classes=('a', 'b', 'c'), activation='multilabel')
  assert three.values == ('none', 'a', 'b', 'a + b', 'c', 'a + c', 'b + c', 'a + b + c')
  assert config_lib.Task(classes=CLASSES).values == CLASSES


@pytest.mark.parametrize(
  ('sections', 'message'),
  [
    ({'task': {'classes': tuple('abcdefgh')}}, 'at most 7 classes, got 8'),
    ({'task': {'classes': ('none', 'a')}}, 'may not be named as a mask'),
    ({'task': {'classes': ('a', 'b', 'a + b')}}, 'may not be named as a mask'),
    ({'task': {'classes': CLASSES, 'colours': ('#000000',) * 2}}, '2 colours for 4 masks'),
    ({'data': {'label_mapping': {0: 0, 9: 4}}}, r'maps to \[4\], .* has masks 0 to 3'),
    ({'data': {'labels': {'other': 4}}}, 'labels.other is 4'),
    ({'eval': {'metrics': ('soft',)}}, r"eval.metrics=\['soft'\].*needs an empty list"),
  ],
)
def test_what_masks_do_not_allow_is_refused(sections, message):
  task = {'classes': CLASSES} | sections.pop('task', {}) | {'activation': 'multilabel'}
  with pytest.raises(ValueError, match=message):
    config_lib.Config.model_validate({'task': task, **sections})


def test_seven_classes_leave_255_to_what_is_ignored():
  task = config_lib.Task(classes=tuple('abcdefg'), activation='multilabel', ignore_value=255)
  rules = labels.Rules(task, config_lib.Data())
  raw = np.array([[0, 127, 255]], np.uint8)
  assert rules.apply(raw, name='x').tolist() == [[0, 127, labels.IGNORED]]
  with pytest.raises(errors.DataError, match='label value 128'):
    rules.apply(raw[:, :1] + np.uint8(128), name='x')


def test_values_in_files_may_be_mapped_to_masks():
  rules = labels.Rules(TASK, config_lib.Data(label_mapping={0: 0, 50: 1, 100: 2, 255: 3}))
  assert rules.apply(np.array([[0, 255, 100, 50]]), name='x').tolist() == [[0, 3, 2, 1]]
  with pytest.raises(errors.DataError, match='label value 1 is not in'):
    rules.apply(np.array([[1]]), name='x')


def test_a_score_of_one_class_may_choose_the_checkpoint():
  experiment.validate(make_config(eval={'best': 'iou/er'}))
  with pytest.raises(errors.ConfigError, match='is not one of the scores'):
    experiment.validate(make_config(eval={'best': 'iou/none'}))


@pytest.mark.parametrize('name', ['segmenter', 'segvit'])
def test_networks_whose_classes_compete_are_refused(name):
  with pytest.raises(errors.ConfigError, match=f"'{name}': its classes compete"):
    experiment.validate(make_config(model={'name': name}))


def test_fusing_is_for_one_class_per_voxel():
  network = types.SimpleNamespace(config=make_config())
  with pytest.raises(errors.ConfigError, match='not multilabel'):
    fuse.fuse_files([network], 'in.tif', 'out.tif')


# ---- scores and baselines -----------------------------------------------------------------------

# Rows are labels: none, a, b, both. Of a 14 voxels are labelled, 14 predicted, 5 + 1 + 2 + 4 right;
# of b 10, 9 and 3 + 1 + 0 + 4.
CONFUSION = np.array([[10, 1, 0, 0], [2, 5, 0, 1], [0, 0, 3, 1], [0, 2, 0, 4]])


def test_scores_of_masks_by_hand():
  found = metrics.scores(CONFUSION, CLASSES)
  a = {'iou': 12 / 16, 'dice': 24 / 28, 'precision': 12 / 14, 'recall': 12 / 14, 'share': 14 / 29}
  b = {'iou': 8 / 11, 'dice': 16 / 19, 'precision': 8 / 9, 'recall': 8 / 10, 'share': 10 / 29}
  assert list(found['per_class']) == list(CLASSES)
  assert found['per_class']['mito'] == pytest.approx(a)
  assert found['per_class']['er'] == pytest.approx(b)
  assert found['accuracy'] == pytest.approx(22 / 29)  # voxels where both are right
  assert found['miou'] == pytest.approx((12 / 16 + 8 / 11) / 2)
  assert found['mean_dice'] == pytest.approx((24 / 28 + 16 / 19) / 2)
  micro = {'iou': 20 / 27, 'dice': 40 / 47, 'precision': 20 / 23, 'recall': 20 / 24}
  assert found['micro'] == pytest.approx(micro)
  # s = 29, c = 22, t = (11, 8, 4, 6), p = (12, 8, 3, 6)
  assert found['mcc'] == pytest.approx((22 * 29 - 244) / ((841 - 253) * (841 - 237)) ** 0.5)


def test_the_size_of_the_matrix_says_whether_it_is_of_masks():
  one = metrics.scores(np.array([[6, 1], [1, 2]]), ['a'])  # one class, there or not
  assert one['per_class']['a']['iou'] == 2 / 4
  assert metrics.scores(np.eye(4, dtype=int), 'abcd')['miou'] == 1.0
  absent = metrics.scores(np.diag([3, 2, 0, 0]), CLASSES)
  assert absent['per_class']['er']['iou'] is None
  assert absent['miou'] == 1.0
  for size, names in ((4, 'abc'), (3, 'ab'), (8, 'ab')):
    with pytest.raises(ValueError, match=f'for {len(names)} classes'):
      metrics.scores(np.zeros((size, size), int), names)


def test_intervals_of_masks():
  equal = np.tile(CONFUSION, (3, 1, 1))
  found = metrics.intervals(equal, CLASSES, confidence=0.95, seed=0)
  point = metrics.scores(CONFUSION, CLASSES)
  for name in ('accuracy', 'miou', 'mean_dice'):
    assert found[name] == pytest.approx([point[name]] * 2)
  assert found['per_class']['er']['iou'] == pytest.approx([8 / 11] * 2)
  # An image of nothing has an accuracy but no IoU; the other one has 5 of 10 voxels of a.
  two = np.zeros((2, 4, 4), int)
  two[0, 0, 0], two[1, 1] = 10, (5, 5, 0, 0)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    found = metrics.intervals(two, CLASSES, confidence=0.95, seed=0)
  # No voxel of b, and none predicted. Of a 5 right, 5 missed, none false: Dice 10 / 15.
  mito = {'iou': [0.5] * 2, 'dice': [2 / 3] * 2, 'precision': [1.0] * 2, 'recall': [0.5] * 2}
  assert found['per_class']['er'] == dict.fromkeys(mito)
  assert found['per_class']['mito'] == {name: pytest.approx(low) for name, low in mito.items()}
  assert found['miou'] == [0.5, 0.5]
  assert found['accuracy'] == [0.5, 1.0]


def test_the_best_threshold_of_masks_by_hand():
  # Grey 0, 1, 2. a: all of 0 and 1, so below 2 it has IoU 1. b: 4 voxels at 1, 2 of 8 at 2; below 2
  # it has 4 / (6 + 8 - 4), which is more than above (2 / 12) or everywhere (6 / 16).
  histograms = np.array([[0, 0, 6], [4, 0, 0], [0, 0, 2], [0, 4, 0]])
  found = metrics.best_threshold(histograms, np.arange(4.0), num_classes=2)
  assert (found['threshold'], found['below'], found['above']) == (2.0, 3, 0)
  assert found['miou'] == pytest.approx((1 + 0.4) / 2)
  assert found['accuracy'] == 10 / 16
  without_b = histograms * [[1], [1], [0], [0]]
  found = metrics.best_threshold(without_b, np.arange(4.0), num_classes=2)
  assert (found['below'], found['above'], found['miou']) == (1, 0, 1.0)


def test_no_threshold_and_masks_are_better():
  rng = np.random.default_rng(1)
  edges = np.arange(5.0)
  for _ in range(5):
    histograms = rng.integers(1, 30, (4, 4))
    found = metrics.best_threshold(histograms, edges, num_classes=2)
    tried = []
    for edge, below, above in itertools.product(range(5), range(4), range(4)):
      confusion = np.zeros((4, 4), int)
      confusion[:, below] += histograms[:, :edge].sum(axis=1)
      confusion[:, above] += histograms[:, edge:].sum(axis=1)
      tried.append(metrics.scores(confusion, CLASSES)['miou'])
    assert found['miou'] == pytest.approx(max(tried))
    frequent = metrics.majority(histograms.sum(axis=1), num_classes=2)
    assert frequent['class'] == histograms.sum(axis=1).argmax()
    assert found['miou'] >= frequent['miou'] - 1e-12


def test_probabilities_become_masks():
  p = np.array([[[0.6, 0.4], [0.6, 0.7]], [[0.5, 0.2], [0.1, 0.51]]], np.float32)
  found = label_values(p, TASK)
  assert found.dtype == np.uint8
  assert found.tolist() == [[1, 3], [0, 2]]
  assert label_values(p, config_lib.Task(classes=CLASSES)).tolist() == [[0, 1], [0, 1]]
