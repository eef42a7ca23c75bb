"""How far a run is: a live line on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

__all__ = ['Progress']

LOGGER = logging.getLogger(__name__)


class Progress:
  """Counts steps and the share of time spent waiting for data.

  Args:
    start: first step.
    total: last step.
    batch_size: images per step.
  """

  def __init__(self, *, start: int, total: int, batch_size: int):
    self._batch_size = batch_size
    self._total = total
    self._bar: Any = None
    if sys.stderr.isatty() and not _is_quiet():
      from tqdm import tqdm

      self._bar = tqdm(total=total, initial=start, unit='step', dynamic_ncols=True)
    self.restart()

  def restart(self) -> None:
    """Starts a new window of measurement, for instance after an evaluation."""
    self._steps = 0
    self._waited = 0.0
    self._since = time.perf_counter()

  def step(self, *, waited: float) -> None:
    """Notes one step, `waited` seconds of which went into waiting for its batch."""
    self._steps += 1
    self._waited += waited
    if self._bar is not None:
      self._bar.update(1)

  def window(self) -> dict[str, float]:
    """Returns the rates since the last call, and starts a new window."""
    elapsed = max(time.perf_counter() - self._since, 1e-9)
    rates = {
      'perf/steps_per_sec': self._steps / elapsed,
      'perf/images_per_sec': self._steps * self._batch_size / elapsed,
      'perf/data_wait_frac': self._waited / elapsed,
    }
    self.restart()
    return rates

  def report(self, step: int, scalars: Mapping[str, float]) -> None:
    """Shows loss and rates, with the time left at the current rate."""
    rate = scalars['perf/steps_per_sec']
    seconds = (self._total - step) / rate if rate else 0.0
    text = (
      f'loss {scalars["train/loss"]:.4f} · {rate:.2f} steps/s · '
      f'{scalars["perf/images_per_sec"]:.1f} images/s · '
      f'waiting for data {100 * scalars["perf/data_wait_frac"]:.0f} %'
    )
    if self._bar is not None:
      self._bar.set_postfix_str(text)
      return
    LOGGER.info('step %d/%d · %s · ETA %s', step, self._total, text, _clock(seconds))

  def say(self, text: str) -> None:
    """Prints a line without breaking the live one."""
    if self._bar is not None:
      self._bar.clear()
    LOGGER.info(text)
    if self._bar is not None:
      self._bar.refresh()

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


def _is_quiet() -> bool:
  """Whether messages are kept off the terminal, though a log file may have them."""
  handlers = logging.getLogger('emseg_jax').handlers
  return any(type(h) is logging.StreamHandler and h.level > logging.INFO for h in handlers)


def _clock(seconds: float) -> str:
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{rest:02d}' if hours else f'{minutes}:{rest:02d}'
