"""Several binary networks fused into one map: the rule by hand, and the whole way."""

import json

import numpy as np
import pytest
import support
import tifffile
from volume_support import Stand

from emseg_jax import config as config_lib
from emseg_jax import errors, fuse
from emseg_jax.data import normalise, pairs, volumes

# Dark squares are class 1 of the truth, bright ones class 2; each network knows one of them.
NETWORKS = {'dark': (1, 'softmax'), 'bright': (2, 'sigmoid')}
SMALL = (
  '--config=tiny',
  '--config.model.name=rescrnet',
  '--config.model.options={"conv_blocks":1,"lstm_blocks":0,"filters":4,"kernel_sizes":[3],'
  '"dilations":[1]}',
  '--config.data.patch=(16,16)',
  '--config.augment={}',
  '--config.run.report=false',
  '--config.run.tensorboard=false',
)


def _map(*scores: list[float]) -> list[int]:
  return fuse.fused([np.array(score, np.float32) for score in scores]).tolist()


def test_the_highest_score_above_a_half_wins():
  first, second = [0.9, 0.6, 0.2, 0.4, 0.51], [0.8, 0.7, 0.6, 0.3, 0.1]
  assert _map(first, second) == [1, 2, 2, 0, 1]
  assert _map(first, second, [0.95, 0.1, 0.1, 0.1, 0.52]) == [3, 2, 2, 0, 3]


def test_of_equal_scores_the_first_wins_and_a_half_is_not_enough():
  assert _map([0.7, 0.5, 0.5], [0.7, 0.5, 0.25]) == [1, 0, 0]
  assert _map([0.5, 0.2], [0.5000001, 1.0]) == [2, 2]


def test_one_score_is_a_threshold_and_shape_and_type_are_those_of_labels():
  scores = np.random.default_rng(0).random((3, 4, 5), np.float32)
  result = fuse.fused([scores])
  assert (result.dtype, result.shape) == (np.uint8, (3, 4, 5))
  np.testing.assert_array_equal(result, scores > 0.5)


class Grey:
  """Stands in for a network: the foreground's probability is the grey value, or its complement."""

  def __init__(self, patch: tuple[int, ...], *, inverted: bool = False, classes=('no', 'yes')):
    self.config = config_lib.Config(
      task=config_lib.Task(classes=classes), data=config_lib.Data(patch=patch)
    )
    self.normalisation = normalise.Normalisation('scale', 1, 0.0, 1.0, 'uint8')
    self.meta = None
    self.inverted = inverted
    self.seen: list[tuple[int, ...]] = []

  def group_probabilities(self, split, group, should_stop=None):
    self.seen.append(tuple(group))
    if should_stop is not None and should_stop():
      raise errors.Interrupted('stopped')
    image = np.stack([split.network_image(i, self.normalisation)[..., 0] for i in group])
    p = 1 - image if self.inverted else image
    p = p if len(self.config.data.patch) == 3 else p[0]
    return np.stack([1 - p, p], axis=-1)


@pytest.fixture
def stack(tmp_path):
  image = np.array([[[0, 255, 100], [200, 60, 255]], [[0, 0, 0], [255, 130, 120]]], np.uint8)
  tifffile.imwrite(tmp_path / 'image.tif', image, photometric='minisblack')
  return tmp_path / 'image.tif'


def test_networks_for_sections_and_for_volumes_may_be_mixed(stack, tmp_path):
  sections = Stand((8, 8), ('no', 'yes'))
  volume = Stand((2, 8, 8), ('no', 'yes'), shift=0.1)
  path = fuse.fuse_files([sections, volume], stack, tmp_path / 'result.tif')
  assert sections.seen[0] == (3, 8, 8, 1)
  assert volume.seen[0] == (3, 2, 8, 8, 1)
  # The second one sees everything brighter: where there is something, it is sure of it.
  image = tifffile.imread(stack)
  result = tifffile.imread(path)
  assert (result[image > 150] == 2).all()
  assert (result[image < 50] == 0).all()


@pytest.mark.parametrize('block', [(1, 7, 20), (3, 8, 8), None])
def test_a_volume_in_boxes_is_fused_as_the_whole_is(tmp_path, block):
  image = np.random.default_rng(0).integers(0, 256, (5, 18, 20)).astype(np.uint8)
  tifffile.imwrite(tmp_path / 'image.tif', image, photometric='minisblack')
  options = {'predict': {'block': block}}
  networks = [Stand((8, 8), ('no', 'yes'), **options), Stand((4, 8, 8), ('no', 'yes'), shift=-0.2)]
  networks.append(Stand((2, 12, 12), ('no', 'yes'), scale=-1.0, shift=0.8))
  path = fuse.fuse_files(networks, tmp_path / 'image.tif', tmp_path / 'result.tif')
  split = pairs.Split.of_images(volumes.open_volume(tmp_path / 'image.tif'))
  maps = [np.stack([networks[0].group_probabilities(split, (i,)) for i in range(5)])]
  maps += [network.group_probabilities(split, tuple(range(5))) for network in networks[1:]]
  expected = fuse.fused([found[..., 1] for found in maps])
  assert np.unique(expected).tolist() == [0, 1, 3]  # the second sees the same as the first, darker
  np.testing.assert_array_equal(tifffile.imread(path), expected)


def test_a_network_of_more_classes_is_refused(stack, tmp_path):
  networks = [Grey((8, 8)), Grey((8, 8), classes=('no', 'one', 'two'))]
  with pytest.raises(
    errors.ConfigError, match=r"task.classes=\['no', 'one', 'two'\].* two classes"
  ):
    fuse.fuse_files(networks, stack, tmp_path / 'result.tif')
  assert not networks[0].seen


def test_a_stop_request_leaves_nothing_behind(stack, tmp_path):
  with pytest.raises(errors.Interrupted):
    fuse.fuse_files([Grey((8, 8))], stack, tmp_path / 'result.tif', should_stop=lambda: True)
  assert [f.name for f in tmp_path.iterdir()] == ['image.tif']


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A folder with image.tif, label.tif, and a short run per structure; the squares are easy."""
  folder = tmp_path_factory.mktemp('fuse')
  label = np.zeros((3, 40, 56), np.uint8)
  label[:, 4:20, 8:30], label[:, 16:36, 34:52] = 1, 2
  noise = np.random.default_rng(0).normal(0, 8, label.shape)
  image = (np.array([120, 50, 200])[label] + noise).clip(0, 255).astype(np.uint8)
  for name, array in (('image', image), ('label', label)):
    tifffile.imwrite(folder / f'{name}.tif', array, photometric='minisblack')
  sources = json.dumps([{'images': f'{folder}/image.tif', 'labels': f'{folder}/label.tif'}])
  for name, (value, activation) in NETWORKS.items():
    mapping = {v: int(v == value) for v in range(3)}
    code = support.run_main(
      *SMALL, f'--workdir={folder}/{name}', f'--config.task.activation={activation}',
      f'--config.task.classes=["background","{name}"]', f'--config.data.train={sources}',
      f'--config.data.label_mapping={json.dumps(mapping)}', '--config.data.validation=[]',
      '--config.train.steps=40', '--config.optim.optimizer=adam',
      '--config.optim.learning_rate=0.05',
    )  # fmt: skip
    assert code == 0
  return folder


def _fuse(runs, *arguments: str, names=tuple(NETWORKS)) -> int:
  return support.run_main('--mode=fuse', *(f'{runs}/{name}' for name in names), *arguments)


def test_two_runs_make_one_map_in_the_form_of_the_input(runs, capsys):
  assert _fuse(runs, f'--input={runs}/image.tif', f'--output={runs}/out/map.tif') == 0
  said = capsys.readouterr().err
  assert f'1: dark ({runs}/dark)' in said
  assert f'2: bright ({runs}/bright)' in said
  result, truth = (tifffile.imread(runs / name) for name in ('out/map.tif', 'label.tif'))
  assert (result.shape, result.dtype) == (truth.shape, np.uint8)
  assert (result == truth).mean() > 0.9
  # The same from the maps that each network writes by itself.
  maps = []
  for name in NETWORKS:
    code = support.run_main(
      f'--workdir={runs}/{name}', '--mode=predict', f'--input={runs}/image.tif',
      f'--output={runs}/{name}.tif', '--config.predict.probabilities=uint16',
    )  # fmt: skip
    assert code == 0
    maps.append(tifffile.imread(runs / f'{name}_prob_{name}.tif').astype(int))
  best = np.where(maps[1] > maps[0], 2, 1)
  expected = np.where(np.max(maps, axis=0) > 65535 / 2, best, 0)
  sure = (np.abs(maps[0] - maps[1]) > 1) & (np.abs(np.max(maps, axis=0) - 65535 / 2) > 1)
  np.testing.assert_array_equal(result[sure], expected[sure])
  assert sure.mean() > 0.95


def test_the_order_of_the_runs_is_the_order_of_the_values(runs, capsys):
  arguments = [f'--input={runs}/image.tif', f'--output={runs}/turned.tif']
  assert _fuse(runs, *arguments, '--json', names=('bright', 'dark')) == 0
  assert json.loads(capsys.readouterr().out) == {
    'written': f'{runs}/turned.tif', 'values': {'1': 'bright', '2': 'dark'},
  }  # fmt: skip
  result, truth = (tifffile.imread(runs / name) for name in ('turned.tif', 'label.tif'))
  assert (result == np.array([0, 2, 1])[truth]).mean() > 0.9


def _refused(capsys, code: int, *expected: str) -> None:
  said = capsys.readouterr().err
  assert code == 2
  assert 'Traceback' not in said
  for text in expected:
    assert text in said.strip().splitlines()[-1]


def test_a_run_of_three_classes_is_refused(runs, tmp_path, capsys):
  code = support.run_main(
    *SMALL, f'--workdir={tmp_path}/three', '--config.train.steps=1', '--config.data.validation=[]',
    '--config.data.train=[{"phantom":{"count":1,"size":[32,32]}}]',
  )  # fmt: skip
  assert code == 0
  code = support.run_main(
    '--mode=fuse', f'{runs}/dark', f'{tmp_path}/three', f'--input={runs}/image.tif',
    f'--output={tmp_path}/map.tif',
  )  # fmt: skip
  _refused(capsys, code, 'ConfigError', "'cytoplasm', 'membrane', 'mitochondrion'", 'two classes')
  assert not (tmp_path / 'map.tif').exists()


def test_what_is_missing_is_named(runs, tmp_path, capsys):
  there, new = f'--input={runs}/image.tif', f'--output={tmp_path}/map.tif'
  _refused(capsys, _fuse(runs, there), '--mode=fuse: needs --output')
  _refused(capsys, _fuse(runs, new), '--mode=fuse: needs --input')
  _refused(capsys, _fuse(runs, there, new, names=()), '--mode=fuse: needs work directories')
  _refused(capsys, _fuse(runs, there, new, names=('dark', 'nowhere')), f'{runs}/nowhere', 'no run')
  _refused(capsys, _fuse(runs, f'--input={tmp_path}/none.tif', new), 'DataError', 'none.tif')
  # A result never takes the place of what it was made from.
  _refused(capsys, _fuse(runs, there, f'--output={runs}/image.tif'), 'OutputError', 'is the input')
  assert not list(tmp_path.iterdir())
