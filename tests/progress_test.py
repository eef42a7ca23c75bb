"""Rates and the line that reports them, with a clock that the test sets."""

import io
import logging
import sys

import pytest

from emseg_jax import progress
from emseg_jax.progress import Progress


class Clock:
  """Stands in for the time module."""

  def __init__(self):
    self.now = 100.0

  def perf_counter(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(progress, 'time', clock)
  monkeypatch.setattr(sys, 'stderr', io.StringIO())  # no terminal
  return clock


def test_rates_are_those_of_the_window(clock):
  counter = Progress(start=10, total=30, batch_size=8)
  for _ in range(5):
    clock.now += 2.0
    counter.step(waited=0.5)
  # 5 steps in 10 s, 8 images each, 5 * 0.5 s of waiting
  assert counter.window() == {
    'perf/steps_per_sec': 0.5,
    'perf/images_per_sec': 4.0,
    'perf/data_wait_frac': 0.25,
  }
  clock.now += 1.0
  counter.step(waited=0.0)
  assert counter.window()['perf/steps_per_sec'] == 1.0


def test_time_before_a_restart_does_not_count(clock):
  counter = Progress(start=0, total=10, batch_size=1)
  clock.now += 100.0  # an evaluation
  counter.restart()
  clock.now += 0.5
  counter.step(waited=0.0)
  assert counter.window()['perf/steps_per_sec'] == 2.0


def test_a_window_without_steps_has_rates_of_zero(clock):
  del clock
  assert set(Progress(start=0, total=1, batch_size=1).window().values()) == {0.0}


def scalars(rate):
  return {
    'train/loss': 1.23456,
    'perf/steps_per_sec': rate,
    'perf/images_per_sec': 8 * rate,
    'perf/data_wait_frac': 0.034,
  }


@pytest.mark.parametrize(
  ('rate', 'left', 'clock_text'),
  [
    (2.0, 10, '0:05'),
    (0.5, 60, '2:00'),
    (0.01, 40, '1:06:40'),  # 4000 s
    (0.0, 10, '0:00'),
  ],
)
def test_a_log_line_gives_step_loss_rates_and_time_left(clock, caplog, rate, left, clock_text):
  del clock
  counter = Progress(start=0, total=100, batch_size=8)
  with caplog.at_level(logging.INFO, 'emseg_jax'):
    counter.report(100 - left, scalars(rate))
  assert caplog.messages == [
    f'step {100 - left}/100 · loss 1.2346 · {rate:.2f} steps/s · {8 * rate:.1f} images/s · '
    f'waiting for data 3 % · ETA {clock_text}'
  ]


def test_on_a_terminal_a_live_line_counts_from_the_first_step(monkeypatch, caplog):
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr(sys, 'stderr', terminal)
  counter = Progress(start=40, total=50, batch_size=1)
  counter.step(waited=0.0)
  with caplog.at_level(logging.INFO, 'emseg_jax'):
    counter.report(41, scalars(2.0))
    counter.say('step 41: validation mIoU 0.5')
  counter.close()
  assert caplog.messages == ['step 41: validation mIoU 0.5']
  assert '41/50' in terminal.getvalue()
  assert 'loss 1.2346' in terminal.getvalue()
