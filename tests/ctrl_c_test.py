"""Ctrl-C and SIGTERM in every mode: one line, the right code, nothing half-written, gone on with.

The signal is raised in this process, in the middle of the mode's work. view_test has --mode=view.
"""

import re
import signal

import numpy as np
import pytest
import support
import tifffile
from PIL import Image

from emseg_jax import benchmark, fuse, modes, predict, trainer, zoo
from emseg_jax.check import doctor
from emseg_jax.data.datasets import builder
from emseg_jax.export import stablehlo
from emseg_jax.postprocess import grid
from emseg_jax.report import compare_figures, html

SAVED, ENDED = 75, {signal.SIGINT: 130, signal.SIGTERM: 143}
# What is interrupted, before its n-th call from 0.
PLACES = {
  'train': (trainer._Loop, '_train_one_step', 1),
  'evaluate': (predict.Predictor, 'apply', 1),
  'predict': (predict.Predictor, 'apply', 1),
  'blocks': (predict.Predictor, 'apply', 12),  # of about 9 for each of three blocks
  'postprocess': (grid.Grid, 'box', 1),
  'prepare': (builder.SectionsBuilder, '_generator', 0),
  'fuse': (fuse, 'fused', 0),
  'export': (stablehlo, 'export_function', 0),
  'check': (doctor, '_judge', 0),
  'report': (html, 'write_report', 0),
  'models': (zoo, 'describe', 1),
  'benchmark': (benchmark, '_random_batch', 0),
  'compare': (compare_figures, 'draw', 0),
}
QUICK = ('--config.run.tensorboard=false', '--config.run.report=false', *support.SMALL_NETWORK)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A short run, and a volume and two images in a folder."""
  folder = tmp_path_factory.mktemp('ctrl_c')
  support.write_pair(folder)
  arguments = (f'--workdir={folder}/run', '--config.train.steps=2', '--config.train.batch_size=2')
  assert support.run_main(*support.pair_arguments(folder), *arguments, *QUICK) == 0
  image = tifffile.imread(folder / 'image.tif')
  (folder / 'images').mkdir()
  for i in range(2):
    Image.fromarray(image[i]).save(folder / 'images' / f'{i}.png')
  volume = np.tile(image[:2], 3)
  tifffile.imwrite(
    folder / 'volume.tif', volume, photometric='minisblack', metadata={'axes': 'ZYX'}
  )
  return folder


def arguments_of(mode, folder, output):
  run, images = f'--workdir={folder}/run', f'--input={folder}/images'
  files, tile = support.pair_arguments(folder), '--config.predict.tile=(32,32)'
  return {
    'train': [*files, f'--workdir={output}', '--config.train.steps=6', *QUICK],
    'evaluate': [run, tile],
    'predict': [run, images, f'--output={output}', tile],
    'blocks': [
      run, f'--input={folder}/volume.tif', f'--output={output}.zarr', tile,
      '--config.predict.block=(64,64,64)',
    ],
    'postprocess': [f'--input={folder}/volume.tif', f'--output={output}.tif'],
    'prepare': [*files, f'--output={output}'],
    'fuse': [f'{folder}/run', images, f'--output={output}', tile],
    'export': [run, f'--output={output}'],
    'check': [*files, f'--output={output}'],
    'report': [run],
    'models': [f'--output={output}.md'],
    'benchmark': [*files, f'--output={output}.json', *QUICK],
    'compare': [f'{folder}/run', f'--output={output}'],
  }[mode]  # fmt: skip


def interrupt(monkeypatch, mode, number):
  """Raises the signal where PLACES says, once."""
  where, name, count = PLACES[mode]
  real, calls = getattr(where, name), []

  def interrupted(*args, **kwargs):
    calls.append(0)
    if len(calls) == count + 1:
      signal.raise_signal(number)
    return real(*args, **kwargs)

  monkeypatch.setattr(where, name, interrupted)
  return calls


def cases():
  for mode in PLACES:
    for number in (signal.SIGINT, signal.SIGTERM):
      few = number == signal.SIGINT or mode in ('export', 'postprocess')
      yield pytest.param(mode, number, marks=[] if few else [pytest.mark.long])


@pytest.mark.parametrize(('mode', 'number'), list(cases()))
def test_a_signal_ends_a_mode_with_a_line_and_leaves_nothing_half_written(
  mode, number, folder, tmp_path, monkeypatch, capfd
):
  name = 'predict' if mode == 'blocks' else mode
  arguments = [f'--mode={name}', *arguments_of(mode, folder, tmp_path / 'out')]
  before = {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file()}
  with monkeypatch.context() as patch:
    calls = interrupt(patch, mode, number)
    code = support.run_main(*arguments)
  assert len(calls) > PLACES[mode][2]
  last = capfd.readouterr().err.splitlines()[-1]
  if name in modes.STOP_AND_SAVE:
    assert code == SAVED
    assert last.startswith('Interrupted: ')
  else:
    assert code == ENDED[number]
    assert last == {signal.SIGINT: 'Interrupted.', signal.SIGTERM: 'Terminated.'}[number]
  left = {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob('*')}
  kept = {'blocks': '.out.zarr.partial', 'postprocess': '.out.tif.partial', 'train': 'out'}
  assert left == ({kept[mode]} if mode in kept else set())
  assert {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.is_file()} == before
  if mode in ('train', 'blocks'):  # gone on with
    assert support.run_main(*arguments) == 0
    said = capfd.readouterr().err
    if mode == 'train':
      assert 'Resuming at step 2.' in said
    else:
      left, blocks = map(int, re.search(r'(\d+) of (\d+) blocks to predict', said).groups())
      assert left < blocks
