"""README and docs/: every command works, every quoted message exists, generated pages are fresh.

Commands run as they stand, in a folder that holds what they name (FOLDER, IMAGES, DIR, ...); flags
are only added, to make networks and runs small. `make test` runs those of the first steps,
`make test-long` all. All are parsed, and their configurations validated, in any case.
"""

import importlib.util
import re
import subprocess
import sys
import tomllib

import docs_sandbox
import docs_support
import numpy as np
import pytest

import emseg_jax
from emseg_jax import api, config_io, errors, experiment, main

COMMANDS = docs_support.commands()
EXTENDING = 'docs/extending.md'
FOLLOWED = docs_support.shell_lines(EXTENDING)
OURS = [c for c in COMMANDS if c.is_main() and c.text not in FOLLOWED and c.arguments[3:]]
OTHERS = [c for c in COMMANDS if not c.is_main() and c.text not in FOLLOWED]

# Not run by this file; the pattern is searched for in the command.
SKIPPED = {
  r'^make test-long': 'would start itself',
  r'^make test-slurm': 'needs root and a SLURM',
  r'^docker build': 'needs docker',
  r'--mode=view': 'runs until Ctrl-C; view_test does so',
  r'^python tests/monai_benchmark': 'needs MONAI and minutes on a quiet machine',
}
# Run by another test or by .ci/run: the file, and what stands in it.
ELSEWHERE = {
  r'^make demo$': ('.ci/run', r'^make demo '),
  r'^make (test|parity|docs)$': ('.ci/run', r'^make lint test parity'),
  r'^source \.venv/': ('Makefile', r'^VENV \?= \.venv$'),
  r'launch/local\.py': ('tests/processes_test.py', r'launch/local\.py|launch.*local\.py'),
  r'^sbatch launch/slurm': ('tests/slurm_test.py', r'slurm\.sbatch'),
  r'^python docs/generate\.py$': ('tests/docs_test.py', r'generate\.PAGES'),
  r'^python -m pytest tests/': ('Makefile', r'-m pytest -m long'),
  r'^python tests/scaling_benchmark': ('tests/scaling_benchmark_test.py', r'scaling_benchmark\.py'),
  r'^python tests/large_volume': ('tests/large_volume_test.py', r'large_volume\.py'),
  r'^pip install': ('tests/docs_test.py', r'def test_pip_'),
}
# Run by `make test-long` only.
LONG = r'results\.md|training\.md|launch/README\.md|--mode=models|--mode=benchmark'


def _load_generator():
  path = docs_support.ROOT / 'docs' / 'generate.py'
  sys.path.append(str(path.parent))  # of the modules beside it
  spec = importlib.util.spec_from_file_location('docs_generate', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _matching(table, command):
  return [entry for pattern, entry in table.items() if re.search(pattern, command.text)]


def _marks(command):
  if '--forms=' in command.text and 'onnx' in command.text:
    return [pytest.mark.parity]  # the extra is installed for these
  return [pytest.mark.long] if re.search(LONG, f'{command.page} {command.text}') else []


def _runs():
  for command in OURS:
    if not _matching(SKIPPED, command):
      text = command.text[len('python -m emseg_jax.main ') :]
      yield pytest.param(command, marks=_marks(command), id=text)


@pytest.fixture(scope='module')
def sandbox(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    folder = tmp_path_factory.mktemp('docs')
    patch.chdir(folder)
    docs_sandbox.fill(folder)
    yield folder


generate = _load_generator()


@pytest.mark.parametrize('name', generate.PAGES)
def test_a_generated_page_is_what_the_source_says_now(name):
  committed = (docs_support.ROOT / 'docs' / name).read_text(encoding='utf-8')
  assert committed == generate.PAGES[name](), f'run {generate.COMMAND}'


def test_every_field_and_option_has_a_meaning():
  rows = [r for page in generate.PAGES.values() for r in page().splitlines() if r.startswith('| `')]
  assert len(rows) > 200
  assert not [row for row in rows if row.split(' | ')[-1].strip(' |') == '']


def test_blocks_of_shell_hold_commands_only():
  for page in docs_support.PAGES:
    for line in docs_support.shell_lines(page):
      assert line.startswith(docs_support.PROGRAMS), f'{page}: {line}'


def test_every_command_is_accounted_for(capsys):
  skipped = [(c, reason) for c in COMMANDS for reason in _matching(SKIPPED, c)]
  for command in OTHERS:
    places = _matching(ELSEWHERE, command)
    assert len(places) + len(_matching(SKIPPED, command)) == 1, command
    for path, pattern in places:
      text = (docs_support.ROOT / path).read_text(encoding='utf-8')
      assert re.search(pattern, text, re.MULTILINE), (command, path)
  with capsys.disabled():
    print(f'\n{len(COMMANDS)} commands in README and docs, {len(skipped)} skipped:')
    for command, reason in skipped:
      print(f'  {command.text}: {reason}')
  assert len(skipped) <= 5
  tables = [pattern for table in (SKIPPED, ELSEWHERE) for pattern in table]
  assert not [p for p in tables if not any(re.search(p, c.text) for c in COMMANDS)]


def test_what_other_commands_name_exists():
  project = tomllib.loads((docs_support.ROOT / 'pyproject.toml').read_text())['project']
  makefile = (docs_support.ROOT / 'Makefile').read_text()
  for command in OTHERS:
    for target in re.findall(r'^make ([a-z-]+)', command.text):
      assert re.search(rf'^{target}:', makefile, re.MULTILINE), command
    for extras in re.findall(r'\[([a-z0-9,]+)\]', command.text):
      assert set(extras.split(',')) <= set(project['optional-dependencies']), command
    for path in re.findall(r'\S+\.(?:py|sbatch)\b', command.text):
      assert (docs_support.ROOT / path).is_file(), command


@pytest.mark.parametrize('command', OURS, ids=lambda c: c.text[len('python -m emseg_jax.main ') :])
def test_a_command_is_understood(command, sandbox):
  values, overrides, runs = main._parse(['emseg_jax', *docs_sandbox.flags(command)])
  if values.mode in main.TAKE_RUNS:
    assert runs
  elif values.mode != 'models' and values.what != 'data':
    if values.config == 'mine.json':
      docs_sandbox.write_json(command, sandbox)
    needed = values.mode not in main.WITHOUT_CONFIG and not values.config
    if needed and not docs_sandbox.is_there(sandbox / values.workdir):
      creator = docs_sandbox.creator(values.workdir, OURS)
      if docs_sandbox.given(creator).get('mode') == 'export':
        creator = docs_sandbox.creator(docs_sandbox.given(creator)['workdir'], OURS)
      values.config = docs_sandbox.given(creator)['config']
    config = main._load_config(values, overrides)
    if values.mode in ('train', 'benchmark'):
      experiment.validate(config)


@pytest.mark.parametrize('command', list(_runs()))
def test_a_command_runs(command, sandbox):
  docs_sandbox.run(command, sandbox, OURS)


@pytest.mark.long
@pytest.mark.parametrize(
  'command', [c for c in OTHERS if c.text.startswith('pip')], ids=lambda c: c.text
)
def test_pip_finds_what_is_to_be_installed(command):
  """Without the packages that it needs; pip fetches setuptools alone, to build this one."""
  alone = ['--dry-run', '--no-deps']
  arguments = [sys.executable, '-m', 'pip', *command.arguments[1:], *alone]
  done = subprocess.run(
    arguments, cwd=docs_support.ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert 'does not provide the extra' not in done.stderr


@pytest.mark.parametrize('page', ['README.md', 'docs/quick_start.md'])
def test_the_example_in_python_runs(page, sandbox, monkeypatch):
  (code,) = (b.text for b in docs_support.blocks(page) if b.language == 'python')
  load = config_io.load
  monkeypatch.setattr(
    config_io,
    'load',
    lambda spec: config_io.apply_overrides(load(spec), docs_sandbox.SMALL_OVERRIDES),
  )
  docs_sandbox.write_stacks(sandbox)
  image = np.zeros((64, 64), np.uint8)  # where a page has one of the reader's own
  exec(compile(code, page, 'exec'), {'image': image})


def test_every_quoted_message_exists():
  texts = docs_support.source_texts()
  quoted = [b for b in docs_support.blocks('docs/troubleshooting.md') if b.language == 'text']
  assert len(quoted) > 20
  for block in quoted:
    assert max(map(len, block.text.split('…'))) > 15, block.text
    assert docs_support.is_quoted(block.text, texts), block.text
  assert not docs_support.is_quoted('there is no such … in the source of it', texts)


def test_published_numbers_are_those_of_the_recipes():
  page = (docs_support.ROOT / 'docs' / 'networks.md').read_text(encoding='utf-8')
  recipes = {name: docs_sandbox.recipe(name) for name in ('pmcanet', 'seget', 'emnet', 'rescrnet')}
  for name, scores in recipes['pmcanet'].PUBLISHED.items():
    row = next(r for r in page.splitlines() if r.startswith(f'| `{name}` | 0.'))
    assert re.findall(r'(0\.\d{4}) / (0\.\d{4}) \|', row) == [
      (f'{a:.4f}', f'{m:.4f}') for a, m in scores
    ]
  for name, scores in recipes['pmcanet'].ABLATED.items():
    assert f'| `{name}` | {" / ".join(f"{s:.4f}" for s in scores)} |' in page
  for name, scores in recipes['seget'].PUBLISHED.items():
    assert f'| `{name}` | {" | ".join(f"{s:.4f}" for s in scores)} |' in page
  for name, scores in recipes['emnet'].PUBLISHED.items():
    argument = {'emnet_hvec': 'none', 'single': '`single`'}.get(name, f'`network={name}`')
    if name != 'emnet_hvec':
      assert f'| {argument} | {scores[0]:.3f} / {scores[1]:.3f} |' in page
  for name, scores in recipes['rescrnet'].PUBLISHED.items():
    assert f'| `{name}` | {" / ".join(f"{s:.3f}" for s in scores.values())} |' in page


def test_public_names_are_on_the_page_of_the_api():
  page = (docs_support.ROOT / 'docs' / 'api.md').read_text(encoding='utf-8')
  shown = {
    module: re.findall(r'\w+', members)
    for module, members in re.findall(r'^::: (\S+)\n(?:.*\n\s+members: \[(.*)\])?', page, re.M)
  }
  for package in (emseg_jax, api, errors):
    for name in package.__all__:
      thing = getattr(package, name)
      assert thing.__module__ in shown, name
      assert not shown[thing.__module__] or thing.__name__ in shown[thing.__module__]


@pytest.mark.long
def test_the_examples_of_extending_work_as_they_stand(tmp_path):
  docs_sandbox.follow(EXTENDING, tmp_path)
