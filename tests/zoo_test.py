"""The table of networks: complete, and its numbers those of the papers and of a hand count."""

import json

import pytest

from emseg_jax import main, models, outcome, zoo


def _entry(name, **options):
  return next(e for e in zoo.ENTRIES if e.name == name and dict(e.options) == options)


def test_every_network_is_in_the_table():
  assert {entry.name for entry in zoo.ENTRIES} == set(models.MODELS)


# Counts of the networks as published, or of their authors' code.
EXPECTED = {
  'pmcanet': 32_791_292,
  'vgg_unet': 25_858_497,
  'seget': 2_960_905,
  'emnet_hvec': 3_173_365,
  'rescrnet': 58_662,
  'deeplabv3plus': 43_576_788,
  'emnet_khadangi': 33_827_209,
  'segmenter': 102_497_580,
  'pidnet': 7_716_549,
  'segnet': 29_444_166,
  'unet': 31_030_658,
  'unet3d': 19_075_523,
  'cheng2d': 616_397,
  'cheng3d': 821_997,
  'xiao3d': 1_073_007,
  'casser_unet': 1_958_533,
  'resunet': 4_715_761,
}


# `make test` counts in tests/models and tests/configs_test.py; here the operations take time.
@pytest.mark.long
@pytest.mark.parametrize(('name', 'expected'), EXPECTED.items())
def test_parameters_are_those_of_the_papers_and_their_code(name, expected):
  size = (32, 32) if len(models.create_model(name, 2).divisor) == 2 else (8, 16, 16)
  assert zoo.describe(_entry(name), size=size).parameters == expected


def test_operations_of_a_u_net_equal_a_hand_count():
  # Channels of the 3x3 convolutions at 1, 1/2, 1/4 and 1/8 (down and up), then at 1/16.
  down = [(1, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
  up = [
    (1024, 512),
    (512, 512),
    (512, 256),
    (256, 256),
    (256, 128),
    (128, 128),
    (128, 64),
    (64, 64),
  ]
  size = 64

  def taps(level):  # within the image, of all voxels and along both axes
    return (3 * (size >> level) - 2) ** 2

  products = sum(i * o * taps(n // 2) for n, (i, o) in enumerate(down))
  products += sum(i * o * taps(3 - n // 2) for n, (i, o) in enumerate(up))
  products += (512 * 1024 + 1024 * 1024) * taps(4)
  for n, channels in enumerate((1024, 512, 256, 128)):  # up-convolutions: one tap per voxel
    products += channels * channels // 2 * (size >> (3 - n)) ** 2
  products += 64 * 2 * size**2
  row = zoo.describe(_entry('unet'), size=(size, size))
  assert row.gflops * 1e9 == pytest.approx(2 * products, rel=0.01)  # biases, ReLUs and pooling


def test_the_recurrent_network_counts_every_step_of_its_scans():
  entry = _entry('rescrnet')._replace(options={'conv_blocks': 1})
  small, large = (zoo.describe(entry, size=(n, n)).gflops for n in (32, 64))
  assert large / small == pytest.approx(4, rel=0.15)  # four times the voxels


def test_the_table_is_written_as_text_and_as_markdown():
  rows = [zoo.describe(_entry('casser_unet'), size=(32, 48))]
  assert '32 x 48 x 1' in zoo.format_text(rows)
  record = json.loads(outcome.to_json(rows[0].to_json()))
  assert (record['name'], record['parameters'], record['size']) == (
    'casser_unet', 1_958_533, [32, 48],
  )  # fmt: skip
  text = zoo.format_markdown(rows)
  assert '| casser_unet | - | Casser et al. 2020 | 2D | 32 x 48 x 1 | 1 | 1,958,533 | - |' in text
  assert '| 220 x 220 | 16 x 16 |' in text


@pytest.mark.long
def test_the_mode_prints_and_writes_every_network(tmp_path, capsys):
  path = tmp_path / 'models.md'
  assert main.main(['emseg_jax', '--mode=models', f'--output={path}']) == 0
  printed = capsys.readouterr().out
  for name in models.MODELS:
    assert f'| {name} |' in path.read_text(encoding='utf-8')
    assert f'\n{name} ' in printed
