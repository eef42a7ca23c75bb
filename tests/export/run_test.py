"""From a trained run to its bundle."""

import json
import shutil

import numpy as np
import pytest
import support

from emseg_jax import bundle as bundle_lib
from emseg_jax import loading, segmenter, workdir
from emseg_jax.data import pairs
from emseg_jax.errors import ConfigError, OutputError
from emseg_jax.export import run as export_lib


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('export')
  support.write_pair(folder)
  code = support.run_main(
    *support.pair_arguments(folder), *support.SMALL_NETWORK, f'--workdir={folder}/run',
    '--config.train.steps=4', '--config.train.eval_every=2', '--config.run.report=false',
    '--config.eval.checkpoint=latest', '--config.optim.ema=0.5',
  )  # fmt: skip
  assert code == 0
  return folder / 'run'


@pytest.fixture(scope='module')
def exported(trained):
  output = trained.parent / 'model'
  config = workdir.read_config(trained)
  return output, export_lib.export_run(config, trained, output, licence='CC0-1.0', title='Squares')


def test_the_bundle_gives_bit_by_bit_what_the_run_gives(trained, exported):
  image = np.random.default_rng(0).integers(0, 256, (3, 50, 70)).astype(np.uint8)
  of_run = segmenter.load(trained).predict(image, probabilities=True)
  of_bundle = segmenter.load(exported[0]).predict(image, probabilities=True)
  assert np.ptp(of_run) > 0.01
  np.testing.assert_array_equal(of_run, of_bundle)


def test_the_sample_is_a_piece_of_a_validation_image_with_what_the_run_gives(trained, exported):
  config = workdir.read_config(trained)
  bundle = bundle_lib.read_bundle(exported[0])
  given, output = bundle.sample
  # The patch, 32 x 32, from the middle of 64 x 64.
  split = pairs.open_split(config.data.validation, task=config.task, data=config.data)
  np.testing.assert_array_equal(given[0, ..., 0], split.image(0)[16:48, 16:48])
  assert bundle.record.sample.source == split.sections[0].name
  predictor = loading.load_predictor(config, trained)
  tile = predictor.normalisation.apply(split.image(0)[16:48, 16:48])
  tiles = np.broadcast_to(tile, (predictor.batch_size, *tile.shape))
  np.testing.assert_allclose(np.asarray(predictor.apply(tiles))[0], output[0], atol=1e-5)


def test_the_record_has_the_scores_of_this_step_and_the_whole_configuration(trained, exported):
  record = json.loads((exported[0] / 'model.json').read_text())
  evaluation = json.loads((trained / 'evaluation' / 'validation.json').read_text())
  assert record['scores']['validation']['scores'] == evaluation['scores']
  assert record['training']['config'] == json.loads((trained / 'config.json').read_text())
  assert (record['title'], record['licence']) == ('Squares', 'CC0-1.0')
  assert [label['file_value'] for label in record['labels']] == [0, 255]
  assert record['training']['step'] == 4
  assert record['forms']['stablehlo']['sizes'] == 'Any number of images of any size.'


def test_scores_of_another_step_are_left_out(trained, caplog, tmp_path):
  shutil.copytree(trained, tmp_path / 'run')
  path = tmp_path / 'run' / 'evaluation' / 'validation.json'
  record = json.loads(path.read_text())
  path.write_text(json.dumps(record | {'step': 2}))
  (path.parent / 'test.json').write_text('{')
  bundle = export_lib.read_run(workdir.read_config(trained), tmp_path / 'run')
  assert bundle.record.scores == {}
  assert 'is of step 2, exported is step 4' in caplog.text
  assert 'test.json: cannot be read' in caplog.text


def test_a_run_whose_data_are_gone_is_exported_with_noise(trained, caplog):
  config = workdir.read_config(trained)
  source = config.data.train[0].model_copy(update={'images': '/nowhere'})
  data = config.data.model_copy(update={'validation': (source,), 'train': (source,)})
  bundle = export_lib.read_run(config.model_copy(update={'data': data}), trained)
  assert bundle.record.sample.source == 'noise'
  assert '/nowhere' in caplog.text
  # Noise like the training images: mean and spread within three standard errors of 1024 draws.
  known = bundle.normalisation
  assert abs(bundle.sample[0].mean() - known.mean) < 3 * known.std / 32
  assert abs(bundle.sample[0].std() / known.std - 1) < 3 / np.sqrt(2 * 1024)


def test_an_output_that_is_there_is_refused_before_anything_is_read(exported, tmp_path):
  config = bundle_lib.read_bundle(exported[0]).config
  with pytest.raises(OutputError, match='exists already'):
    export_lib.export_run(config, tmp_path / 'nowhere', exported[0])


def test_an_ensemble_is_refused(trained, tmp_path):
  config = workdir.read_config(trained)
  options = config.predict.model_copy(update={'ensemble': ('other',)})
  with pytest.raises(ConfigError, match='ensemble'):
    export_lib.export_run(
      config.model_copy(update={'predict': options}), trained, tmp_path / 'model'
    )
