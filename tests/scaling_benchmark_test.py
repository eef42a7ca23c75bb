"""The script that measures training on virtual devices: every case runs, work is split evenly."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / 'scaling_benchmark.py'


@pytest.mark.long
def test_every_case_has_a_row_and_each_device_its_share_of_the_work():
  command = [sys.executable, str(SCRIPT), '--images=8', '--patch=32', '--width=0.0625']
  text = subprocess.check_output(command, text=True)
  rows = [[cell.strip() for cell in r.split('|')[1:-1]] for r in text.splitlines() if r[:1] == '|']
  cases = {(int(r[0]), int(r[1])): float(r[4].rstrip('%')) for r in rows[2:]}
  assert set(cases) == {(1, 1), (1, 2), (1, 4), (1, 8), (2, 2)}  # processes, devices
  # Eight images on up to eight devices: nothing but the update of the parameters is done twice.
  assert all(90 < efficiency <= 100 for efficiency in cases.values())
