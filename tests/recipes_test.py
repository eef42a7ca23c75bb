"""Every shipped recipe through the command line: two steps, evaluation and prediction in small.

The data are synthetic, in the files and with the label values of the published ones; networks and
patches are small, everything else is as shipped. `make test` has one recipe per file.
"""

import functools
import json
import math

import flax.linen as nn
import numpy as np
import pytest
import recipe_support
import support

from emseg_jax import config_io, metric_writer
from emseg_jax.data import volumes
from emseg_jax.models import emnet_hvec
from emseg_jax.models.backbones.resnet import ResNet50D8


@pytest.fixture(autouse=True, scope='module')
def _one_block_per_stage():
  """A quarter of ResNet-50's depth to compile."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(ResNet50D8, 'stages', tuple(s._replace(blocks=1) for s in ResNet50D8.stages))
    yield


class _OneConvolution(nn.Module):
  """Stands in for a module of hierarchical view-ensemble convolutions: eight times as many."""

  features: int
  norm_statistics: str
  dtype: np.dtype

  @nn.compact
  def __call__(self, x, slope, *, train):
    return nn.leaky_relu(nn.Conv(self.features, (3, 3, 3), dtype=self.dtype)(x), slope)


@pytest.fixture
def _one_convolution_for_each_hvec(monkeypatch):
  monkeypatch.setattr(emnet_hvec, 'Hvec', _OneConvolution)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """`layout` -> folder with these data, written when they are first asked for."""

  @functools.cache
  def write(which):
    if which is None:
      return None
    folder = tmp_path_factory.mktemp('data')
    recipe_support.write_data(which, folder)
    return folder

  return write


def _labels(source):
  """[N, Y, X] label values of the sections that a source uses."""
  start, stop, step = (int(n) if n else None for n in ((source.slices or ':') + ':').split(':')[:3])
  return volumes.open_volume(source.labels, palette='index')[:][start:stop:step]


def _numbers(record):
  """All numbers in a JSON record."""
  if isinstance(record, dict | list):
    values = record.values() if isinstance(record, dict) else record
    return [number for value in values for number in _numbers(value)]
  return [record] if isinstance(record, int | float) else []


def _check_training(workdir, config):
  records = metric_writer.read_records(workdir / 'metrics.jsonl')
  logged = [r for r in records if 'train/loss' in r]
  assert [r['step'] for r in logged] == [1, 2]
  assert all(f'train/{term}' in r for term in config.loss.terms for r in logged)
  (scored,) = [r for r in records if f'validation/{config.eval.best}' in r]
  assert scored['step'] == 2
  assert all(map(math.isfinite, _numbers(records)))
  assert (workdir / 'checkpoints' / '00000002').is_dir()


def _check_evaluation(workdir, config, split):
  record = json.loads((workdir / 'evaluation' / f'{split}.json').read_text())
  sources = getattr(config.data, split)
  if sources[0].phantom is None and not config.task.affinities:  # whose matrix is one of pairs
    labels = np.concatenate([_labels(source) for source in sources])
    assert record['voxels'] == labels.size
    # The rows of the confusion matrix are the labels as the mapping has them.
    classes = np.vectorize(config.data.label_mapping.get)(labels)
    counts = np.bincount(classes.ravel(), minlength=len(config.task.classes))
    np.testing.assert_array_equal(np.sum(record['confusion'], axis=1), counts)
  assert 0 <= record['scores']['miou'] <= record['scores']['accuracy'] <= 1
  assert all(map(math.isfinite, _numbers(record)))


def _check_prediction(workdir, config, source, folder):
  image = volumes.open_volume(source)
  output = folder / 'out' if image.kind == 'folder' else folder / 'out.tif'
  arguments = [f'--workdir={workdir}', '--mode=predict', f'--input={source}']
  assert support.run_main(*arguments, f'--output={output}') == 0
  result = volumes.open_volume(output, palette='index')
  dtype = np.uint32 if config.task.affinities else np.uint8
  assert (result.kind, result.channels, result.dtype) == (image.kind, 1, dtype)
  assert [result.section_shape(i) for i in range(len(result))] == [
    image.section_shape(i) for i in range(len(image))
  ]
  if not config.task.affinities:
    assert set(np.unique(result[:])) <= set(config.data.label_mapping)


def _run(spec, data, folder, *more):
  root = data(recipe_support.layout(spec))
  full, shipped = recipe_support.load(spec, root)
  workdir = folder / 'run'
  overrides = recipe_support.short_run(shipped, folder / 'targets')
  overrides += more
  assert support.run_main(f'--config={full}', f'--workdir={workdir}', *overrides) == 0
  config = config_io.from_json(workdir / 'config.json')
  _check_training(workdir, config)
  _check_evaluation(workdir, config, 'validation')
  if config.data.test:
    _check_evaluation(workdir, config, 'test')
  if root is not None:
    source = (shipped.data.test or shipped.data.validation)[0].images
    _check_prediction(workdir, config, source, folder)


@pytest.mark.usefixtures('_one_convolution_for_each_hvec')
@pytest.mark.parametrize('spec', recipe_support.FIRST)
def test_a_recipe_trains_evaluates_and_predicts(spec, data, tmp_path):
  # One split to score is enough here, below there are both.
  _run(spec, data, tmp_path, '--config.data.test=[]')


@pytest.mark.long
@pytest.mark.parametrize('spec', recipe_support.SPECS)
def test_every_argument_of_a_recipe_trains_evaluates_and_predicts(spec, data, tmp_path):
  _run(spec, data, tmp_path)
