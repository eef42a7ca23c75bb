"""From pixels to probabilities: copies of an image, several networks, what is refused."""

import numpy as np
import pytest
import support
import tifffile

from emseg_jax import experiment, predict, train_state
from emseg_jax.config import Config
from emseg_jax.data import normalise
from emseg_jax.errors import ConfigError

TILE = (16, 32)
IMAGE = np.random.default_rng(0).normal(size=(2, *TILE, 1)).astype(np.float32)


def config_of(**options):
  return Config.model_validate(
    {
      'model': {'name': 'unet', 'options': {'width': 1 / 32}},
      'augment': {'rotate90': False},
      'data': {'patch': TILE},
      'task': {'classes': ['background', 'square']},
      'mesh': {'data': 1},
      'predict': {'tile': TILE, 'batch_size': 2, **options},
    }
  )


def state_of(setup, seed):
  return train_state.create(setup.model, setup.optimizer, seed=seed, shape=(2, *TILE, 1), ema=False)


def normalisation(mean=100.0, std=10.0, kind='dataset'):
  return normalise.Normalisation(kind, 1, mean, std, 'uint8')


def predictor_of(seed=0, *, statistics=None, **options):
  setup = experiment.set_up(config_of(**options))
  predictor = predict.Predictor(setup, statistics or normalisation())
  predictor.load(state_of(setup, seed))
  return predictor


def test_the_mean_over_mirrored_copies():
  plain = predictor_of()
  copies = [(), (1,), (2,), (1, 2)]
  expected = np.mean([np.flip(plain.apply(np.flip(IMAGE, axes)), axes) for axes in copies], axis=0)
  found = np.asarray(predictor_of(augment=('flips',)).apply(IMAGE))
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert np.abs(found - plain.apply(IMAGE)).max() > 1e-3


def test_turned_copies_of_tiles_that_are_not_square():
  plain = predictor_of()
  turns = [np.rot90(plain.apply(np.rot90(IMAGE, k, (1, 2))), -k, (1, 2)) for k in range(4)]
  found = predictor_of(augment=('rotations',)).apply(IMAGE)
  np.testing.assert_allclose(found, np.mean(turns, axis=0), atol=1e-6)


def test_networks_are_averaged_each_with_its_own_normalisation():
  other = normalisation(90.0, 20.0)
  both = predictor_of(0)
  both.add(state_of(both.setup, 1), other)
  raw = 100 + 10 * IMAGE
  singles = [
    np.asarray(predictor_of(0).apply((raw - 100) / 10)),
    np.asarray(predictor_of(1, statistics=other).apply((raw - 90) / 20)),
  ]
  np.testing.assert_allclose(both.apply(IMAGE), np.mean(singles, axis=0), atol=1e-5)
  assert np.abs(singles[0] - singles[1]).max() > 1e-3
  assert both.digests() != predictor_of(0).digests()


@pytest.mark.parametrize(
  'other', [normalisation(kind='per_volume'), normalise.Normalisation('dataset', 1, 1, 1, 'uint16')]
)
def test_networks_that_see_images_in_another_way_are_not_averaged(other):
  predictor = predictor_of()
  with pytest.raises(ConfigError, match='cannot be averaged with one of dataset of uint8'):
    predictor.add(state_of(predictor.setup, 1), other)


def test_exact_tiles_give_the_whole_image():
  image = np.random.default_rng(1).normal(size=(300, 20, 1)).astype(np.float32)
  one = predictor_of(tile=(304, 32), blend='exact', batch_size=1).probabilities(image)
  found = predictor_of(tile=(240, 32), blend='exact').probabilities(image)
  np.testing.assert_allclose(found, one, atol=1e-5)
  blended = predictor_of(tile=(240, 32)).probabilities(image)
  assert np.abs(blended - one).max() > 1e-3


def test_what_cannot_be_exact_is_refused():
  config = config_of(blend='exact').model_dump()
  unlimited = {'name': 'pmcanet', 'options': {'width': 1 / 16}}
  with pytest.raises(ConfigError, match='pmcanet sees its whole input'):
    experiment.set_up(Config.model_validate(config | {'model': unlimited}))
  with pytest.raises(ConfigError, match=r'drops 112 voxels at either end of 16; at least 240'):
    predictor_of(blend='exact').probabilities(np.zeros((100, 32, 1), np.float32))
  with pytest.raises(ConfigError, match='needs a network for volumes'):
    experiment.set_up(config_of(augment=('views',)))


def test_three_views_of_a_volume():
  config = Config.model_validate(
    {
      'model': {'name': 'unet3d', 'options': {'width': 1 / 32}},
      'data': {'patch': (8, 8, 16)},
      'augment': {'rotate90': False},
      'task': {'classes': ['background', 'square']},
      'mesh': {'data': 1},
      'predict': {'batch_size': 1, 'augment': ('views',)},
    }
  )
  image = np.random.default_rng(1).normal(size=(1, 8, 8, 16, 1)).astype(np.float32)
  found = {}
  for augment in ((), ('views',)):
    options = config.predict.model_copy(update={'augment': augment})
    setup = experiment.set_up(config.model_copy(update={'predict': options}))
    state = train_state.create(
      setup.model, setup.optimizer, seed=0, shape=(1, *config.data.patch, 1), ema=False
    )
    found[augment] = predict.Predictor(setup, normalisation())
    found[augment].load(state)
  plain = found[()].apply
  views = [np.swapaxes(plain(np.swapaxes(image, 1, axis)), 1, axis) for axis in (1, 2, 3)]
  np.testing.assert_allclose(found[('views',)].apply(image), np.mean(views, axis=0), atol=1e-6)


@pytest.fixture(scope='module')
def folds(tmp_path_factory):
  """Two runs on different images, and an image."""
  folder = tmp_path_factory.mktemp('folds')
  for fold, sections in enumerate((3, 5)):
    support.write_pair(folder / str(fold), sections=sections)
    arguments = support.pair_arguments(folder / str(fold))
    code = support.run_main(
      *arguments, *support.SMALL_NETWORK, f'--config.train.seed={fold}', '--config.train.steps=2',
      '--config.run.report=false', f'--workdir={folder}/run{fold}',
    )  # fmt: skip
    assert code == 0
  tifffile.imwrite(folder / 'in.tif', tifffile.imread(folder / '1' / 'image.tif')[0])
  return folder


def _foreground(folds, name, *more):
  code = support.run_main(
    '--mode=predict', f'--input={folds}/in.tif', f'--output={folds}/{name}.tif',
    '--config.predict.probabilities=uint16', *more,
  )  # fmt: skip
  assert code == 0
  return tifffile.imread(folds / f'{name}_prob_square.tif').astype(float)


def test_folds_are_averaged_on_the_command_line(folds):
  singles = [_foreground(folds, f'fold{k}', f'--workdir={folds}/run{k}') for k in range(2)]
  ensemble = f'--config.predict.ensemble=["{folds}/run1"]'
  both = _foreground(folds, 'both', f'--workdir={folds}/run0', ensemble)
  np.testing.assert_allclose(both, (singles[0] + singles[1]) / 2, atol=2)
  assert np.abs(singles[0] - singles[1]).max() > 10


def test_another_network_in_an_ensemble_is_named(folds, capfd):
  code = support.run_main(
    f'--workdir={folds}/run0', '--mode=predict', f'--input={folds}/in.tif',
    f'--output={folds}/x.tif', f'--config.predict.ensemble=["{folds}/nowhere"]',
  )  # fmt: skip
  assert code == 2
  assert 'nowhere: holds no run' in capfd.readouterr().err
  assert not (folds / 'x.tif').exists()
