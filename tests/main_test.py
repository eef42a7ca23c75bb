"""The whole way through the command line: train, evaluate, predict, score, report."""

import contextlib
import io
import json

import numpy as np
import pytest
import support
import tifffile
from PIL import Image

import emseg_jax
from emseg_jax import config_io, modes

FOR_SCRIPTS = ('--quiet', '--json')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A short run on small files; bright squares are easy, so the scores mean something."""
  folder = tmp_path_factory.mktemp('main')
  support.write_pair(folder, sections=6)
  stdout, stderr = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
    code = support.run_main(
      *support.pair_arguments(folder), f'--workdir={folder}/run', '--config.train.steps=60',
      '--config.train.eval_every=30', '--config.train.checkpoint_every=30', *FOR_SCRIPTS,
    )  # fmt: skip
  assert (code, stderr.getvalue()) == (0, '')
  (folder / 'stdout.json').write_text(stdout.getvalue())
  return folder


def answer(capfd, *arguments):
  """The document that a command prints for scripts, which is all that it prints."""
  capfd.readouterr()
  assert support.run_main(*arguments, *FOR_SCRIPTS) == 0
  said = capfd.readouterr()
  assert said.err == ''
  return json.loads(said.out)


def test_training_tells_scripts_where_it_ended_and_the_log_has_what_was_not_said(run):
  said = json.loads((run / 'stdout.json').read_text())
  record = json.loads((run / 'run' / 'evaluation' / 'validation.json').read_text())
  assert (said['step'], said['workdir']) == (60, f'{run}/run')
  assert said['scores'] == {'validation': record['scores']}
  assert 'step 60/60' in (run / 'run' / 'log.txt').read_text()


def test_training_leaves_everything_a_run_consists_of(run):
  names = {path.name for path in (run / 'run').iterdir()}
  assert names >= {
    'config.json', 'checkpoints', 'metrics.jsonl', 'tensorboard', 'evaluation', 'report.html',
    'log.txt',
  }  # fmt: skip
  records = [json.loads(line) for line in (run / 'run' / 'metrics.jsonl').read_text().splitlines()]
  assert [r['step'] for r in records if 'validation/miou' in r] == [30, 60]
  assert [r['step'] for r in records if 'train/loss' in r] == list(range(5, 61, 5))
  assert not list((run / 'run').rglob('*.tmp'))


def test_the_network_learns_what_a_threshold_cannot_miss(run):
  record = json.loads((run / 'run' / 'evaluation' / 'validation.json').read_text())
  assert record['scores']['miou'] > 0.9
  assert record['baselines']['majority']['miou'] < 0.5
  assert record['voxels'] == 6 * 64 * 64


def test_evaluation_again_gives_the_same_numbers_and_a_new_report(run, capfd):
  path, report = run / 'run' / 'evaluation' / 'validation.json', run / 'run' / 'report.html'
  before = json.loads(path.read_text())
  report.unlink()
  found = answer(capfd, f'--workdir={run}/run', '--mode=evaluate')
  assert found == json.loads(path.read_text())
  assert found['confusion'] == before['confusion']
  assert report.is_file()


def test_a_stack_comes_back_as_a_stack_with_the_training_labels_values(run, capfd):
  written = answer(
    capfd, f'--workdir={run}/run', '--mode=predict', f'--input={run}/image.tif',
    f'--output={run}/out/result.tif', '--config.predict.probabilities=uint16',
  )['written']  # fmt: skip
  assert written[0] == f'{run}/out/result.tif'
  assert len(written) == 3
  result, truth = (tifffile.imread(run / name) for name in ('out/result.tif', 'label.tif'))
  assert result.shape == truth.shape
  assert set(np.unique(result)) <= {0, 255}
  assert (result == truth).mean() > 0.95
  maps = [tifffile.imread(run / f'out/result_prob_{c}.tif') for c in ('background', 'square')]
  assert maps[0].dtype == np.uint16
  total = maps[0].astype(int) + maps[1]
  assert np.abs(total - 65535).max() <= 1  # probabilities add up to one
  assert ((maps[1] > maps[0]) == (result == 255)).mean() > 0.999
  record = json.loads((run / 'run' / 'evaluation' / 'validation.json').read_text())
  # Prediction and evaluation share tiles and blending: the same pixels are right.
  assert (result == truth).mean() == pytest.approx(record['scores']['accuracy'])


def test_a_folder_of_images_comes_back_as_a_folder_and_an_image_as_an_image(run):
  folder = run / 'pictures'
  folder.mkdir()
  stack = tifffile.imread(run / 'image.tif')
  Image.fromarray(stack[0]).save(folder / 'a.png')
  Image.fromarray(stack[1][:50, :37]).save(folder / 'b.png')  # another size
  arguments = [f'--workdir={run}/run', '--mode=predict']
  assert support.run_main(*arguments, f'--input={folder}', f'--output={run}/labels') == 0
  assert sorted(p.name for p in (run / 'labels').iterdir()) == ['a.png', 'b.png']
  assert Image.open(run / 'labels' / 'b.png').size == (37, 50)
  code = support.run_main(*arguments, f'--input={folder}/b.png', f'--output={run}/single.png')
  assert code == 0
  np.testing.assert_array_equal(
    np.asarray(Image.open(run / 'single.png')), np.asarray(Image.open(run / 'labels' / 'b.png'))
  )


def test_predictions_are_scored_like_any_segmentation(run):
  arguments = [f'--workdir={run}/run', '--mode=evaluate', f'--labels={run}/label.tif']
  assert support.run_main(f'--workdir={run}/run', '--mode=predict', f'--input={run}/image.tif',
                          f'--output={run}/again.tif') == 0  # fmt: skip
  output = run / 'again.json'
  assert support.run_main(*arguments, f'--input={run}/again.tif', f'--output={output}') == 0
  external = json.loads(output.read_text())
  own = json.loads((run / 'run' / 'evaluation' / 'validation.json').read_text())
  assert external['confusion'] == own['confusion']


def test_the_stored_configuration_reloads_and_is_complete(run):
  path = run / 'run' / 'config.json'
  config = config_io.from_json(path)
  assert config_io.to_json(config) == path.read_text()
  assert config.train.steps == 60


def test_the_report_is_written_again_on_request(run, capfd):
  report = run / 'run' / 'report.html'
  report.unlink()
  found = answer(capfd, f'--workdir={run}/run', '--mode=report')
  assert found == {'written': str(report)}
  assert 'square' in report.read_text()


def test_a_comparison_shows_what_evaluation_and_training_wrote(run, capsys):
  capsys.readouterr()
  assert support.run_main('--mode=compare', f'{run}/run', f'--output={run}/comparison') == 0
  (row,) = capsys.readouterr().out.strip().splitlines()[2:]
  cells = [cell.strip() for cell in row.split('|')[1:-1]]
  record = json.loads((run / 'run' / 'evaluation' / 'validation.json').read_text())
  assert cells[1] == 'unet'
  assert cells[4:6] == ['validation', '1']
  assert cells[6:8] == [f'{record["scores"][name]:.4f}' for name in ('miou', 'accuracy')]
  rates = [
    json.loads(line).get('perf/images_per_sec')
    for line in (run / 'run' / 'metrics.jsonl').read_text().splitlines()
  ]
  assert float(cells[12]) == pytest.approx(np.median([r for r in rates if r]), rel=0.01)
  written = {path.name for path in (run / 'comparison').iterdir()}
  assert written == {
    'comparison.md', 'comparison.html', 'parameters.svg', 'validation_miou.svg', 'train_loss.svg',
  }  # fmt: skip


def test_help_names_modes_configurations_and_networks(capsys):
  assert support.run_main('--help') == 0
  said = capsys.readouterr().out
  for word in (*modes.MODES, 'phantom', 'pmcanet', 'unet'):
    assert word in said
  assert max(len(line) for line in said.splitlines()) <= 110


def test_help_lists_every_field_of_the_configuration(capsys):
  assert support.run_main('--helpfull') == 0
  said = capsys.readouterr().out
  for field in ('config.optim.learning_rate', 'config.data.patch', 'config.predict.overlap'):
    assert f'--{field}=' in said


def test_the_entry_point_returns_the_exit_code():
  process = support.start_main('--config=tiny', '--workdir=x', '--config.train.steps=0')
  output = process.communicate(timeout=60)[0]
  assert process.returncode == 2
  assert output.strip().splitlines() == [
    'ConfigError: config.train.steps = 0: should be greater than 0'
  ]


def test_sections_with_their_neighbours_train_score_and_predict(tmp_path):
  support.write_pair(tmp_path, sections=6)
  run, small = f'--workdir={tmp_path}/run', support.SMALL_NETWORK
  arguments = [*support.pair_arguments(tmp_path), run, *small, '--config.data.neighbours=1']
  quick = ['--config.train.steps=2', '--config.run.report=false', '--config.run.tensorboard=false']
  assert support.run_main(*arguments, *quick) == 0
  record = json.loads((tmp_path / 'run' / 'evaluation' / 'validation.json').read_text())
  assert record['voxels'] == 6 * 64 * 64
  predict = ['--mode=predict', f'--output={tmp_path}/out.tif']
  assert support.run_main(run, *predict, f'--input={tmp_path}/image.tif') == 0
  assert tifffile.imread(tmp_path / 'out.tif').shape == (6, 64, 64)
  # A network that sees three sections has no use for a single one, nor for others' parameters.
  tifffile.imwrite(tmp_path / 'one.tif', tifffile.imread(tmp_path / 'image.tif')[0])
  assert support.run_main(run, *predict, f'--input={tmp_path}/one.tif') == 2
  assert support.run_main(run, '--mode=evaluate', '--config.data.neighbours=0') == 2


def test_another_voxel_size_is_refused_or_resampled_and_comes_back(run, tmp_path):
  image = tifffile.imread(run / 'image.tif')
  sizes = {'metadata': {'axes': 'ZYX', 'unit': 'nm'}, 'imagej': True}
  support.write_pair(tmp_path, sections=6)
  tifffile.imwrite(tmp_path / 'image.tif', image, resolution=(1 / 4, 1 / 4), **sizes)  # 4 nm
  fine = image.repeat(2, 1).repeat(2, 2)
  tifffile.imwrite(tmp_path / 'fine.tif', fine, resolution=(1 / 2, 1 / 2), **sizes)
  quick = ['--config.run.report=false', '--config.run.tensorboard=false', *support.SMALL_NETWORK]
  arguments = [*support.pair_arguments(tmp_path), *quick, '--config.train.steps=2']
  for name, *more in (('as_is',), ('sized', '--config.data.voxel_size=[null,4,4]')):
    folder = f'--workdir={tmp_path}/{name}'
    assert support.run_main(*arguments, folder, *more) == 0
    predict = [folder, '--mode=predict', f'--input={tmp_path}/fine.tif']
    code = support.run_main(*predict, f'--output={tmp_path}/{name}.tif')
    assert code == (0 if more else 2)
    # What a file says may be overruled.
    wrong = '--config.predict.reading.voxel_size=[50,4,4]'
    assert support.run_main(*predict, f'--output={tmp_path}/{name}_4.tif', wrong) == 0
  coarse = f'--output={tmp_path}/coarse.tif'
  assert support.run_main(folder, '--mode=predict', f'--input={tmp_path}/image.tif', coarse) == 0
  expected = tifffile.imread(tmp_path / 'coarse.tif').repeat(2, 1).repeat(2, 2)
  found = tifffile.imread(tmp_path / 'sized.tif')
  assert found.shape == fine.shape
  assert (found == expected).mean() > 0.95  # interpolation softens the edges a little


def test_what_is_predicted_of_one_structure_among_many_can_be_scored(tmp_path):
  support.write_pair(tmp_path, sections=6)
  label = tifffile.imread(tmp_path / 'label.tif')
  ids = np.where(label > 0, 7, np.where(np.arange(64) < 9, 0, 300)).astype(np.uint16)
  tifffile.imwrite(tmp_path / 'label.tif', ids, photometric='minisblack')
  one = ['--config.data.label_mapping={"7":0,"0":0}', '--config.data.labels.other=1']
  quick = ['--config.run.report=false', '--config.run.tensorboard=false', *support.SMALL_NETWORK]
  run = f'--workdir={tmp_path}/run'
  arguments = [*support.pair_arguments(tmp_path), *one, *quick, '--config.train.steps=2']
  assert support.run_main(*arguments, run) == 0
  out = tmp_path / 'out.tif'
  code = support.run_main(run, '--mode=predict', f'--input={tmp_path}/image.tif', f'--output={out}')
  assert code == 0
  # Of the class that no value is named for, the smallest value that means nothing else.
  assert set(np.unique(tifffile.imread(out))) <= {0, 1}
  score = [run, '--mode=evaluate', f'--input={out}', f'--labels={tmp_path}/label.tif']
  assert support.run_main(*score, f'--output={tmp_path}/score.json') == 0
  record = json.loads((tmp_path / 'run' / 'evaluation' / 'validation.json').read_text())
  again = json.loads((tmp_path / 'score.json').read_text())
  assert again['confusion'] == record['confusion']


def test_ctrl_c_where_nothing_is_saved_ends_with_a_sentence(monkeypatch, capfd):
  def interrupted(call):
    assert call.stop is None  # no handler that would wait for the end of a step
    raise KeyboardInterrupt

  monkeypatch.setattr(modes, 'MODES', {**modes.MODES, 'models': interrupted})
  assert support.run_main('--mode=models') == 130
  assert capfd.readouterr().err == 'Interrupted.\n'


def test_an_exported_model_predicts_like_the_run_and_starts_another(run, capfd):
  model = run / 'model'
  arguments = (f'--workdir={run}/run', '--mode=export', f'--output={model}', '--licence=CC0-1.0')
  assert support.run_main(*arguments) == 0
  assert {'model.json', 'params.safetensors', 'model.stablehlo'} <= {
    p.name for p in model.iterdir()
  }
  results = []
  for folder in ('run', 'model'):
    output = run / f'by_{folder}.tif'
    given = (f'--workdir={run}/{folder}', f'--input={run}/image.tif', f'--output={output}')
    assert support.run_main('--mode=predict', *given) == 0
    results.append(tifffile.imread(output))
  np.testing.assert_array_equal(*results)
  labels = emseg_jax.load(model).predict(tifffile.imread(run / 'image.tif'))
  np.testing.assert_array_equal(labels * 255, results[0])
  assert support.run_main(*arguments) == 2
  assert 'model: ' in capfd.readouterr().err
  code = support.run_main(
    *support.pair_arguments(run), f'--workdir={run}/again', '--config.train.steps=1',
    f'--config.model.init_from={model}', '--config.run.report=false',
  )  # fmt: skip
  assert code == 0
  assert 'loaded' in capfd.readouterr().err


def test_scores_are_kept_where_the_report_cannot_be_written_again(run, capfd):
  other = run / 'run' / 'evaluation' / 'test.json'  # of a split whose images have moved away
  other.write_text((run / 'run' / 'evaluation' / 'validation.json').read_text())
  moved = '--config.data.test=[{"images":"/nowhere","labels":"/nowhere"}]'
  assert support.run_main(f'--workdir={run}/run', '--mode=evaluate', moved) == 0
  other.unlink()
  said = capfd.readouterr()
  assert 'The scores are written, but the report is not: /nowhere' in said.err
  assert 'miou' in said.out


def test_a_reader_that_closes_stdout_is_no_traceback():
  process = support.start_main('--help')
  process.stdout.close()  # before anything is written: Python has not started yet
  assert process.wait(timeout=60) == 141
