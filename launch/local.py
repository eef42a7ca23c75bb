"""Several processes on this machine that train one network together.

    python launch/local.py --processes=2 [--gpus=8] [--restarts=3] -- --config=... --workdir=...

What follows -- are the flags of `python -m emseg_jax.main`. Lines of process 1 begin with [1]. When
a process is lost (killed, or aborted by the runtime for want of another), the others are ended and
all start again from the last checkpoint. Wrong input and errors of the program are not tried again:
they would be the same. SIGTERM and Ctrl-C are passed on: the run is saved, and the exit code is 75.
With --gpus, every process gets an equal share of that many. One process can use all GPUs of a
machine, so there this is for trying out what runs on many machines.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

FINAL = {0: 'done', 2: 'bad input', 3: 'the loss stopped being finite', 75: 'interrupted and saved'}
GRACE = 10.0  # seconds in which processes end by themselves once one of them has


def main(argv: Sequence[str]) -> int:
  """Returns the exit code of the processes: 0, 2, 3 or 75; 1 for errors, and if they were lost too
  often.
  """
  options, command = _parse(argv)
  stop = threading.Event()
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: stop.set())
  for left in reversed(range(options.restarts + 1)):
    code, failed = _run_once(options, command, stop)
    if failed is None:
      _say(f'{FINAL[code]}, exit code {code}')
      return code
    if not _is_lost(code):
      _say(
        f'process {failed} ended with an error (exit code {code}), see its last lines; not again'
      )
      return 1
    _say(f'process {failed} was lost ({_describe(code)}); the others were ended')
    if stop.is_set():
      return 1
    if left:
      _say(f'starting again from the last checkpoint, {left - 1} more times at most')
  return 1


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  parser = argparse.ArgumentParser(usage='local.py --processes=N [options] -- FLAGS OF emseg_jax')
  parser.add_argument('--processes', type=int, required=True, help='how many')
  parser.add_argument('--restarts', type=int, default=3, help='at most, after a lost process')
  parser.add_argument('--gpus', type=int, default=0, help='of this machine, shared out equally')
  own = argv[: argv.index('--')] if '--' in argv else argv
  options = parser.parse_args(own)
  if options.processes < 1 or options.restarts < 0 or options.gpus % options.processes:
    parser.error('--processes must be at least 1, --restarts 0, and --gpus a multiple of processes')
  return options, [sys.executable, '-m', 'emseg_jax.main', *argv[len(own) + 1 :]]


def _run_once(
  options: argparse.Namespace, command: Sequence[str], stop: threading.Event
) -> tuple[int, int | None]:
  """Exit code of all, None; or that of the first that failed, and which it is."""
  port = _free_port()
  running = [_start(i, options, command, port) for i in range(options.processes)]
  printers = [
    threading.Thread(target=_print_lines, args=(i, process.stdout))
    for i, process in enumerate(running)
  ]
  for printer in printers:
    printer.start()
  passed_on, ended, failed = False, None, None
  while any(process.poll() is None for process in running):
    if stop.is_set() and not passed_on:
      passed_on = True
      for process in running:
        process.terminate()
    codes = [process.poll() for process in running]
    failed = failed or _first_failed(codes)
    if ended is None and any(code is not None for code in codes):
      ended = time.monotonic()
    if failed or (ended is not None and time.monotonic() - ended > GRACE):
      for process in running:
        process.kill()  # they wait for one that is gone; what counts is in the checkpoint
    time.sleep(0.05)
  for printer in printers:
    printer.join()
  codes = [process.returncode for process in running]
  told = [code for code in codes if code in FINAL and code != 0]
  if told:  # others were killed while they waited for the one that had ended so
    return max(told), None
  return failed or _first_failed(codes) or (0, None)


def _first_failed(codes: Sequence[int | None]) -> tuple[int, int] | None:
  """Exit code and number of the process whose end the others could not do without, if any.

  One that is lost leaves others with an error of communication, of which they may have ended, too.
  """
  failed = [(code, i) for i, code in enumerate(codes) if code not in (None, *FINAL)]
  return next((f for f in failed if _is_lost(f[0])), failed[0] if failed else None)


def _is_lost(code: int) -> bool:
  """Whether a signal ended the process, its own abort included; 128 + signal is how shells put it.

  Everything else but FINAL is Python's exit code of an uncaught exception, 1.
  """
  return code < 0 or code > 128


def _start(
  index: int, options: argparse.Namespace, command: Sequence[str], port: int
) -> subprocess.Popen:
  environment = os.environ | {
    'EMSEG_COORDINATOR': f'127.0.0.1:{port}',
    'EMSEG_NUM_PROCESSES': str(options.processes),
    'EMSEG_PROCESS_ID': str(index),
  }
  if options.gpus:
    share = options.gpus // options.processes
    own = range(index * share, (index + 1) * share)
    environment['CUDA_VISIBLE_DEVICES'] = ','.join(map(str, own))
  return subprocess.Popen(
    command,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    errors='replace',
    start_new_session=True,  # Ctrl-C reaches them once, through us
  )


def _print_lines(index: int, lines: IO[str]) -> None:
  for line in lines:
    print(f'[{index}] {line}', end='', flush=True)


def _free_port() -> int:
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


def _describe(code: int) -> str:
  name = signal.Signals(-code if code < 0 else code - 128).name
  if name == 'SIGABRT':
    return f'{name}, which is how the runtime ends it when it hears nothing of another process'
  return f'killed by {name}'


def _say(text: str) -> None:
  print(f'[local] {text}', flush=True)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
