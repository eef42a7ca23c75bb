"""launch/local.py: which ends of a process are tried again, and which are not.

The launcher is the real one; the program that it starts is a stand-in that ends as it is told.
"""

import json
import runpy
import signal
import subprocess
import sys

import pytest
import support

# Ends of each process at each start: an exit code, 'raise', 'wait', or the name of a signal.
PROGRAM = """
import json, os, pathlib, signal, sys, time
index = int(os.environ['EMSEG_PROCESS_ID'])
mine, other = (pathlib.Path(sys.argv[1]) / f'started{i}' for i in (index, 1 - index))
number = int(mine.read_text()) if mine.exists() else 0
mine.write_text(str(number + 1))
while not other.exists() or int(other.read_text() or 0) <= number:
  time.sleep(0.01)  # nothing ends before both have begun
print(f'start {number}', flush=True)
end = json.loads(sys.argv[2])[number][index]
if end == 'raise':
  raise RuntimeError('broken')
if end == 'wait':
  time.sleep(600)
if isinstance(end, str):
  os.kill(os.getpid(), getattr(signal, end))
sys.exit(end)
"""


def _launch(folder, ends, *options):
  """Exit code and output of the launcher, and how often it started process 1."""
  package = folder / 'emseg_jax'
  package.mkdir()
  (package / '__init__.py').touch()
  (package / 'main.py').write_text(PROGRAM)
  launcher = str(support.ROOT / 'launch' / 'local.py')
  command = [launcher, '--processes=2', *options, '--', str(folder), json.dumps(ends)]
  done = subprocess.run(
    [sys.executable, *command],
    cwd=folder,  # where `python -m` looks first
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  return done.returncode, done.stdout, int((folder / 'started1').read_text())


@pytest.mark.parametrize('code', [2, 3, 75])
def test_codes_that_mean_something_are_final(tmp_path, code):
  found, output, starts = _launch(tmp_path, [[code, code]])
  assert (found, starts) == (code, 1)
  assert f'exit code {code}' in output


def test_an_error_of_the_program_is_not_tried_again(tmp_path):
  code, output, starts = _launch(tmp_path, [['wait', 'raise']] * 4)
  assert (code, starts) == (1, 1)
  assert 'RuntimeError: broken' in output
  assert '[local] process 1 ended with an error (exit code 1), see its last lines' in output


@pytest.mark.parametrize('end', ['SIGKILL', 'SIGABRT', 'SIGSEGV', 134, 137])
def test_a_process_that_is_lost_is_tried_again(tmp_path, end):
  code, output, starts = _launch(tmp_path, [['wait', end], [0, 0]])
  assert (code, starts) == (0, 2)
  name = end if isinstance(end, str) else signal.Signals(end - 128).name
  reason = 'when it hears nothing of another process' if name == 'SIGABRT' else f'killed by {name}'
  assert f'{reason}); the others were ended' in output
  assert '[1] start 1' in output


@pytest.mark.parametrize(
  ('codes', 'expected'),
  [
    ([1, -9], (-9, 1)),  # the first noticed that the second was gone
    ([1, 134], (134, 1)),
    ([-6, -9], (-6, 0)),
    ([None, 1], (1, 1)),
    ([0, None], None),
    ([2, 75], None),
  ],
)
def test_errors_for_want_of_a_lost_process_are_not_taken_for_the_cause(codes, expected):
  path = support.ROOT / 'launch' / 'local.py'
  assert runpy.run_path(str(path))['_first_failed'](codes) == expected


def test_it_is_not_tried_again_forever(tmp_path):
  code, output, starts = _launch(tmp_path, [['wait', 'SIGKILL']] * 3, '--restarts=2')
  assert (code, starts) == (1, 3)
  assert output.count('starting again') == 2
