"""The table against scikit-image's regionprops."""

import csv

import numpy as np
import pytest
import skimage.measure
from hypothesis import given, settings
from postprocess_support import blocks, shapes

from emseg_jax.postprocess.grid import Grid, window
from emseg_jax.postprocess.table import Statistics, measure


def gather(ids, block, border=(0, 1, 2)):
  statistics = Statistics(int(ids.max()), ids.shape, border)
  for start, stop in Grid(ids.shape, block).boxes():
    statistics.add(measure(start, ids[window(start, stop)]))
  return statistics


def rows_of(statistics, path, voxel_size):
  statistics.write(path, voxel_size)
  with open(path, encoding='utf-8', newline='') as file:
    return list(csv.DictReader(file))


@settings(max_examples=20, deadline=None)
@given(shapes, blocks)
def test_statistics_are_those_of_regionprops(shape, block):
  rng = np.random.default_rng(sum(shape))
  ids = skimage.measure.label(rng.integers(0, 2, shape), connectivity=1).astype(np.uint32)
  found = gather(ids, block)
  for region in skimage.measure.regionprops(ids):
    row = region.label - 1
    assert found.voxels[row] == region.num_pixels
    np.testing.assert_allclose(found.centroid[row], region.centroid)
    assert (*found.start[row], *found.stop[row]) == region.bbox
    faces = [*(a == 0 for a in region.bbox[:3]), *np.equal(region.bbox[3:], shape)]
    assert found.at_border[row] == any(faces)


IDS = np.zeros((4, 6, 8), np.uint32)
IDS[1:3, 2:4, 3:6] = 2
IDS[0, 0, :3] = 1


def test_the_file_is_in_nanometres_where_the_voxel_size_is_known(tmp_path):
  rows = rows_of(gather(IDS, (2, 2, 4)), tmp_path / 'a.csv', (30.0, 5.0, 4.0))
  assert list(rows[0]) == [
    *('id', 'voxels', 'volume_nm3', 'centroid_z_nm', 'centroid_y_nm', 'centroid_x_nm'),
    *('start_z', 'start_y', 'start_x', 'stop_z', 'stop_y', 'stop_x', 'touches_border'),
  ]
  # 3 voxels of 600 nm³ around (0, 0, 1); 12 around (1.5, 2.5, 4).
  assert ','.join(rows[0].values()) == '1,3,1800,0,0,4,0,0,0,1,1,3,yes'
  assert ','.join(rows[1].values()) == '2,12,7200,45,12.5,16,1,2,3,3,4,6,no'


@pytest.mark.parametrize('size', [None, (None, 5.0, 5.0)])
def test_without_a_voxel_size_it_is_in_voxels(tmp_path, size):
  rows = rows_of(gather(IDS, (4, 6, 8)), tmp_path / 'a.csv', size)
  assert rows[1]['volume_nm3'] == ''
  assert [rows[1][f'centroid_{a}_voxels'] for a in 'zyx'] == ['1.5', '2.5', '4']


def test_large_volumes_are_as_exact_as_integers(tmp_path):
  statistics = Statistics(1, (10**6,) * 3, (0, 1, 2))
  for z in (0, 999_999):
    statistics.add(measure((z, 123_456, 999_998), np.ones((1, 1, 2), np.uint32)))
  row = rows_of(statistics, tmp_path / 'a.csv', (1.0, 1.0, 1.0))[0]
  assert row['centroid_z_nm'] == '499999.5'
  assert row['centroid_x_nm'] == '999998.5'
  assert row['touches_border'] == 'yes'


def test_without_instances_there_is_a_header_only(tmp_path):
  statistics = gather(np.zeros((2, 3, 4), np.uint32), (2, 2, 2))
  assert rows_of(statistics, tmp_path / 'a.csv', None) == []
  assert (tmp_path / 'a.csv').read_text().startswith('id,voxels,')
