"""SIGTERM and SIGINT as a flag that long loops read at their boundaries.

The first signal sets the flag: the loop saves what it has and ends with `errors.Interrupted`. The
second one, of either kind, gets Python's default treatment, so that an impatient Ctrl-C Ctrl-C
still ends the program at once.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

__all__ = ['StopFlag', 'Terminated', 'catch_signals', 'end_cleanly']


class StopFlag:
  """A flag that loops ask by calling it."""

  def __init__(self) -> None:
    self.signal_name: str | None = None

  def __call__(self) -> bool:
    return self.signal_name is not None


class Terminated(BaseException):
  """SIGTERM as an exception, like KeyboardInterrupt: what is half-written is removed on its way."""


@contextlib.contextmanager
def end_cleanly() -> Iterator[None]:
  """Makes SIGTERM raise `Terminated` while the block runs; main thread only.

  The second one ends the process at once.
  """

  def handle(number: int, frame: FrameType | None) -> None:
    del number, frame
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated

  previous = signal.signal(signal.SIGTERM, handle)
  try:
    yield None
  finally:
    signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def catch_signals() -> Iterator[StopFlag]:
  """Handles SIGTERM and SIGINT while the block runs; main thread only."""
  flag = StopFlag()
  defaults = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}

  def handle(number: int, frame: FrameType | None) -> None:
    del frame
    flag.signal_name = signal.Signals(number).name
    for caught, handler in defaults.items():
      signal.signal(caught, handler)

  previous = {number: signal.signal(number, handle) for number in defaults}
  try:
    yield flag
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
