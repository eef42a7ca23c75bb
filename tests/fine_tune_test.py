"""`auto:FOLDER` with a model to start from: its network is taken over, with what belongs to it."""

import bundle_support
import numpy as np
import pytest
import support
import tifffile

from emseg_jax import bundle as bundle_lib
from emseg_jax import config_io, fine_tune
from emseg_jax.errors import BundleError

SMALL = {
  'name': 'rescrnet',
  'options': {
    'conv_blocks': 1,
    'lstm_blocks': 0,
    'filters': 4,
    'kernel_sizes': (3,),
    'dilations': (1,),
  },
}


def export(path, model, *, patch=(32, 32), **data):
  config = bundle_support.make_config(model=model, patch=patch, **data)
  bundle_lib.write_bundle(path, bundle_support.make_bundle(config))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A volume and labels of three classes; the models know two."""
  folder = tmp_path_factory.mktemp('data')
  rng = np.random.default_rng(0)
  label = rng.integers(0, 3, (10, 40, 48), dtype=np.uint8)
  tifffile.imwrite(folder / 'labels.tif', label)
  tifffile.imwrite(folder / 'image.tif', label * 60 + rng.integers(0, 60, label.shape, np.uint8))
  return folder


def test_another_network_is_trained_further_on_a_folder(folder, tmp_path, capfd):
  export(tmp_path / 'model', SMALL, normalisation='per_volume', neighbours=1)
  flags = f'--config=auto:{folder}', f'--config.model.init_from={tmp_path}/model'
  more = '--config.train.steps=1', '--config.run.report=false', '--config.train.batch_size=1'
  assert support.run_main(*flags, *more, f'--workdir={tmp_path}/run') == 0
  said = capfd.readouterr().err
  assert 'its network, rescrnet, patch, channels and normalisation are taken over' in said
  assert 'Patches of 32 x 32 voxels, 1 steps of rescrnet' in said
  assert 'fresh' in said  # the head, of three classes
  used = config_io.from_json(tmp_path / 'run' / 'config.json')
  assert used.model.options == bundle_lib.read_config(tmp_path / 'model').model.options
  assert (used.data.normalisation, used.data.neighbours) == ('per_volume', 1)
  assert len(used.task.classes) == 3


@pytest.mark.parametrize(
  'overrides', [['model.name=unet'], ['model.options={"width":0.5}'], ['model.options.width=0.5']]
)
def test_a_network_that_is_named_stays(folder, tmp_path, overrides):
  export(tmp_path / 'model', SMALL)
  config = config_io.load(f'auto:{folder}')
  given = [f'model.init_from={tmp_path}/model', *overrides]
  assert fine_tune.take_over(config, given) is config


def test_a_network_of_volumes_brings_its_patch(folder, tmp_path):
  model = {'name': 'unet3d', 'options': {'width': 1 / 64}}
  export(tmp_path / 'model', model, patch=(8, 16, 16))
  config = config_io.load(f'auto:{folder}')
  found = fine_tune.take_over(config, ['train.steps=3', f'model.init_from={tmp_path}/model'])
  assert (found.model.name, found.data.patch) == ('unet3d', (8, 16, 16))
  assert (found.data.train, found.task) == (config.data.train, config.task)


def test_other_files_choose_no_network(folder, tmp_path):
  config = config_io.load(f'auto:{folder}')
  assert fine_tune.take_over(config, ['train.steps=3']) is config
  assert fine_tune.take_over(config, [f'model.init_from={tmp_path}/vgg.safetensors']) is config


def test_the_normalisation_that_the_images_need_stays(folder, tmp_path):
  export(tmp_path / 'model', SMALL, normalisation='scale')
  config = config_io.load(f'auto:{folder}')
  mixed = config.model_copy(
    update={'data': config.data.model_copy(update={'normalisation': 'per_volume'})}
  )
  given = [f'model.init_from={tmp_path}/model']
  assert fine_tune.take_over(config, given).data.normalisation == 'scale'
  assert fine_tune.take_over(mixed, given).data.normalisation == 'per_volume'


def test_a_damaged_model_is_refused(folder, tmp_path):
  export(tmp_path / 'model', SMALL)
  (tmp_path / 'model' / 'model.json').write_text('{')
  with pytest.raises(BundleError, match=r'model\.json'):
    fine_tune.take_over(config_io.load(f'auto:{folder}'), [f'model.init_from={tmp_path}/model'])
