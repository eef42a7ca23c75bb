"""Records that survive any interruption."""

import numpy as np

from emseg_jax.postprocess.journal import Journal, records

FIRST = (7, np.arange(6).reshape(2, 3))
SECOND = (-1, np.zeros((0, 4), int))
THIRD = (3, np.array([[5]]))


def write(path, *several):
  with Journal.locked(path) as journal:
    for number, array in several:
      journal.add(number, array)


def assert_same(found, expected):
  assert [n for n, _ in found] == [n for n, _ in expected]
  for (_, a), (_, b) in zip(found, expected, strict=True):
    np.testing.assert_array_equal(a, b)


def test_records_are_read_in_their_order(tmp_path):
  path = tmp_path / 'j'
  assert records(path) == []
  write(path, FIRST, SECOND)
  write(path, THIRD)
  assert_same(records(path), [FIRST, SECOND, THIRD])


def test_wherever_a_record_is_cut_those_before_it_count_and_new_ones_follow(tmp_path):
  path = tmp_path / 'j'
  write(path, FIRST)
  whole = path.stat().st_size
  write(path, SECOND, THIRD)
  content = path.read_bytes()
  for length in range(whole, len(content)):
    path.write_bytes(content[:length])
    before = [FIRST, SECOND] if length >= whole + 28 else [FIRST]  # a header has 28 bytes
    assert_same(records(path), before)
    write(path, THIRD)
    assert_same(records(path), [*before, THIRD])


def test_a_record_with_a_changed_byte_does_not_count(tmp_path):
  path = tmp_path / 'j'
  write(path, FIRST)
  content = bytearray(path.read_bytes())
  for place in range(len(content)):
    changed = content.copy()
    changed[place] ^= 1
    path.write_bytes(changed)
    assert records(path) == []


def test_a_file_is_written_by_one_at_a_time(tmp_path):
  path = tmp_path / 'j'
  with Journal.locked(path) as one:
    one.add(*FIRST)
    with Journal.locked(path) as other:
      assert other is None
    assert_same(records(path), [FIRST])
  with Journal.locked(path) as other:
    assert other is not None
