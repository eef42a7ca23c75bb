"""What several tests need: the command line, in this process or in its own, and tiny files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import conftest
import numpy as np
import tifffile

from emseg_jax import main, metric_writer

ROOT = Path(__file__).parent.parent
# One device and the shared compilation cache, whatever the test process itself uses.
COMMON = (f'--config.run.compile_cache={conftest.COMPILE_CACHE}', '--config.mesh.data=1')
# Quick to compile, with dropout and batch norm.
SMALL_NETWORK = (
  '--config.model.name=rescrnet',
  '--config.model.options={"conv_blocks":1,"lstm_blocks":0,"filters":4,"kernel_sizes":[3],'
  '"dilations":[1]}',
)


def run_main(*arguments: str) -> int:
  """Runs the command line in this process and returns its exit code."""
  return main.main(['emseg_jax', *arguments, *COMMON])


def start_main(*arguments: str, devices: int = 1, **kwargs) -> subprocess.Popen:
  """Starts the real entry point in a process of its own."""
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} {conftest.COMPILE_FLAGS}',
    'PYTHONPATH': str(ROOT),
  }
  command = [sys.executable, '-m', 'emseg_jax.main', *arguments, COMMON[0]]
  return subprocess.Popen(
    command,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    **kwargs,
  )


def write_pair(folder: Path, *, sections: int = 4, size: tuple[int, int] = (64, 64)) -> None:
  """Writes image.tif and label.tif: bright squares (label 255) on noise (label 0)."""
  rng = np.random.default_rng(0)
  label = np.zeros((sections, *size), np.uint8)
  label[:, size[0] // 4 : size[0] // 2, size[1] // 4 :] = 255
  image = (rng.normal(90, 10, label.shape) + 60 * (label > 0)).clip(0, 255).astype(np.uint8)
  folder.mkdir(parents=True, exist_ok=True)
  tifffile.imwrite(folder / 'image.tif', image, photometric='minisblack')
  tifffile.imwrite(folder / 'label.tif', label, photometric='minisblack')


def pair_arguments(folder: Path, *, validation: Path | None = None) -> list[str]:
  """Arguments that train the tiny configuration on files written by `write_pair`."""

  def source(where: Path) -> str:
    return json.dumps([{'images': f'{where}/image.tif', 'labels': f'{where}/label.tif'}])

  return [
    '--config=tiny',
    '--config.task.classes=["background","square"]',
    '--config.data.label_mapping={"0":0,"255":1}',
    f'--config.data.train={source(folder)}',
    f'--config.data.validation={source(validation or folder)}',
  ]


def records_without_clocks(workdir: Path) -> list[dict[str, float]]:
  """metrics.jsonl of a run: losses, rates and scores at each step."""
  records = metric_writer.read_records(workdir / 'metrics.jsonl')
  return [
    {k: v for k, v in r.items() if k != 'wall_time' and not k.startswith('perf/')} for r in records
  ]
