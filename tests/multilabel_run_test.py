"""Classes that may overlap, the whole way: checked, trained, scored, predicted, reported."""

import json

import numpy as np
import pytest
import support
import tifffile

from emseg_jax import check, train_input
from emseg_jax import config as config_lib
from emseg_jax.check import html
from emseg_jax.data import pairs

CLASSES = ('mito', 'er')
TASK = config_lib.Task(classes=CLASSES, activation='multilabel')
MASKS = ('none', 'mito', 'er', 'mito + er')
VALUES = np.array([0, 10, 20, 30], np.uint8)  # of the masks, in files


def write_data(folder) -> np.ndarray:
  """Two squares that overlap in each of four sections: one is red, the other green."""
  mask = np.zeros((4, 64, 64), np.uint8)
  mask[:, 8:40, 8:40] |= 1
  mask[:, 24:56, 24:56] |= 2
  rng = np.random.default_rng(0)
  colour = np.stack([mask & 1, mask >> 1, 0 * mask], axis=-1)
  image = rng.normal(60 + 100 * colour, 8).clip(0, 255).astype(np.uint8)
  tifffile.imwrite(folder / 'image.tif', image, photometric='rgb')
  tifffile.imwrite(folder / 'label.tif', VALUES[mask], photometric='minisblack')
  return mask


def data_arguments(folder) -> list[str]:
  source = json.dumps([{'images': f'{folder}/image.tif', 'labels': f'{folder}/label.tif'}])
  return [
    '--config=tiny',
    f'--config.task.classes={json.dumps(CLASSES)}',
    '--config.task.activation=multilabel',
    '--config.data.channels=3',
    '--config.data.label_mapping={"0":0,"10":1,"20":2,"30":3}',
    f'--config.data.train={source}',
    f'--config.data.validation={source}',
  ]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('multilabel')
  write_data(folder)
  code = support.run_main(
    *data_arguments(folder), *support.SMALL_NETWORK, f'--workdir={folder}/run',
    '--config.eval.best=iou/er', '--config.train.steps=60', '--config.train.eval_every=60',
    '--config.optim.optimizer=adamw', '--config.optim.learning_rate=0.03',
    '--config.loss.terms={"ce":{"weighting":{"name":"class"}},"dice":{"weight":3}}',
  )  # fmt: skip
  assert code == 0
  return folder


def evaluation(run) -> dict:
  return json.loads((run / 'run' / 'evaluation' / 'validation.json').read_text())


def test_each_class_is_learnt_and_scored(run):
  record = evaluation(run)
  assert record['classes'] == list(MASKS)
  assert np.shape(record['confusion']) == (4, 4)
  # 32² voxels each, 16² of them shared.
  assert np.sum(record['confusion'], axis=1).tolist() == [4 * n for n in (2304, 768, 768, 256)]
  scores = record['scores']
  assert list(scores['per_class']) == list(CLASSES)
  assert all(row['iou'] > 0.8 and row['share'] == 0.25 for row in scores['per_class'].values())
  assert record['confusion'][3][3] > 0.5 * 4 * 256
  assert record['baselines']['majority']['class'] == 'none'
  assert record['baselines']['threshold']['below'] in MASKS
  records = [json.loads(line) for line in (run / 'run' / 'metrics.jsonl').read_text().splitlines()]
  assert {'validation/iou/mito', 'validation/iou/er'} <= set().union(*records)


def test_predictions_are_masks_in_the_values_of_the_labels(run):
  code = support.run_main(
    f'--workdir={run}/run', '--mode=predict', f'--input={run}/image.tif',
    f'--output={run}/result.tif', '--config.predict.probabilities=uint16',
  )  # fmt: skip
  assert code == 0
  result = tifffile.imread(run / 'result.tif')
  assert set(np.unique(result)) == set(VALUES.tolist())
  maps = [tifffile.imread(run / f'result_prob_{name}.tif') / 65535 for name in CLASSES]
  masks = (maps[0] > 0.5) + 2 * (maps[1] > 0.5)
  assert (VALUES[masks] == result).mean() > 0.999  # but for rounding at a half
  assert np.max(maps[0] + maps[1]) > 1.5  # each has a probability of its own
  assert np.min(maps[0] + maps[1]) < 0.5
  # Scored as files they get the scores of the run.
  arguments = ('--mode=evaluate', f'--input={run}/result.tif', f'--labels={run}/label.tif')
  assert support.run_main(f'--workdir={run}/run', *arguments, f'--output={run}/again.json') == 0
  again = json.loads((run / 'again.json').read_text())
  assert again['confusion'] == evaluation(run)['confusion']


def test_the_report_shows_masks_and_classes(run):
  page = (run / 'run' / 'report.html').read_text()
  assert 'mito + er' in page
  for row in evaluation(run)['scores']['per_class'].values():
    assert f'{row["iou"]:.4f}' in page


def test_an_image_without_any_class_is_reported_as_well(run):
  path = run / 'run' / 'evaluation' / 'validation.json'
  before = path.read_text()
  record = json.loads(before)
  record['images'][0]['miou'] = None  # as where nothing is labelled and nothing predicted
  path.write_text(json.dumps(record))
  assert support.run_main(f'--workdir={run}/run', '--mode=report') == 0
  assert 'Mean IoU absent' in (run / 'run' / 'report.html').read_text()
  path.write_text(before)


def test_a_run_of_masks_is_no_run_of_classes(run, caplog, capfd):
  code = support.run_main(
    f'--workdir={run}/run', '--mode=predict', f'--input={run}/image.tif',
    f'--output={run}/other.tif', '--config.task.activation=softmax', '--config.eval.best=miou',
    '--config.data.label_mapping={"0":0,"10":1}',
  )  # fmt: skip
  assert code == 2
  assert 'task.activation' in caplog.text + ''.join(capfd.readouterr())


def test_the_check_counts_each_class(tmp_path):
  mask = write_data(tmp_path)
  source = {'images': f'{tmp_path}/image.tif', 'labels': f'{tmp_path}/label.tif'}
  mapping = {int(v): k for k, v in enumerate(VALUES)}
  data = {'train': [source], 'validation': [], 'label_mapping': mapping, 'patch': (32, 32)}
  config = config_lib.Config.model_validate({'task': TASK.model_dump(), 'data': data})
  report = check.check(config)
  assert report.ok
  shares = {name: ((mask >> k & 1) == 1).mean() for k, name in enumerate(CLASSES)}
  assert report.splits[0].class_shares == pytest.approx(shares)
  assert 'mito + er' in html.render(report, config)
  unmapped = config_lib.Config.model_validate(
    {'task': TASK.model_dump(), 'data': data | {'label_mapping': None}}
  )
  messages = [p.message for p in check.check(unmapped).problems]
  assert any('map each value to a mask' in message for message in messages)


def test_class_counts_are_of_each_class(tmp_path):
  mask = write_data(tmp_path)
  source = config_lib.Source(images=f'{tmp_path}/image.tif', labels=f'{tmp_path}/label.tif')
  data = config_lib.Data(train=(source,), label_mapping={int(v): k for k, v in enumerate(VALUES)})
  config = config_lib.Config(
    task=TASK, data=data, loss={'terms': {'ce': {'weighting': {'name': 'class'}}}}
  )
  split = pairs.open_split(data.train, task=TASK, data=data)
  found = train_input.class_counts(config, split)
  quarter = mask.size // 4
  assert found.tolist() == [[3 * quarter, quarter]] * 2
