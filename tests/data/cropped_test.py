"""A box of a volume reads like the volume it is cut from."""

import numpy as np
import pytest

from emseg_jax.data import volumes
from emseg_jax.data.cropped import Cropped

VALUES = np.arange(5 * 6 * 7, dtype=np.uint16).reshape(5, 6, 7)


def test_sections_boxes_and_names_are_those_of_the_box():
  whole = volumes.ArrayVolume(VALUES, name='v', voxel_size_zyx=(40.0, 4.0, 4.0))
  box = Cropped(whole, (1, 2, 0), (4, 6, 5))
  expected = VALUES[1:4, 2:6, 0:5]
  assert len(box) == 3
  assert box.section_shape(0) == (4, 5)
  np.testing.assert_array_equal(box[:], expected)
  np.testing.assert_array_equal(box.box((1, 0, 2), (3, 2, 5)), expected[1:3, 0:2, 2:5])
  assert box.names == ('v[001]', 'v[002]', 'v[003]')
  assert box.voxel_size_zyx == (40.0, 4.0, 4.0)
  with pytest.raises(IndexError):
    box.section(3)
