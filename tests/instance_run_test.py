"""Instances by affinities, the whole way: checked, trained, scored, reported, predicted."""

import csv
import json

import affinity_support
import numpy as np
import pytest
import support
import tifffile
from affinity_support import OFFSETS

import emseg_jax
from emseg_jax import config as config_lib
from emseg_jax import config_io, train_input
from emseg_jax.data import pairs, volumes
from emseg_jax.metrics import affinities as affinity_metrics
from emseg_jax.metrics import segmentation
from emseg_jax.postprocess import affinities

POST = ('--config.postprocess.threshold=0.5', '--config.postprocess.min_voxels=20')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('instances')
  affinity_support.write_cells(folder)
  code = support.run_main(
    *affinity_support.arguments(folder), *support.SMALL_NETWORK, *POST,
    f'--workdir={folder}/run', '--config.eval.best=rand/error', '--config.train.steps=60',
    '--config.train.eval_every=60', '--config.optim.optimizer=adamw',
    '--config.optim.learning_rate=0.03', '--config.loss.terms={"affinity_bce":{},"dice":{}}',
  )  # fmt: skip
  assert code == 0
  return folder


def evaluation(run) -> dict:
  return json.loads((run / 'run' / 'evaluation' / 'validation.json').read_text())


def predict(run, output, *more) -> int:
  return support.run_main(
    f'--workdir={run}/run', '--mode=predict', f'--input={run}/image.tif', f'--output={output}',
    '--config.predict.tile=(32,32)', *more,
  )  # fmt: skip


def test_affinities_and_instances_are_learnt_and_scored(run):
  record = evaluation(run)
  assert record['classes'] == ['apart', 'joined']
  pairs_of_a_section = sum((64 - abs(y)) * (64 - abs(x)) for y, x in OFFSETS)
  assert np.sum(record['confusion']) == 4 * pairs_of_a_section
  extras = record['extras']
  assert list(extras['affinities']['per_class']) == ['y1', 'x1', 'y3', 'x-3']
  assert all(row['miou'] > 0.6 for row in extras['affinities']['per_class'].values())
  # One object: n = 13² voxels in each of 16 cells; pairs of one cell over all pairs, and F.
  one = 16 * 169 * 168 / (16 * 169 * (16 * 169 - 1))
  assert extras['trivial']['one object']['error'] == pytest.approx(1 - 2 * one / (1 + one))
  assert extras['rand']['error'] < 0.4
  assert extras['instances']['0.5']['tp'] == 4 * 16
  assert [row['threshold'] for row in extras['by_threshold']] == sorted(
    row['threshold'] for row in extras['by_threshold']
  )
  assert record['baselines']['majority']['class'] == 'joined'
  records = [json.loads(line) for line in (run / 'run' / 'metrics.jsonl').read_text().splitlines()]
  logged = set().union(*records)
  assert {'train/affinity_bce', 'train/dice', 'validation/rand/error'} <= logged
  assert {'validation/affinities/miou/y3', 'validation/instances/0.5/f1'} <= logged


def test_the_report_shows_instances_and_pictures(run):
  page = (run / 'run' / 'report.html').read_text()
  assert 'Adapted Rand error and variation of information' in page
  assert f'{evaluation(run)["extras"]["rand"]["vi"]:.4f}' in page
  assert 'Affinities by offset' in page
  assert 'Worst images' in page


def test_a_volume_becomes_numbered_objects_with_a_table(run, tmp_path, capsys):
  assert predict(run, tmp_path / 'out.tif') == 0
  found = tifffile.imread(tmp_path / 'out.tif')
  assert (found.dtype, found.shape) == (np.uint32, (4, 64, 64))
  assert set(np.unique(found)) == set(range(4 * 16 + 1))  # a network of sections numbers them all
  rows = list(csv.DictReader((tmp_path / 'out.tif.csv').open()))
  assert [int(row['voxels']) for row in rows] == np.bincount(found.ravel())[1:].tolist()
  assert sorted(p.name for p in tmp_path.iterdir()) == ['out.tif', 'out.tif.csv', 'out.tif.json']
  capsys.readouterr()
  assert predict(run, tmp_path / 'out.tif') == 0
  assert 'is complete, 0 blocks to predict' in capsys.readouterr().err
  # Scored as files they get the scores of the run.
  again = ('--mode=evaluate', f'--input={tmp_path}/out.tif', f'--labels={run}/ids.tif')
  assert support.run_main(f'--workdir={run}/run', *again, f'--output={tmp_path}/again.json') == 0
  extras = json.loads((tmp_path / 'again.json').read_text())['extras']
  expected = evaluation(run)['extras']
  assert extras['rand']['error'] == pytest.approx(expected['rand']['error'], abs=0.01)
  assert extras['instances']['0.5']['tp'] == expected['instances']['0.5']['tp']


def test_maps_are_kept_and_made_into_objects_again_in_blocks(run, tmp_path):
  assert predict(run, tmp_path / 'a.zarr', '--config.predict.probabilities=uint8') == 0
  assert predict(run, tmp_path / 'a.zarr', '--config.predict.probabilities=uint8') == 0
  whole = volumes.open_volume(tmp_path / 'a.zarr', palette='index')[:]
  maps = [volumes.open_volume(tmp_path / f'a_prob_{n}.zarr')[:] for n in ('y1', 'x1', 'y3', 'x-3')]
  by_hand = affinities.segment(
    dict(zip(OFFSETS[:2], maps[:2], strict=True)),
    config_lib.Postprocess(threshold=0.5, min_voxels=20),
  )
  np.testing.assert_array_equal(whole, by_hand)
  again = ('--mode=postprocess', f'--input={tmp_path}/a.zarr', f'--output={tmp_path}/b.zarr')
  assert (
    support.run_main(f'--workdir={run}/run', *again, '--config.postprocess.block=(2,64,64)') == 0
  )
  np.testing.assert_array_equal(volumes.open_volume(tmp_path / 'b.zarr', palette='index')[:], whole)
  other = [*again[:2], f'--output={tmp_path}/c.zarr', '--config.postprocess.min_voxels=100000']
  assert support.run_main(f'--workdir={run}/run', *other) == 0
  assert not volumes.open_volume(tmp_path / 'c.zarr', palette='index')[:].any()


def test_a_finished_store_is_complete(run, tmp_path, capsys):
  assert predict(run, tmp_path / 'out.zarr') == 0
  assert predict(run, tmp_path / 'out.zarr') == 0
  assert 'is complete, 0 blocks to predict' in capsys.readouterr().err


def test_a_folder_of_others_is_refused_before_anything_is_predicted(run, tmp_path, capfd):
  theirs = tmp_path / 'out.zarr' / 'theirs'
  theirs.parent.mkdir()
  theirs.write_text('mine')
  assert predict(run, tmp_path / 'out.zarr') == 2
  assert (
    'out.zarr: is not empty; remove it or choose another output folder' in capfd.readouterr().err
  )
  assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob('*'))] == [
    'out.zarr',
    'out.zarr/theirs',
  ]


def test_images_get_instances_one_by_one(run, tmp_path):
  from PIL import Image

  images = tmp_path / 'images'
  images.mkdir()
  stack = tifffile.imread(run / 'image.tif')
  Image.fromarray(stack[0]).save(images / 'a.png')
  Image.fromarray(stack[1, :40, :50]).save(images / 'b.png')
  assert predict(run, tmp_path / 'out', f'--input={images}') == 0
  found = [np.asarray(Image.open(tmp_path / 'out' / f'{name}.png')) for name in 'ab']
  assert [f.shape for f in found] == [(64, 64), (40, 50)]
  assert set(np.unique(found[0])) == set(range(17))
  assert found[1].max() <= 12
  loaded = emseg_jax.load(run / 'run', tile=(32, 32))
  np.testing.assert_array_equal(loaded.predict(stack[0]), found[0])
  assert loaded.predict(stack[0], probabilities=True).shape == (64, 64, 4)
  assert loaded.labels == ()


def test_an_exported_model_makes_the_same_instances(run, tmp_path):
  export = ('--mode=export', f'--workdir={run}/run', f'--output={tmp_path}/model')
  assert support.run_main(*export) == 0
  record = json.loads((tmp_path / 'model' / 'model.json').read_text())
  assert record['classes'] == ['y1', 'x1', 'y3', 'x-3']
  assert record['labels'] == []
  image = tifffile.imread(run / 'image.tif')[0]
  models = [emseg_jax.load(path, tile=(32, 32)) for path in (tmp_path / 'model', run / 'run')]
  np.testing.assert_array_equal(*(model.predict(image) for model in models))


def test_large_ids_reach_the_device_as_small_ones(run):
  config = config_io.from_json(run / 'run' / 'config.json')
  split = pairs.open_split(config.data.train, task=config.task, data=config.data)
  assert split.label(0).max() > np.iinfo(np.uint16).max
  normalisation = train_input.fit_normalisation(config, split)
  batch = train_input.training_batches(config, split, normalisation)[0]
  assert batch['label'].dtype == np.int32
  assert 1 < batch['label'].max() <= 16
  assert batch['label'].min() == 0


@pytest.mark.parametrize(
  ('more', 'message'),
  [
    (['--config.task.offsets=[[1,0]]'], 'nothing links neighbours along x'),
    (['--config.task.offsets=[[1,0,0],[0,1,0],[0,0,1]]'], 'has 3 axes, data.patch='),
    (['--config.task.offsets=[[1,0],[0,1],[0,99]]'], 'must be shorter than data.patch='),
    (['--config.task.offsets=[[1,0],[0,1],[0,0]]'], 'must not be 0 along all axes'),
    (['--config.task.offsets=[[1,0],[0,1],[0,1]]'], 'must not occur twice'),
    (['--config.task.offsets=[]'], 'need each other'),
    (['--config.eval.metrics=["rand"]'], 'needs classes, which task.activation=affinities'),
    (['--config.data.label_mapping={"0":0}'], 'data.label_mapping: needs classes'),
    (['--config.data.labels.kind=instances'], 'makes classes of instance ids'),
    (['--config.data.sampling.kind=balanced'], 'sampling.kind=balanced: needs classes'),
    (['--config.predict.augment=["flips"]'], 'needs outputs without a direction'),
    (['--config.postprocess.holes=5'], 'postprocess.holes: is not for affinities'),
    (['--config.model.name=segvit', '--config.model.options={}'], 'its classes compete'),
    (['--config.loss.terms={"lovasz":{"weighting":{"name":"class"}}}'], "values='auto' needs"),
    (['--config.loss.terms={"boundary_ce":{}}'], 'needs one class per voxel, affinities has'),
    (['--config.loss.terms={"affinity_bce":{"options":{"offsets":[[1,0]]}}}'], 'task.offsets'),
    (['--mode=prepare', '--output=cells'], 'files hold classes, no instance ids'),
  ],
)
def test_what_affinities_do_not_have_is_refused_in_one_sentence(tmp_path, capfd, more, message):
  affinity_support.write_cells(tmp_path)
  arguments = affinity_support.arguments(tmp_path)
  assert support.run_main(*arguments, f'--workdir={tmp_path}/run', *more) == 2
  assert message in capfd.readouterr().err
  assert not (tmp_path / 'run').exists()


def test_the_check_knows_instance_ids(tmp_path, capsys):
  ids = affinity_support.write_cells(tmp_path)
  check = [*affinity_support.arguments(tmp_path), '--mode=check', '--config.data.validation=[]']
  assert support.run_main(*check, f'--output={tmp_path}/found') == 0
  record = json.loads((tmp_path / 'found' / 'check.json').read_text())
  shares = record['splits'][0]['class_shares']
  assert shares == pytest.approx({'background': np.mean(ids == 0), 'object': np.mean(ids > 0)})
  assert not any('instance' in problem['kind'] for problem in record['problems'])
  assert 'object' in (tmp_path / 'found' / 'check.html').read_text()
  for wrong, said in (
    ((ids > 0).astype(np.uint8), 'which look like classes'),
    (np.zeros_like(ids), 'holds an object'),
    (np.where(ids > 0, -3, 0).astype(np.int32), 'negative ids -3'),
  ):
    tifffile.imwrite(tmp_path / 'ids.tif', wrong, photometric='minisblack')
    capsys.readouterr()
    support.run_main(*check)
    assert said in capsys.readouterr().out


def test_the_labels_of_pictures_are_those_of_the_offsets():
  _, ids = affinity_support.make_cells()
  maps = {offset: affinity_metrics.joined(ids, offset) for offset in OFFSETS}
  shown = affinity_metrics.interior(maps)[0]
  # A voxel of a cell, and not of its edge beside a wall; the image's edge is none.
  inside = (np.arange(64) % 16 >= 4) & (np.arange(64) % 16 <= 14) | (np.arange(64) == 63)
  np.testing.assert_array_equal(shown, np.outer(inside, inside))
  assert len(np.unique(segmentation.parts(ids))) == 17
