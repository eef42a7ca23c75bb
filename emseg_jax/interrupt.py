"""SIGTERM and SIGINT as a flag that long loops read at their boundaries.

The first signal sets the flag: the loop saves what it has and ends with `errors.Interrupted`. The
second one, of either kind, gets Python's default treatment, so that an impatient Ctrl-C Ctrl-C
still ends the program at once.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ['StopFlag', 'Terminated', 'catch_signals', 'end_cleanly']


RETRY_SECONDS = 0.05


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
  """Makes SIGINT raise KeyboardInterrupt and SIGTERM `Terminated` while the block runs; main thread
  only.

  The second SIGTERM ends the process at once. A SIGINT that is ignored, as in the background of a
  script, stays so.
  """
  errors = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}

  def handle(number: int, frame: FrameType | None) -> None:
    if _loses_errors(frame):
      again = threading.Timer(RETRY_SECONDS, os.kill, (os.getpid(), number))
      again.daemon = True
      again.start()
      return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise errors[signal.Signals(number)]

  previous = {n: signal.getsignal(n) for n in errors}
  for number, handler in previous.items():
    if handler is not signal.SIG_IGN:
      signal.signal(number, handle)
  try:
    yield None
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


def _loses_errors(frame: FrameType | None) -> bool:
  """Whether Python is in a place where it prints an exception and goes on: the garbage collector
  and its callbacks, of which JAX has one.
  """
  while frame is not None:
    if frame.f_code.co_name in ('__del__', '_xla_gc_callback'):
      return True
    frame = frame.f_back
  return False


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
