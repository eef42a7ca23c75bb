"""Post-processing that is interrupted, killed or shared: the same bytes, or a refusal."""

import contextlib
import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import support
from scipy import ndimage

from emseg_jax.config.postprocess import Postprocess
from emseg_jax.data import volumes, writers
from emseg_jax.errors import Interrupted, OutputError
from emseg_jax.postprocess import grid, journal, postprocess

SHAPE = (6, 130, 140)  # 1 x 3 x 3 blocks of 64 x 64
# Blobs that cross the faces of blocks, with a gradient that the watershed has to follow.
NOISE = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 4)
PROBABILITIES = (255 * np.clip(0.5 + NOISE / NOISE.max(), 0, 1)).astype(np.uint8)
# Every pass there is.
ALL = Postprocess(
  threshold=0.5, high=0.55, holes='all', min_voxels=20, block=(64, 64, 64),
  instances='watershed', marker_threshold=0.75,
)  # fmt: skip
FEW = Postprocess(threshold=0.7, block=(64, 64, 64))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """in.zarr, in.tif, and what comes of them without an interruption."""
  folder = tmp_path_factory.mktemp('resume')
  for name in ('in.zarr', 'in.tif'):
    writers.write_like(volumes.ArrayVolume(PROBABILITIES), folder / name, iter(PROBABILITIES))
  count = postprocess(folder / 'in.zarr', folder / 'all.zarr', ALL).count
  assert count > 10
  for name in ('few.tif', 'few.zarr'):
    assert postprocess(folder / 'in.tif', folder / name, FEW).count > 1
  return folder


def contents(path):
  """The table and every file of a result, by name; of TIFF, which gets a new UUID, the voxels."""
  table = path.with_name(f'{path.name}.csv').read_text()
  if path.is_file():
    return {'table': table, 'voxels': volumes.open_volume(path)[:].tobytes()}
  files = {str(f.relative_to(path)): f for f in path.rglob('*') if f.is_file()}
  del files['.zattrs']  # holds the name of the store
  return {'table': table} | {name: f.read_bytes() for name, f in files.items()}


def assert_complete(found, expected):
  assert contents(found) == contents(expected)
  others = [p.name for p in found.parent.iterdir() if p.name.startswith('.')]
  assert others == []


@pytest.mark.parametrize(
  ('name', 'options', 'expected'), [('in.zarr', ALL, 'all.zarr'), ('in.tif', FEW, 'few.tif')]
)
def test_stopped_again_and_again_it_ends_with_the_same_bytes(
  folder, tmp_path, name, options, expected
):
  found, starts = tmp_path / expected, 0
  while not found.exists():
    asked = itertools.count()
    starts += 1
    with contextlib.suppress(Interrupted):
      postprocess(folder / name, found, options, should_stop=lambda asked=asked: next(asked) > 8)
  assert starts > 3
  assert_complete(found, folder / expected)


class Killed(BaseException):
  """Nothing catches it, as nothing catches SIGKILL."""


def kill_at(monkeypatch, moment):
  """Dies in the middle of one of the writes, of a box or of a record, and leaves a part of it."""
  writes = itertools.count()
  write, add = grid.Scratch.write, journal.Journal.add

  def write_part(self, start, box):
    if next(writes) != moment:
      return write(self, start, box)
    half = len(box) // 2 + 1
    write(self, start, np.concatenate([box[:half], np.zeros_like(box[half:])]))
    raise Killed

  def add_part(self, number, array, **options):
    before = self._file.tell()
    add(self, number, array, **options)
    if next(writes) == moment:
      os.truncate(self._file.name, before + random.Random(moment).randrange(28))
      raise Killed

  monkeypatch.setattr(grid.Scratch, 'write', write_part)
  monkeypatch.setattr(journal.Journal, 'add', add_part)


def test_dying_in_the_middle_of_any_write_changes_nothing(folder, tmp_path, monkeypatch):
  """At 25 writes of a run, each in the start that goes on from the last one."""
  found, generator, died = tmp_path / 'all.zarr', random.Random(3), 0
  while died < 25:
    with monkeypatch.context() as patched:
      kill_at(patched, generator.randrange(12))
      try:
        postprocess(folder / 'in.zarr', found, ALL)
      except Killed:
        died += 1
    if found.exists():  # this one came through; from the start
      assert_complete(found, folder / 'all.zarr')
      shutil.rmtree(found)
  postprocess(folder / 'in.zarr', found, ALL)
  assert_complete(found, folder / 'all.zarr')


@pytest.mark.parametrize('name', ['few.zarr', 'few.tif'])
@pytest.mark.parametrize('moment', range(5))
def test_dying_while_the_output_is_put_in_place_changes_nothing(
  folder, tmp_path, monkeypatch, name, moment
):
  """Before the table, the record or the output is put there, or the folder away; 4: nowhere."""
  found, replaced, replace = tmp_path / name, itertools.count(), os.replace

  def replace_or_die(old, new):
    if new.parent == tmp_path and next(replaced) == moment:
      raise Killed
    replace(old, new)

  with monkeypatch.context() as patched:
    patched.setattr(os, 'replace', replace_or_die)
    with contextlib.suppress(Killed):
      postprocess(folder / 'in.tif', found, FEW)
      assert moment == 4
  assert next(replaced) == min(moment + 1, 4)
  postprocess(folder / 'in.tif', found, FEW)
  assert_complete(found, folder / name)


COMMAND = '--config.postprocess.threshold=0.5', '--config.postprocess.high=0.55'
COMMAND += '--config.postprocess.holes=all', '--config.postprocess.min_voxels=20'
COMMAND += '--config.postprocess.instances=watershed', '--config.postprocess.marker_threshold=0.75'
COMMAND += ('--config.postprocess.block=(64,64,64)',)


def start(folder, output):
  command = [sys.executable, '-m', 'emseg_jax.main', '--mode=postprocess', *COMMAND]
  return subprocess.Popen(
    [*command, f'--input={folder}/in.zarr', f'--output={output}'],
    env=os.environ | {'PYTHONPATH': str(support.ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.mark.parametrize('kills', [2, pytest.param(30, marks=pytest.mark.long)])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(folder, tmp_path, kills):
  found, generator, killed = tmp_path / 'all.zarr', random.Random(kills), 0
  partial = tmp_path / '.all.zarr.partial'
  while killed < kills:
    process = start(folder, found)
    before = len(list(partial.glob('*'))) if partial.exists() else 0
    while process.poll() is None and (
      not partial.exists() or len(list(partial.glob('*'))) == before
    ):
      time.sleep(0.01)  # until it has gone on
    time.sleep(generator.uniform(0, 0.3))
    if process.poll() is None:
      process.kill()
      killed += 1
    process.communicate()
    if found.exists():  # killed while it cleaned up, perhaps
      postprocess(folder / 'in.zarr', found, ALL)
      assert_complete(found, folder / 'all.zarr')
      shutil.rmtree(found)
  process = start(folder, found)
  output = process.communicate(timeout=300)[0]
  assert process.returncode == 0, output
  assert_complete(found, folder / 'all.zarr')


def test_several_at_once_share_the_blocks(folder, tmp_path):
  """Threads stand for processes: locks are those of open files, and nothing else is shared."""
  found, results = tmp_path / 'all.zarr', []

  def work():
    results.append(postprocess(folder / 'in.zarr', found, ALL).count)

  threads = [threading.Thread(target=work) for _ in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(results) == 3
  assert len(set(results)) == 1
  assert_complete(found, folder / 'all.zarr')


def interrupted(source, output, options, after):
  asked = itertools.count()
  with pytest.raises(Interrupted):
    postprocess(source, output, options, should_stop=lambda: next(asked) > after)


def test_other_options_or_another_input_are_refused(folder, tmp_path):
  source = tmp_path / 'in.zarr'
  shutil.copytree(folder / 'in.zarr', source)
  interrupted(source, tmp_path / 'o.zarr', ALL, 8)
  with pytest.raises(
    OutputError, match=r'unfinished work on another postprocess\.threshold \(0\.5, now 0\.7\)'
  ):
    postprocess(source, tmp_path / 'o.zarr', FEW)
  # One chunk is written again, as other programs do it: in its place.
  chunk = source / '0' / '0' / '0' / '0'
  chunk.write_bytes((source / '0' / '0' / '1' / '0').read_bytes())
  with pytest.raises(OutputError, match='unfinished work on another content'):
    postprocess(source, tmp_path / 'o.zarr', ALL)


def test_the_same_call_again_has_nothing_to_do(folder, tmp_path):
  path = tmp_path / 'few.zarr'
  first = postprocess(folder / 'in.tif', path, FEW)
  before = (path / '0' / '0' / '0' / '0').stat().st_mtime_ns
  assert postprocess(folder / 'in.tif', path, FEW) == first
  assert (path / '0' / '0' / '0' / '0').stat().st_mtime_ns == before
