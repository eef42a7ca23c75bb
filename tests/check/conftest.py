"""A fixture of the tests of the data doctor."""

import pytest
from check_support import half, texture, write


@pytest.fixture
def healthy(tmp_path):
  """Four training and two validation images."""
  write(tmp_path / 'train', [texture(i) for i in range(4)], [half()] * 4)
  write(tmp_path / 'val', [texture(i) for i in (8, 9)], [half()] * 2)
  return tmp_path
