"""Training on 1 to 8 virtual devices, in 1 and 2 processes: speed, and the program itself.

python tests/scaling_benchmark.py [--images=8] [--patch=128] [--width=0.25]

Not a test: it takes minutes, and wants a quiet machine. The batch is the same everywhere. Virtual
devices share the cores of the machine, so images/s say little about several machines; what the
compiled program does says more: operations on each device, against those of one device divided by
their number (the efficiency), bytes read and written there, and what is sent. `--mode=benchmark`
counts all of it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
CASES = [(1, 1), (1, 2), (1, 4), (1, 8), (2, 2)]  # processes, devices in all


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--images', type=int, default=8, help='per step, a multiple of 8')
  parser.add_argument('--patch', type=int, default=128)
  parser.add_argument('--width', type=float, default=0.25)
  options = parser.parse_args()
  print(f'U-Net, width {options.width}, {options.images} patches of {options.patch}² per step')
  print('| processes | devices | images/s | GFLOP per device | efficiency | GB per device | sent |')
  print('|---|---|---|---|---|---|---|')
  alone = None
  for processes, devices in CASES:
    found = measure(options, processes, devices)['train']
    alone = alone or found
    efficiency = alone['device_gflops'] / (devices * found['device_gflops'])
    sent = ', '.join(f'{n} {kind} ({mb:.2f} MB)' for kind, (n, mb) in found['traffic'].items())
    print(
      f'| {processes} | {devices} | {found["images_per_second"]:.2f} '
      f'| {found["device_gflops"]:.3f} | {efficiency:.1%} | {found["device_gbytes"]:.3f} '
      f'| {sent or "-"} |',
      flush=True,
    )


def measure(options, processes, devices):
  """The JSON of --mode=benchmark."""
  flags = [
    *('--mode=benchmark', '--config=tiny', '--config.model.name=unet', '--config.augment={}'),
    f'--config.model.options={{"width":{options.width}}}',
    f'--config.data.patch=({options.patch},{options.patch})',
    f'--config.train.batch_size={options.images}',
  ]
  here = devices // processes
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={here}',
    'PYTHONPATH': str(ROOT),
  }
  with tempfile.TemporaryDirectory() as folder:
    flags.append(f'--output={folder}/speed.json')
    command = [sys.executable, '-m', 'emseg_jax.main', *flags]
    if processes > 1:
      launcher = [str(ROOT / 'launch' / 'local.py'), f'--processes={processes}', '--restarts=0']
      command = [sys.executable, *launcher, '--', *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
      sys.exit(f'{" ".join(command)} failed:\n{done.stdout}{done.stderr}')
    return json.loads(Path(folder, 'speed.json').read_text())


if __name__ == '__main__':
  main()
