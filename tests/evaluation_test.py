"""Evaluation: counting over whole images, baselines, and scoring of files made elsewhere."""

import json

import numpy as np
import pytest
import support
import tifffile
from PIL import Image
from volume_support import Stand

from emseg_jax import config as config_lib
from emseg_jax import errors, evaluation, predict
from emseg_jax.data import normalise, pairs

TASK = config_lib.Task(classes=('background', 'square'))
MAPPING = {0: 0, 255: 1}


class BrightIsSquare:
  """Stands in for a network: bright pixels are class 1, with certainty."""

  def __init__(self, threshold: float):
    self.threshold = threshold
    self.config = config_lib.Config(task=TASK)
    self.normalisation = normalise.Normalisation('dataset', 1, 0.0, 1.0, 'uint8')

  def group_probabilities(self, split, group, should_stop=None):
    (index,) = group
    image = split.network_image(index, self.normalisation)
    if should_stop is not None and should_stop():
      raise errors.Interrupted('stopped')
    bright = (image[..., 0] >= self.threshold).astype(np.float32)
    return np.stack([1 - bright, bright], axis=-1)


def _split(folder, **task) -> pairs.Split:
  source = config_lib.Source(images=f'{folder}/image.tif', labels=f'{folder}/label.tif')
  data = config_lib.Data(label_mapping=MAPPING)
  return pairs.open_split([source], task=TASK.model_copy(update=task), data=data)


def test_scores_equal_set_arithmetic_on_the_files(tmp_path):
  support.write_pair(tmp_path, size=(70, 50))
  result = evaluation.evaluate_split(BrightIsSquare(120), _split(tmp_path))
  found = tifffile.imread(tmp_path / 'image.tif') >= 120
  truth = tifffile.imread(tmp_path / 'label.tif') == 255
  iou = [(a & b).sum() / (a | b).sum() for a, b in ((~found, ~truth), (found, truth))]
  np.testing.assert_allclose(result.scores['miou'], np.mean(iou))
  np.testing.assert_allclose(result.scores['accuracy'], (found == truth).mean())
  assert result.confusion.sum() == truth.size
  assert result.confusion[1, 0] == (truth & ~found).sum()  # rows are labels
  assert [image.name for image in result.images] == [f'image[{i:03d}]' for i in range(4)]


def test_the_best_threshold_is_found_and_beats_its_neighbours(tmp_path):
  support.write_pair(tmp_path)
  split = _split(tmp_path)
  best = evaluation.evaluate_split(BrightIsSquare(0), split).baselines['threshold']
  assert (best['below'], best['above']) == ('background', 'square')
  for shift, wins in ((0, False), (-5, True), (5, True)):
    other = evaluation.evaluate_split(BrightIsSquare(best['threshold'] + shift), split)
    assert (best['miou'] > other.scores['miou']) is wins


def test_majority_baseline_is_the_larger_class_share(tmp_path):
  support.write_pair(tmp_path)  # squares cover 1/4 · 3/4 = 3/16 of the image
  majority = evaluation.evaluate_split(BrightIsSquare(0), _split(tmp_path)).baselines['majority']
  assert majority['class'] == 'background'
  assert majority['accuracy'] == 1 - 3 / 16
  assert majority['miou'] == (1 - 3 / 16) / 2


def test_ignored_pixels_are_not_counted(tmp_path):
  support.write_pair(tmp_path)
  label = tifffile.imread(tmp_path / 'label.tif')
  label[:, :10] = 9
  tifffile.imwrite(tmp_path / 'label.tif', label, photometric='minisblack')
  result = evaluation.evaluate_split(BrightIsSquare(120), _split(tmp_path, ignore_value=9))
  assert result.confusion.sum() == 4 * 54 * 64


def test_confidence_and_objects_are_counted_beside_the_scores(tmp_path):
  support.write_pair(tmp_path)  # squares of 16 x 48 = 768 pixels: from 2^9 to 2^10 - 1
  result = evaluation.evaluate_split(BrightIsSquare(120), _split(tmp_path))
  # The stand-in is always certain: the error is the share of wrong pixels, all in the last bin.
  assert result.calibration['count'] == [0] * 14 + [4 * 64 * 64]
  assert result.calibration['ece'] == pytest.approx(1 - result.scores['accuracy'])
  found = {'objects': [4], 'found': [4]}
  assert result.objects == {
    'ndim': 2, 'voxel_size': None, 'octaves': [9], 'per_class': {'square': found},
  }  # fmt: skip
  record = json.loads(json.dumps(result.to_json(step=1, split='test')))
  assert record['calibration'] == result.calibration
  assert record['objects'] == result.objects


def test_objects_of_volumes_are_counted_in_three_dimensions(tmp_path):
  support.write_pair(tmp_path)

  predictor = Stand((4, 32, 32), TASK.classes)
  source = config_lib.Source(
    images=f'{tmp_path}/image.tif', labels=f'{tmp_path}/label.tif',
    reading={'voxel_size': (30, 4, 4)},
  )  # fmt: skip
  data = config_lib.Data(label_mapping=MAPPING)
  split = pairs.open_split([source], task=TASK, data=data)
  result = evaluation.evaluate_split(predictor, split)
  assert result.objects == {
    'ndim': 3,
    'voxel_size': [30, 4, 4],
    'octaves': [11],  # one object of 4 x 768 = 3072 voxels
    'per_class': {'square': {'objects': [1], 'found': [1]}},
  }
  assert sum(result.calibration['count']) == 4 * 64 * 64


def test_details_can_be_left_out(tmp_path):
  support.write_pair(tmp_path)
  result = evaluation.evaluate_split(BrightIsSquare(120), _split(tmp_path), details=False)
  assert result.calibration is result.objects is None


def test_overlapping_classes_have_confidence_and_objects_too(tmp_path):
  mask = np.zeros((2, 16, 16), np.uint8)
  mask[:, 2:6, 2:6] = 1
  mask[:, 5:9, 5:9] |= 2  # they share one pixel
  tifffile.imwrite(tmp_path / 'label.tif', mask, photometric='minisblack')
  tifffile.imwrite(tmp_path / 'image.tif', mask, photometric='minisblack')
  task = config_lib.Task(classes=('mito', 'er'), activation='multilabel')
  source = config_lib.Source(images=f'{tmp_path}/image.tif', labels=f'{tmp_path}/label.tif')
  split = pairs.open_split([source], task=task, data=config_lib.Data())

  class OnlyMito(BrightIsSquare):
    def group_probabilities(self, split, group, should_stop=None):
      mito = (split.image(*group) & 1).astype(np.float32)
      return np.stack([mito, np.full_like(mito, 0.2)], axis=-1)  # never sure of the other

  predictor = OnlyMito(0)
  predictor.config = config_lib.Config(task=task)
  result = evaluation.evaluate_split(predictor, split)
  assert sum(result.calibration['count']) == 2 * 2 * 256
  # Of 256 pixels 16 are of the class that was always ruled out, with a confidence of 0.8.
  assert result.calibration['ece'] == pytest.approx((240 / 256 - 0.8) / 2)
  assert result.objects['per_class'] == {
    'mito': {'objects': [2], 'found': [2]},
    'er': {'objects': [2], 'found': [0]},
  }


def test_an_empty_split_is_an_error():
  split = pairs.open_split([], task=TASK, data=config_lib.Data())
  with pytest.raises(errors.DataError, match='no sections'):
    evaluation.evaluate_split(BrightIsSquare(0), split)


def test_a_stop_request_ends_the_evaluation(tmp_path):
  support.write_pair(tmp_path)
  with pytest.raises(errors.Interrupted):
    evaluation.evaluate_split(BrightIsSquare(0), _split(tmp_path), should_stop=lambda: True)


def test_files_made_elsewhere_are_scored_through_the_command_line(tmp_path, capsys):
  support.write_pair(tmp_path)
  label = tifffile.imread(tmp_path / 'label.tif')
  guess = label.copy()
  guess[:, :16] = 255  # 16 of 64 rows wrong: the squares begin at row 16
  tifffile.imwrite(tmp_path / 'guess.tif', guess, photometric='minisblack')
  code = support.run_main(
    *support.pair_arguments(tmp_path), '--mode=evaluate', f'--input={tmp_path}/guess.tif',
    f'--labels={tmp_path}/label.tif', f'--output={tmp_path}/scores.json',
  )  # fmt: skip
  assert code == 0
  record = json.loads((tmp_path / 'scores.json').read_text())
  assert record['scores']['accuracy'] == 0.75
  assert record['calibration'] is None  # files hold no probabilities
  assert record['objects']['per_class']['square'] == {'objects': [4], 'found': [4]}
  # Squares: 16 rows x 48 columns right, 16 x 64 too many: 768 / 1792.
  assert record['scores']['per_class']['square']['iou'] == pytest.approx(768 / 1792)
  assert 'square' in capsys.readouterr().out


def test_a_prediction_with_a_value_outside_the_mapping_is_named(tmp_path, capsys):
  support.write_pair(tmp_path)
  tifffile.imwrite(
    tmp_path / 'guess.tif', np.full((4, 64, 64), 3, np.uint8), photometric='minisblack'
  )
  code = support.run_main(
    *support.pair_arguments(tmp_path), '--mode=evaluate', f'--input={tmp_path}/guess.tif',
    f'--labels={tmp_path}/label.tif',
  )  # fmt: skip
  assert code == 2
  assert 'guess.tif' in (said := capsys.readouterr().err)
  assert 'label value 3' in said


def test_a_mask_that_no_label_has_is_read_back_as_the_value_that_was_written(tmp_path):
  task = config_lib.Task(classes=('mito', 'er'), activation='multilabel')
  data = config_lib.Data(label_mapping={0: 0, 10: 1, 20: 2})  # none for both at once
  config = config_lib.Config(task=task, data=data)
  values = predict.file_values(config)
  assert values.tolist() == [0, 10, 20, 1]
  label = np.array([[0, 10, 20, 20]], np.uint8)
  for name, array in (('guess', values[[[0, 1, 2, 3]]]), ('label', label)):
    Image.fromarray(array).save(tmp_path / f'{name}.png')
  found = evaluation.score_files(tmp_path / 'guess.png', tmp_path / 'label.png', config=config)
  # Rows are labels: one pixel of `er` was taken for both.
  assert found.confusion.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
  Image.fromarray(np.full((1, 4), 2, np.uint8)).save(tmp_path / 'guess.png')
  with pytest.raises(errors.DataError, match='label value 2'):
    evaluation.score_files(tmp_path / 'guess.png', tmp_path / 'label.png', config=config)
