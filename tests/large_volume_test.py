"""Memory of block-wise prediction and of evaluation does not depend on the size of the volume."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / 'large_volume.py'


def _run(folder, *shape, what='predict'):
  folder.mkdir()
  command = [sys.executable, str(SCRIPT), str(folder), *map(str, shape), what]
  return json.loads(subprocess.check_output(command, text=True).splitlines()[-1])


@pytest.mark.long
def test_four_times_the_volume_takes_a_tenth_more_memory_at_most(tmp_path):
  small = _run(tmp_path / 'small', 256, 1024, 1024)  # 0.25 GiB
  large = _run(tmp_path / 'large', 1024, 1024, 1024)  # 1 GiB
  print(f'0.25 GiB: {small}\n1 GiB: {large}')
  assert large['memory'] < 1.1 * small['memory']


@pytest.mark.long
@pytest.mark.parametrize('what', ['evaluate3d', 'evaluate2d'])
def test_evaluation_of_four_times_the_sections_takes_a_tenth_more_memory_at_most(tmp_path, what):
  # 192 sections more are 50 Mvoxel: 0.4 GB of probabilities of two classes, 0.2 GB of the image.
  small = _run(tmp_path / 'small', 64, 512, 512, what=what)
  large = _run(tmp_path / 'large', 256, 512, 512, what=what)
  print(f'{what}: 64 sections {small}, 256 sections {large}')
  assert large['memory'] < 1.1 * small['memory']
