"""A folder in which the commands of the documentation run as they stand, with small networks."""

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import conftest
import data_support
import docs_support
import numpy as np
import recipe_support
import support
import zarr

from emseg_jax import config_io, data_benchmark
from emseg_jax.data import phantom

# What stands for something else in a command.
STAND_INS = {
  'FLAGS': '--config=tiny --workdir=runs/flags',
  'AUGMENTATION': '--config.augment.rotate90=false',
  "(16,64,64)' --config.augment.rotate90=false --config.model.name=NAME": (
    "(16,64,64)' --config.augment.rotate90=false --config.model.name=xiao3d"
  ),
  'NAME': 'casser_unet',
  'OPTIONS': '{}',
  'down[1-4]': '(down[1-4]|conv1)',  # of a U-Net, and of the small network
  'RUN RUN ...': 'runs/seed0 runs/seed1',
}
SMALL = [
  *support.SMALL_NETWORK,
  '--config.train.steps=2',
  '--config.train.batch_size=2',
  '--config.train.eval_every=2',
  '--config.data.patch=(16,16)',
  '--config.data.threads=1',
  '--config.predict.tile=(32,32)',
  '--config.run.tensorboard=false',
  f'--config.run.target_cache={conftest.COMPILE_CACHE}/targets',
]
SMALL_OVERRIDES = [flag.removeprefix('--config.') for flag in (*SMALL, *support.COMMON)]
FEW = '[{"phantom":{"count":2,"size":[48,48]}}]'
MINE = 'runs/mine'
PLAIN = ('auto', 'phantom', 'tiny', 'unet')  # no recipes of a network of their own
QUICK_BENCHMARK = functools.partial(
  data_benchmark.benchmark_data, shape=(16, 256, 256), patches=((32, 32),), seconds=0, workers=(0,)
)


def fill(folder: Path) -> None:
  """Writes what commands of several pages name, and trains runs/mine by its command."""
  image, label = phantom.make_sections(count=8, size=(64, 64), seed=0)
  named = {f'{i}': a for i, a in enumerate(image)}
  data_support.write_folder(folder / 'FOLDER' / 'images', named)
  data_support.write_folder(folder / 'FOLDER' / 'labels', {f'{i}': a for i, a in enumerate(label)})
  data_support.write_folder(folder / 'IMAGES', {k: named[k] for k in '12'})
  data_support.write_folder(folder / 'LABELS', {k: label[int(k)] for k in '12'})
  volume, _ = phantom.make_volume(shape=(4, 48, 48), seed=1)
  zarr.save_array(str(folder / 'volume.zarr'), volume)
  _run(['--config=auto:FOLDER', f'--workdir={MINE}', *SMALL])


def write_stacks(folder: Path) -> None:
  """The stacks of ISBI 2012 where README looks for them."""
  recipe_support.write_data('pmcanet:isbi2012', folder / 'data' / 'isbi2012')
  shutil.copy(folder / 'data' / 'isbi2012' / 'train-volume.tif', folder / 'more.tif')


def flags(command: docs_support.Command) -> list[str]:
  """The command's flags, with something for what only stands for them."""
  text = command.text
  for word, meaning in STAND_INS.items():
    text = text.replace(word, meaning)
  return docs_support.Command('', text).arguments[3:]


def given(command: docs_support.Command) -> dict[str, str]:
  """Flag -> value."""
  return dict(f.removeprefix('--').partition('=')[::2] for f in flags(command))


def write_json(command: docs_support.Command, folder: Path) -> None:
  """mine.json, which two pages name: that of runs/mine, or one of a published data set."""
  raw = json.loads((folder / MINE / 'config.json').read_text(encoding='utf-8'))
  if given(command).get('mode') == 'prepare':
    raw['data']['train'] = [{'images': 'tfds://cardiac?split=train&dir=data/tfds'}]
    raw['data']['validation'] = []
    for kind in ('images', 'labels'):
      named = {f'{i}': data_support.plain(255 * i, (48, 48)) for i in range(2)}
      data_support.write_folder(folder / 'FOLDER_WITH_THE_FILES' / 'train' / kind, named)
  (folder / 'mine.json').write_text(json.dumps(raw), encoding='utf-8')


def _write_root(spec: str, folder: Path) -> None:
  """DIR, with what the recipe wants there."""
  shutil.rmtree(folder / 'DIR', ignore_errors=True)
  layout = recipe_support.layout(spec.replace(',root=DIR', '').replace(':root=DIR', ''))
  recipe_support.write_data(layout, folder / 'DIR')


def is_there(folder: Path) -> bool:
  """Whether this is a run or an exported model."""
  return (folder / 'config.json').exists() or (folder / 'model.json').exists()


def creator(workdir: str, commands: Sequence[docs_support.Command]) -> docs_support.Command:
  """The command by which a work directory, or an exported model, comes about."""
  for command in commands:
    options = given(command)
    exported = options.get('mode') == 'export' and options.get('output') == workdir
    if exported or (options.get('workdir') == workdir and 'config' in options):
      return command
  raise ValueError(f'no command of the pages makes {workdir}')


def run(
  command: docs_support.Command, folder: Path, commands: Sequence[docs_support.Command]
) -> None:
  """Runs a command, made small; before it, those that make the work directories that it needs."""
  options, arguments = given(command), flags(command)
  workdirs = [options.get('config.model.init_from')]
  workdirs += [] if 'config' in options else [options.get('workdir')]
  for workdir in [*filter(None, workdirs), *(a for a in arguments if not a.startswith('--'))]:
    if not is_there(folder / workdir):
      run(creator(workdir, commands), folder, commands)
  if options.get('config') == 'mine.json':
    write_json(command, folder)
  if options.get('mode') in ('export', 'predict', 'postprocess'):  # into new folders only
    shutil.rmtree(folder / options['output'], ignore_errors=True)
  if options.get('mode') == 'postprocess' and not (folder / options['input']).exists():
    labels = (np.arange(4 * 48 * 48) % 7 > 4).astype('u1').reshape(4, 48, 48)
    zarr.save_array(str(folder / options['input']), labels)
  if 'root=DIR' in options.get('config', ''):
    _write_root(options['config'], folder)
  with mock.patch.object(data_benchmark, 'benchmark_data', QUICK_BENCHMARK):
    _run([*arguments, *_made_small(arguments, options, folder)])


def _made_small(arguments: list[str], options: dict[str, str], folder: Path) -> list[str]:
  mode, spec = options.get('mode', 'train'), options.get('config', '')
  if mode == 'prepare':
    return ['--partial']
  if 'extend' in options:
    return ['--config.train.steps=4']
  if mode not in ('train', 'benchmark') or not spec:
    return []
  if mode == 'train' and (spec.partition(':')[0] in PLAIN or spec.endswith('.json')):
    few = [f'--config.data.{split}={FEW}' for split in ('train', 'validation', 'test')]
    return SMALL + few * (spec in ('phantom', 'tiny'))
  overrides = [a.removeprefix('--config.') for a in arguments if a.startswith('--config.')]
  config = config_io.apply_overrides(config_io.load(spec), overrides)
  return recipe_support.short_run(config, folder / 'targets')


def _run(arguments: list[str]) -> None:
  code = support.run_main(*arguments)
  assert code == 0, arguments


def recipe(name: str) -> Any:
  """The module of a shipped configuration."""
  spec = importlib.util.spec_from_file_location(f'recipe_{name}', config_io.shipped()[name])
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


# Runs one line of commands after another in one process; each is the arguments of python.
FOLLOWER = """
import json, runpy, sys
from absl import flags
flags.FLAGS(['emseg_jax'])
from emseg_jax import main
for arguments in json.loads(sys.argv[1]):
  print('$ python', *arguments, flush=True)
  if arguments[:2] == ['-m', 'emseg_jax.main']:
    code = main.main(arguments[1:])
  elif arguments[:2] == ['-m', 'pytest']:
    import pytest
    code = int(pytest.main(arguments[2:]))
  else:
    runpy.run_path(arguments[0], run_name='__main__')
    code = 0
  if code:
    sys.exit(code)
"""
COPIED = ('emseg_jax', 'configs', 'pyproject.toml', 'tests/conftest.py', 'tests/model_support.py')
COPIED += ('tests/models/registry_test.py',)


def follow(page: str, folder: Path) -> None:
  """Writes the files that a page shows into a copy of the package and runs its shell blocks."""
  for name in COPIED:
    source, target = docs_support.ROOT / name, folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
      shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
    else:
      shutil.copy(source, target)
  for block in docs_support.blocks(page):
    if block.title is None:
      continue
    path = folder / block.title
    if block.language == 'diff':
      text = docs_support.apply_diff(path.read_text(encoding='utf-8'), block.text)
    else:
      assert not path.exists(), path
      text = block.text
    path.write_text(text, encoding='utf-8')
  commands = [
    docs_support.Command(page, line).arguments[1:] for line in docs_support.shell_lines(page)
  ]
  for command in commands:
    command += support.COMMON if 'emseg_jax.main' in command else []
  done = subprocess.run(
    [sys.executable, '-c', FOLLOWER, json.dumps(commands)],
    cwd=folder,
    env=os.environ | {'PYTHONPATH': str(folder)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
