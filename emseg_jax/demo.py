"""A guided tour in a few minutes: train on synthetic images, evaluate, predict, score, report.

    python -m emseg_jax.demo [--workdir=runs/demo] [--steps=N]

Every stage is an ordinary command, printed before it runs. The network has to beat the best grey
threshold by 0.2 mean IoU, otherwise the exit code is 1; with --steps (a quick look) it need not.
"""

import argparse
import json
import sys
from pathlib import Path

from absl import flags

from emseg_jax import main as main_lib
from emseg_jax.data import phantom, volumes, writers

__all__ = ['run']

MARGIN = 0.2


def _command(*arguments: str) -> None:
  """Prints and runs one command; ends the program with its exit code if it fails."""
  print(f'\n$ python -m emseg_jax.main {" ".join(arguments)}', flush=True)
  code = main_lib.main(['emseg_jax', *arguments])
  if code:
    sys.exit(code)


def _write_stack(folder: Path) -> tuple[Path, Path]:
  """Writes unseen synthetic sections and their labels as TIFF stacks, as a user would have them."""
  images, labels = phantom.make_sections(count=3, size=(256, 256), seed=4)
  paths = []
  for name, array in (('images', images), ('labels', labels)):
    volume = volumes.ArrayVolume(array, name=name)
    paths.append(writers.write_like(volume, folder / f'{name}.tif', iter(array)))
  return paths[0], paths[1]


def run(argv: list[str]) -> int:
  """Runs the tour and returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--workdir', type=Path, default=Path('runs/demo'))
  parser.add_argument('--steps', type=int, help='a quick look: fewer steps, no demand on the score')
  options = parser.parse_args(argv)
  folder = options.workdir
  shorter = [f'--config.train.steps={options.steps}'] if options.steps else []
  _command('--config=phantom', '--mode=check', *shorter)
  _command('--config=phantom', f'--workdir={folder}', *shorter)
  _command(f'--workdir={folder}', '--mode=evaluate', '--config.eval.split=test')
  images, labels = _write_stack(folder / 'demo')
  result = folder / 'predictions' / 'labels.tif'
  _command(f'--workdir={folder}', '--mode=predict', f'--input={images}', f'--output={result}')
  _command(f'--workdir={folder}', '--mode=evaluate', f'--input={result}', f'--labels={labels}')
  _command(f'--workdir={folder}', '--mode=report')
  record = json.loads((folder / 'evaluation' / 'test.json').read_text())
  network, threshold = record['scores']['miou'], record['baselines']['threshold']['miou']
  print(
    f'\nmean IoU {network:.3f} on unseen sections; the best grey threshold reaches {threshold:.3f}'
    f'\nreport:     {folder / "report.html"}\nprediction: {result}'
  )
  if not options.steps and network < threshold + MARGIN:
    print(f'The network should beat the threshold by {MARGIN}.', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  flags.FLAGS(['emseg_jax'])
  sys.exit(run(sys.argv[1:]))
