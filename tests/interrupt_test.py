"""Signals as a flag: the first one asks, the second one ends."""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emseg_jax import interrupt

ROOT = Path(__file__).parent.parent
# Says when it is ready and when it has seen the flag; ends by itself only where nothing kills it.
LOOP = """
import time
from emseg_jax import interrupt
with interrupt.catch_signals() as stop:
  print('ready', flush=True)
  while not stop():
    time.sleep(0.01)
  print('stop', stop.signal_name, flush=True)
  time.sleep(20)
print('finished', flush=True)
"""


def start():
  process = subprocess.Popen(
    [sys.executable, '-c', LOOP],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  return process


@pytest.mark.parametrize('first', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('second', [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_sets_the_flag_and_the_second_ends_the_process(first, second):
  process = start()
  process.send_signal(first)
  assert process.stdout.readline() == f'stop {first.name}\n'
  assert process.poll() is None
  process.send_signal(second)
  output, error = process.communicate(timeout=10)
  assert process.returncode == -second  # ended by the signal itself, as a shell expects
  assert 'finished' not in output
  assert ('KeyboardInterrupt' in error) == (second == signal.SIGINT)


def test_handlers_are_what_they_were_after_the_block():
  numbers = (signal.SIGTERM, signal.SIGINT)
  before = [signal.getsignal(n) for n in numbers]
  with interrupt.catch_signals():
    assert all(signal.getsignal(n) not in before for n in numbers)
  assert [signal.getsignal(n) for n in numbers] == before
  with contextlib.suppress(RuntimeError), interrupt.catch_signals():
    signal.raise_signal(signal.SIGTERM)
    raise RuntimeError
  assert [signal.getsignal(n) for n in numbers] == before


def test_the_flag_is_down_until_a_signal_comes():
  with interrupt.catch_signals() as stop:
    assert not stop()
    assert stop.signal_name is None
    signal.raise_signal(signal.SIGINT)
    assert stop()
    assert stop.signal_name == 'SIGINT'


def test_every_block_has_a_flag_of_its_own():
  with interrupt.catch_signals() as first:
    signal.raise_signal(signal.SIGTERM)
  with interrupt.catch_signals() as second:
    assert first()
    assert not second()


ERRORS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: interrupt.Terminated}


@pytest.mark.parametrize('number', ERRORS)
def test_other_modes_end_by_an_exception_that_lets_them_clean_up(number):
  before = [signal.getsignal(n) for n in ERRORS]
  cleaned = []

  def work():
    try:
      signal.raise_signal(number)
    finally:
      cleaned.append(number)

  with pytest.raises(ERRORS[number]), interrupt.end_cleanly():
    work()
  assert cleaned == [number]
  assert [signal.getsignal(n) for n in ERRORS] == before


@pytest.mark.parametrize('number', ERRORS)
def test_a_signal_amid_garbage_collection_is_not_lost(number, capfd):
  class Collected:
    def __del__(self):
      signal.raise_signal(number)

  def work():
    Collected()  # whatever is raised there is printed and forgotten
    time.sleep(20)

  with pytest.raises(ERRORS[number]), interrupt.end_cleanly():
    work()
  assert capfd.readouterr().err == ''


def test_what_is_ignored_stays_ignored():
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    with interrupt.end_cleanly():
      signal.raise_signal(signal.SIGINT)
  finally:
    signal.signal(signal.SIGINT, before)
