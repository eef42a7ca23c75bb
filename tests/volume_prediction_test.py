"""Volumes through --mode=predict: blocks, boxes, parts, resume after kill -9, what is refused."""

import json
import random
import shutil
import time

import numpy as np
import pytest
import support
import tifffile

from emseg_jax.data import phantom, volumes

SHAPE = (70, 80, 100)
BLOCKS = '--config.predict.block=(64,64,64)'  # 2 x 2 x 2 of them


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A run of two steps, and a volume."""
  folder = tmp_path_factory.mktemp('volume')
  image, _ = phantom.make_volume(shape=SHAPE, seed=5)
  tifffile.imwrite(folder / 'in.tif', image, photometric='minisblack', metadata={'axes': 'ZYX'})
  train = ('--config=tiny', *support.SMALL_NETWORK, '--config.train.steps=2')
  assert support.run_main(*train, '--config.run.report=false', f'--workdir={folder}/run') == 0
  return folder


def arguments(folder, output, *more):
  return (
    f'--workdir={folder}/run',
    '--mode=predict',
    f'--input={folder}/in.tif',
    f'--output={output}',
    '--config.predict.tile=(48,48)',
    '--config.predict.batch_size=16',
    *more,
  )


def predict(folder, output, *more):
  return support.run_main(*arguments(folder, output, *more))


@pytest.fixture(scope='module')
def whole(folder):
  """Labels and one probability map, computed as a single block."""
  assert predict(folder, folder / 'whole.tif', '--config.predict.probabilities=uint8') == 0
  return [tifffile.imread(folder / f'whole{s}.tif') for s in ('', '_prob_membrane')]


def assert_nearly_equal(labels, expected):
  """Sums in another order may decide a tie the other way."""
  assert labels.shape == expected.shape
  assert np.mean(labels != expected) < 1e-3


def test_the_labels_are_those_of_the_sections_one_by_one(folder, whole):
  """Folders of images go the other way, image by image."""
  sections = folder / 'sections'
  sections.mkdir()
  volume = tifffile.imread(folder / 'in.tif')
  for z in (0, 40, 69):
    tifffile.imwrite(sections / f'{z:02d}.tif', volume[z], photometric='minisblack')
  output = folder / 'sections_out'
  assert predict(folder, output, f'--input={sections}') == 0
  for z in (0, 40, 69):
    assert_nearly_equal(tifffile.imread(output / f'{z:02d}.tif'), whole[0][z])
  assert len(np.unique(whole[0])) > 1


OTHERS = [pytest.param(f'b.{form}', marks=pytest.mark.long) for form in ('h5', 'mrc', 'n5')]


@pytest.mark.parametrize('name', ['b.tif', 'b.zarr', 'b.precomputed', *OTHERS])
def test_blocks_make_the_same_volume_in_every_format(folder, whole, tmp_path, name):
  more = [BLOCKS, '--config.predict.probabilities=uint8']
  assert predict(folder, tmp_path / name, *more) == 0
  stem, extension = name.split('.')
  for suffix, expected in zip(('', '_prob_membrane'), whole, strict=True):
    path = tmp_path / f'{stem}{suffix}.{extension}'
    address = f'precomputed://{path}' if extension == 'precomputed' else path
    found = volumes.open_volume(address, palette='index')
    if suffix:  # one step of rounding
      np.testing.assert_allclose(found[:].astype(int), expected.astype(int), atol=1)
    else:
      assert_nearly_equal(found[:], expected)
  assert not (tmp_path / f'.{name}.partial').exists()


def test_the_same_command_again_has_nothing_to_do(folder, tmp_path, capsys):
  output = tmp_path / 'a.zarr'
  assert predict(folder, output, BLOCKS) == 0
  changed = (output / '0' / '0' / '0' / '0').stat().st_mtime_ns
  capsys.readouterr()
  assert predict(folder, output, BLOCKS) == 0
  assert 'is complete, 0 blocks to predict' in capsys.readouterr().err
  assert (output / '0' / '0' / '0' / '0').stat().st_mtime_ns == changed
  record = json.loads((tmp_path / 'a.zarr.json').read_text())
  assert record['geometry']['block'] == [64, 64, 64]
  assert record['network']['step'] == 2


def test_a_box_is_that_part_of_the_whole(folder, whole, tmp_path):
  box = (slice(3, 70), slice(10, 75), slice(0, 50))
  assert predict(folder, tmp_path / 'box.tif', BLOCKS, '--roi=3:,10:75,:50') == 0
  assert_nearly_equal(tifffile.imread(tmp_path / 'box.tif'), whole[0][box])


@pytest.mark.parametrize('version', [2, 3])
def test_zarr_is_of_the_version_asked_for(folder, whole, tmp_path, version):
  more = ('--roi=3:7,:,:', f'--config.predict.zarr_format={version}')
  assert predict(folder, tmp_path / 'a.zarr', *more) == 0
  assert (tmp_path / 'a.zarr' / 'zarr.json').exists() is (version == 3)
  assert_nearly_equal(volumes.open_volume(tmp_path / 'a.zarr')[:], whole[0][3:7])


def test_what_the_mask_leaves_out_is_zero(folder, whole, tmp_path):
  mask = np.zeros(SHAPE, np.uint8)
  mask[5:30, 20:60, 10:50] = 1
  tifffile.imwrite(tmp_path / 'mask.tif', mask, photometric='minisblack')
  more = (BLOCKS, f'--config.predict.mask={tmp_path}/mask.tif')
  assert predict(folder, tmp_path / 'm.tif', *more) == 0
  assert_nearly_equal(tifffile.imread(tmp_path / 'm.tif'), whole[0] * mask)


def test_parts_complete_each_other(folder, whole, tmp_path):
  for i in (2, 0):
    assert predict(folder, tmp_path / 'p.zarr', BLOCKS, f'--part={i}/3') == 0
    assert not (tmp_path / 'p.zarr').exists()
  assert predict(folder, tmp_path / 'p.zarr', BLOCKS, '--part=1/3') == 0
  assert_nearly_equal(volumes.open_volume(tmp_path / 'p.zarr', palette='index')[:], whole[0])


def test_a_dry_run_writes_nothing(folder, tmp_path):
  assert predict(folder, tmp_path / 'd.tif', BLOCKS, '--dry-run') == 0
  assert not list(tmp_path.iterdir())


def test_an_unfinished_prediction_of_other_blocks_is_refused(folder, tmp_path, capsys):
  assert predict(folder, tmp_path / 'p.tif', BLOCKS, '--part=0/2') == 0
  assert predict(folder, tmp_path / 'p.tif', '--config.predict.block=(64,128,64)') == 2
  assert 'another geometry' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('more', 'message'),
  [
    (['--roi=0:99,:,:'], 'predict.roi: 0:99 along z'),
    (['--roi=5'], 'z0:z1,y0:y1,x0:x1'),
    (['--part=3/3'], '--part=3/3'),
    (['--config.predict.mask=MASK'], 'MASK'),
  ],
)
def test_what_does_not_fit_is_refused(folder, tmp_path, capsys, more, message):
  assert predict(folder, tmp_path / 'x.tif', *more) == 2
  assert message in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_a_mask_of_another_size_is_refused(folder, tmp_path, capsys):
  mask = tmp_path / 'mask.tif'
  tifffile.imwrite(mask, np.ones((70, 80, 99), np.uint8), photometric='minisblack')
  assert predict(folder, tmp_path / 'x.tif', f'--config.predict.mask={mask}') == 2
  assert 'the mask is 70 x 80 x 99 (z y x), the volume is 70 x 80 x 100' in capsys.readouterr().err


def test_boxes_of_folders_of_images_are_refused(folder, tmp_path, capsys):
  images = tmp_path / 'images'
  images.mkdir()
  tifffile.imwrite(images / 'a.tif', np.zeros((64, 64), np.uint8), photometric='minisblack')
  assert predict(folder, tmp_path / 'x', f'--input={images}', '--roi=:,:,:') == 2
  assert 'is no volume' in capsys.readouterr().err


def _kill_at_random(folder, output, times, generator):
  """Starts the command again and again and kills it; says how often it was still running."""
  killed = 0
  for _ in range(times):
    process = support.start_main(*arguments(folder, output, *SLOW))
    partial = output.parent / f'.{output.name}.partial'
    while process.poll() is None and not partial.exists():
      time.sleep(0.02)
    time.sleep(generator.uniform(0, 1.5))
    if process.poll() is None:
      process.kill()
      killed += 1
    process.communicate()
  return killed


# Many small blocks, so that there is a moment for every kill.
SLOW = ('--config.predict.block=(64,64,64)', '--config.predict.batch_size=1')


@pytest.mark.parametrize('kills', [5, pytest.param(30, marks=pytest.mark.long)])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(folder, tmp_path, kills):
  expected, found = tmp_path / 'expected.zarr', tmp_path / 'found.zarr'
  assert predict(folder, expected, *SLOW) == 0
  generator = random.Random(kills)
  killed = 0
  while killed < kills:
    if found.exists():  # this one came through; from the start
      shutil.rmtree(found)
      (tmp_path / 'found.zarr.json').unlink()
    killed += _kill_at_random(folder, found, min(5, kills - killed), generator)
  process = support.start_main(*arguments(folder, found, *SLOW))
  output = process.communicate(timeout=300)[0]
  assert process.returncode == 0, output
  files = sorted(p.relative_to(expected) for p in expected.rglob('*') if p.is_file())
  assert files == sorted(p.relative_to(found) for p in found.rglob('*') if p.is_file())
  for file in files:
    if 'zattrs' not in file.name:  # it holds the name of the store
      assert (expected / file).read_bytes() == (found / file).read_bytes(), file


def test_no_seams_between_blocks(folder, tmp_path):
  """Mean step of the probability across a face over that nearby; 1 where nothing shows.

  Nearby, because what is in the image changes the mean from one end to the other by a fifth.
  """
  output = tmp_path / 'out.tif'
  assert predict(folder, output, BLOCKS, '--config.predict.probabilities=uint16') == 0
  maps = tifffile.imread(tmp_path / 'out_prob_membrane.tif').astype(float)
  for axis in range(3):
    steps = np.abs(np.diff(maps, axis=axis)).mean(axis=tuple({0, 1, 2} - {axis}))
    nearby = [k for k in range(58, 69) if abs(k - 63) > 1 and k < len(steps)]
    assert steps[63] < 1.1 * steps[nearby].mean(), axis
