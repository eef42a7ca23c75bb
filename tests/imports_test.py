"""The order in which modules build on each other, what may not be imported, and sizes.

The order below is the architecture: a module imports only from earlier ones, or from its own
package. It is read from the source, so that imports inside functions count as well.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / 'emseg_jax'
CONFIGS = ROOT / 'configs'

ORDER = (
  'errors',
  'memory',
  'config',
  'config_io',
  'colours',
  'data',
  'view',
  'manifest',
  'postprocess',
  'prepare',
  'interrupt',
  'processes',
  'devices',
  'sharding',
  'augment',
  'models',
  'flops',
  'collectives',
  'zoo',
  'pretrained',
  'losses',
  'metrics',
  'freezing',
  'optim',
  'train_state',
  'norm_statistics',
  'train_step',
  'experiment',
  'start_table',
  'bundle',
  'tiling',
  'train_memory',
  'predict_memory',
  'benchmark',
  'torch_reading',
  'data_benchmark',
  'checkpoint',
  'workdir',
  'symmetries',
  'predict',
  'loading',
  'predict_images',
  'block_plan',
  'block_predict',
  'block_job',
  'volume_prediction',
  'instance_prediction',
  'volume_boxes',
  'fuse',
  'baselines',
  'volume_scores',
  'evaluation',
  'instance_evaluation',
  'verdict',
  'train_input',
  'metric_writer',
  'progress',
  'train_start',
  'trainer',
  'report',
  'report_cases',
  'segmenter',
  'export',
  'check',
  'auto',
  'fine_tune',
  'api',
  'command_help',
  'mode_help',
  'outcome',
  'call',
  'tool_modes',
  'modes',
  'main',
  'demo',
)
ON_THE_DEVICE = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'chex'}
LONGEST_FILE = 320
LONGEST_FUNCTION = 60

SOURCES = sorted(PACKAGE.rglob('*.py'))
CONFIG_FILES = sorted(CONFIGS.glob('*.py'))


def _layer(path: Path) -> str:
  """'emseg_jax/data/pairs.py' -> 'data'."""
  return path.relative_to(PACKAGE).with_suffix('').parts[0]


def _imports(path: Path) -> set[str]:
  """Every imported module, absolute; 'from emseg_jax import data' counts as emseg_jax.data."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}:{node.lineno}: relative import'
      if node.module == 'emseg_jax':
        found |= {f'emseg_jax.{alias.name}' for alias in node.names}
      else:
        found.add(node.module)
  return found


def _own(path: Path) -> set[str]:
  """The layers of the package that a file imports from."""
  return {name.split('.')[1] for name in _imports(path) if name.startswith('emseg_jax.')}


def _name(path: Path) -> str:
  return str(path.relative_to(ROOT))


def test_the_reader_of_imports_sees_every_form(tmp_path):
  path = tmp_path / 'x.py'
  path.write_text(
    'import jax.numpy as jnp\nfrom emseg_jax import a, b as c\nfrom emseg_jax.d.e import f\n'
    'def g():\n  import emseg_jax.h\n'
  )
  assert _imports(path) == {
    'jax.numpy',
    'emseg_jax.a',
    'emseg_jax.b',
    'emseg_jax.d.e',
    'emseg_jax.h',
  }
  assert _own(path) == {'a', 'b', 'd', 'h'}


def test_every_module_has_a_place_in_the_order():
  assert len(SOURCES) > 30
  assert {_layer(p) for p in SOURCES} - {'__init__'} <= set(ORDER)


@pytest.mark.parametrize('path', SOURCES, ids=_name)
def test_a_module_imports_only_from_earlier_ones(path):
  layer = _layer(path)
  earlier = set(ORDER[: ORDER.index(layer)]) if layer != '__init__' else set()
  if path.parent != PACKAGE:  # a module of a sub-package may use its neighbours
    earlier.add(layer)
  assert _own(path) <= earlier


@pytest.mark.parametrize('path', sorted((PACKAGE / 'data').rglob('*.py')), ids=_name)
def test_data_runs_without_devices(path):
  assert _own(path) <= {'errors', 'config', 'data'}
  libraries = {name.split('.')[0] for name in _imports(path)}
  assert not libraries & ON_THE_DEVICE
  if path.name != 'pipeline.py':
    assert 'grain' not in libraries


@pytest.mark.parametrize('path', CONFIG_FILES, ids=_name)
def test_a_shipped_configuration_knows_the_fields_only(path):
  allowed = {'config', 'errors'} | ({'auto'} if path.name == 'auto.py' else set())
  assert _own(path) <= allowed
  others = {n.split('.')[0] for n in _imports(path)} - {'emseg_jax'}
  assert others <= set(sys.stdlib_module_names)


def _modules_after(statement: str) -> set[str]:
  code = f'{statement}\nimport sys\nprint(*sorted(sys.modules))'
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  return {name.split('.')[0] for name in done.stdout.split()}


def test_importing_the_package_or_its_configuration_imports_no_jax():
  loaded = _modules_after('import emseg_jax, emseg_jax.config_io, emseg_jax.data.pairs')
  assert 'emseg_jax' in loaded
  assert not loaded & (ON_THE_DEVICE | {'grain', 'matplotlib', 'tensorboardX'})


def test_nothing_needs_tensorflow_or_torch():
  names = [f'emseg_jax.{p.relative_to(PACKAGE).with_suffix("")}'.replace('/', '.') for p in SOURCES]
  imports = [name.removesuffix('.__init__') for name in names]
  foreign = ('tensorflow', 'torch', 'keras', 'tf_keras')
  # As if they were not installed. Libraries that try one of these on their own carry on without.
  absent = f"""import sys
class Absent:
  def find_spec(name, path=None, target=None):
    if name.split('.')[0] in {foreign}:
      raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent)
"""
  assert 'jax' in _modules_after(f'{absent}import {", ".join(imports)}, tensorboardX')


@pytest.mark.parametrize('path', [*SOURCES, *CONFIG_FILES], ids=_name)
def test_files_and_functions_are_short_enough_to_read(path):
  text = path.read_text(encoding='utf-8')
  assert len(text.splitlines()) <= LONGEST_FILE
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      assert node.end_lineno - node.lineno + 1 <= LONGEST_FUNCTION, node.name
