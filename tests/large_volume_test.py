"""Memory of block-wise prediction does not depend on the size of the volume."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / 'large_volume.py'


def _predict(folder, *shape):
  folder.mkdir()
  command = [sys.executable, str(SCRIPT), str(folder), *map(str, shape)]
  return json.loads(subprocess.check_output(command, text=True).splitlines()[-1])


@pytest.mark.long
def test_four_times_the_volume_takes_a_tenth_more_memory_at_most(tmp_path):
  small = _predict(tmp_path / 'small', 256, 1024, 1024)  # 0.25 GiB
  large = _predict(tmp_path / 'large', 1024, 1024, 1024)  # 1 GiB
  print(f'0.25 GiB: {small}\n1 GiB: {large}')
  assert large['memory'] < 1.1 * small['memory']
