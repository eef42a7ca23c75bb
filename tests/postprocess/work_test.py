"""Tasks that are shared, taken over, and not begun again."""

import itertools
import threading

import numpy as np
import pytest

from emseg_jax.errors import Interrupted
from emseg_jax.postprocess import work as work_lib
from emseg_jax.postprocess.grid import Grid
from emseg_jax.postprocess.work import Gone, Work

GRID = Grid((4, 6, 9), (2, 3, 4))  # 2 x 2 x 3 blocks


def square(number):
  return np.array([[number * number]])


def numbers(found):
  return [int(array[0, 0]) for array in found]


def test_what_was_found_comes_in_the_order_of_the_tasks_and_again_without_work(tmp_path):
  work = Work(GRID, tmp_path)
  expected = [n * n for n in range(100)]  # more than there are shares
  assert numbers(work.tasks('a', 100, square)) == expected
  assert numbers(Work(GRID, tmp_path).tasks('a', 100, lambda n: pytest.fail('again'))) == expected


def test_every_block_is_done_once_whoever_is_there(tmp_path):
  boxes, lock = [], threading.Lock()

  def do(box):
    with lock:
      boxes.append(box)
    return square(len(boxes))

  found = []
  threads = [
    threading.Thread(target=lambda: found.append(Work(GRID, tmp_path).blocks('a', do)))
    for _ in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(boxes) == sorted(GRID.boxes())
  assert len(found) == 4
  assert len({tuple(numbers(f)) for f in found}) == 1


def test_the_share_of_one_that_failed_is_taken_over(tmp_path):
  def fail(number):
    if number == 5:
      raise OSError('disk full')
    return square(number)

  with pytest.raises(OSError, match='disk full'):
    Work(GRID, tmp_path).tasks('a', 8, fail)
  done = []

  def rest(number):
    done.append(number)
    return square(number)

  assert numbers(Work(GRID, tmp_path).tasks('a', 8, rest)) == [n * n for n in range(8)]
  assert done == [5, 6, 7]


def test_one_that_waits_for_others_may_be_stopped(tmp_path, monkeypatch):
  monkeypatch.setattr(work_lib, 'WAIT', 0.001)
  asked = itertools.count()
  waiting = Work(Grid(GRID.shape, GRID.block, lambda: next(asked) > 3), tmp_path)

  def wait(number):
    with pytest.raises(Interrupted, match='start the same command again'):
      waiting.tasks('a', 1, square)
    return square(number)

  Work(GRID, tmp_path).tasks('a', 1, wait)


@pytest.mark.parametrize('again', [False, True])
def test_a_folder_that_others_have_removed_is_not_begun_again(tmp_path, again):
  folder = tmp_path / 'f'
  folder.mkdir()
  work = Work(GRID, folder)
  folder.rename(tmp_path / 'g')
  if again:  # as a store makes it
    folder.mkdir()
  with pytest.raises(Gone):
    work.tasks('a', 1, square)
  with pytest.raises(Gone):
    work.scratch('s', 'u1')
