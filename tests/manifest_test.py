"""The record of finished blocks: what survives a kill, and what is refused."""

import pytest

from emseg_jax.errors import OutputError
from emseg_jax.manifest import Manifest

RECORD = {'geometry': {'block': [64, 64, 64]}, 'network': 'abc'}


def test_finished_blocks_are_remembered(tmp_path):
  manifest = Manifest(tmp_path / 'm', RECORD)
  manifest.add(3)
  manifest.add(11)
  assert Manifest(tmp_path / 'm', RECORD).finished() == {3, 11}


def test_a_number_cut_short_does_not_count_and_is_not_joined_to_the_next(tmp_path):
  manifest = Manifest(tmp_path, RECORD)
  manifest.add(7)
  with open(tmp_path / 'finished-0.txt', 'a', encoding='ascii') as file:
    file.write('12')  # of 123: the process was killed here
  assert manifest.finished() == {7}
  again = Manifest(tmp_path, RECORD)
  again.add(5)
  assert again.finished() == {7, 5}


def test_parts_write_files_of_their_own_and_see_all(tmp_path):
  first, second = (Manifest(tmp_path, RECORD, part=part) for part in (0, 1))
  first.add(0)
  second.add(1)
  assert first.finished() == second.finished() == {0, 1}
  # What another part is writing just now is left alone.
  with open(tmp_path / 'finished-0.txt', 'a', encoding='ascii') as file:
    file.write('4')
  Manifest(tmp_path, RECORD, part=1)
  assert (tmp_path / 'finished-0.txt').read_text() == '0\n4'


def test_another_computation_is_refused_by_name(tmp_path):
  Manifest(tmp_path, RECORD).add(1)
  changed = {**RECORD, 'geometry': {'block': [64, 64, 32]}}
  with pytest.raises(OutputError, match='another geometry'):
    Manifest(tmp_path, changed)
  with pytest.raises(OutputError, match='another mask'):
    Manifest(tmp_path, {**RECORD, 'mask': 'm.tif'})
  assert Manifest(tmp_path, RECORD).finished() == {1}


def test_a_damaged_record_is_refused(tmp_path):
  Manifest(tmp_path, RECORD)
  (tmp_path / 'manifest.json').write_text('{"geome')
  with pytest.raises(OutputError, match='is damaged'):
    Manifest(tmp_path, RECORD)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OutputError, match='file'):
    Manifest(tmp_path / 'file' / 'm', RECORD)
