"""Numbering, voxel sizes and the advice that follows from them, contrast, signs of images."""

import numpy as np
import pytest
import tifffile
from check_support import found, message, report, source, tissue, volume, write

from emseg_jax.check import sources
from emseg_jax.config import Config, Data, Source


@pytest.mark.parametrize(
  ('numbers', 'missing'),
  [
    ((0, 1, 2, 4, 5, 6), ['03']),
    ((1, 2, 3, 4, 5, 8, 9), ['06', '07']),
    ((0, 5, 10, 15, 25, 30, 35), ['20']),
    ((0, 1, 2, 3, 4, 5), []),
    ((0, 5, 10, 15, 20), []),
    ((3, 17, 18, 40, 77, 90), []),  # a random part
    ((0, 2, 3), []),  # too few to tell
  ],
)
def test_gaps_in_the_numbering_are_named(tmp_path, numbers, missing):
  images, labels = tissue(len(numbers))
  write(tmp_path, images, labels, numbers=numbers)
  for patch, severity in (((32, 32), 'note'), ((2, 32, 32), 'warning')):
    result = report(source(tmp_path), patch=patch)
    assert found(result, 'numbering') == [(severity, 'train')] * bool(missing)
  assert not missing or f'names: {", ".join(missing)};' in message(result, 'numbering')


def test_numbers_that_another_folder_has_are_no_gap(tmp_path):
  write(tmp_path / 'train', *tissue(6), numbers=(0, 1, 2, 4, 5, 6))
  write(tmp_path / 'val', *tissue(1, seed=5), numbers=(3,))
  pair = source(tmp_path / 'train'), source(tmp_path / 'val')
  assert found(report(*pair), 'numbering') == []


def stack(folder, name, array, voxel):
  """An ImageJ stack with a voxel size (z, y, x) in nm."""
  path = folder / f'{name}.tif'
  options = {'photometric': 'minisblack'}
  if voxel:
    metadata = {'axes': 'ZYX', 'spacing': voxel[0], 'unit': 'nm'}
    resolution = (1 / voxel[2], 1 / voxel[1])
    options = {'imagej': True, 'resolution': resolution, 'metadata': metadata}
  tifffile.imwrite(path, array, **options)
  return str(path)


def stacked(folder, *, image, label=None, other=None, **options):
  images, labels = volume((8, 64, 64))
  folder.mkdir()
  train = Source(images=stack(folder, 'i', images, image), labels=stack(folder, 'l', labels, label))
  rest, rest_labels = volume((8, 64, 64), seed=3)
  files = stack(folder, 'v', rest, other or image), stack(folder, 'vl', rest_labels, None)
  return report(train, Source(images=files[0], labels=files[1]), **options)


def test_voxel_sizes_that_differ_are_reported(tmp_path):
  fine = stacked(tmp_path / 'a', image=(50, 4, 4), label=(50, 4, 4))
  assert found(fine, 'voxel size') == []
  assert found(stacked(tmp_path / 'b', image=None, label=(50, 4, 4)), 'voxel size') == []
  label = stacked(tmp_path / 'c', image=(50, 4, 4), label=(50, 8, 8))
  assert found(label, 'voxel size') == [('error', 'train')]
  assert '50 x 8 x 8 nm' in message(label, 'voxel size')
  split = stacked(tmp_path / 'd', image=(50, 4, 4), other=(50, 6, 6))
  assert found(split, 'voxel size') == [('warning', 'validation')]


@pytest.mark.parametrize(
  ('voxel', 'patch', 'pool'),
  [
    # 128 / 12.5 = 10 sections; three flat poolings leave 12.5 / 8 = 1.6
    ((50, 4, 4), '(8, 128, 128)', '[[1, 2, 2], [1, 2, 2], [1, 2, 2]]'),  # there are 8 sections only
    ((8, 4, 4), '(8, 128, 128)', '[[1, 2, 2], [2, 2, 2], [2, 2, 2]]'),
    ((5, 5, 5), 'about cubes', 'equal in all axes'),
    (None, 'unknown', 'no patch'),
  ],
)
def test_patch_and_strides_follow_from_the_voxel_size(tmp_path, voxel, patch, pool):
  advice = stacked(tmp_path / 'a', image=voxel).advice
  assert patch in advice
  assert pool in advice


def test_flat_poolings_end_where_voxels_are_about_cubes():
  count = sources._count_flat_poolings
  assert [count(r) for r in (1.4, 1.5, 2.9, 3, 5.9, 6, 100)] == [0, 1, 1, 2, 2, 3, 3]


def test_patch_is_compared_with_the_volume_in_nm_and_sections(tmp_path):
  cube = stacked(tmp_path / 'a', image=(50, 4, 4), patch=(8, 32, 32))  # 400 x 128 x 128 nm
  assert found(cube, 'patch') == []
  flat = stacked(tmp_path / 'b', image=(50, 4, 4), patch=(8, 16, 16))  # 400 x 64 x 64 nm
  assert '400 x 64 x 64 nm' in message(flat, 'patch')
  deep = stacked(tmp_path / 'c', image=(4, 4, 4), patch=(16, 32, 32))
  assert 'has 8 sections, fewer than data.patch' in message(deep, 'patch')


def test_nearly_blank_section_is_a_warning(tmp_path):
  images, labels = (a.copy() for a in tissue(5))
  images[3] = np.random.default_rng(0).normal(128, 3, images[3].shape)
  write(tmp_path, images, labels)
  result = report(source(tmp_path))
  assert found(result, 'contrast') == [('warning', 'train')]
  assert 'images/03.png: is nearly blank: its std is 3' in message(result, 'contrast')
  images[3] = tissue(5)[0][3] // 3 + 80  # faint, but not blank
  write(tmp_path, images, labels)
  assert found(report(source(tmp_path)), 'contrast') == []


def test_unsigned_values_read_as_signed_are_told_from_signed_ones(tmp_path):
  images, labels = tissue(3)
  tifffile.imwrite(tmp_path / 'l.tif', labels, photometric='minisblack')
  for array, expected in (
    (images.view(np.int8), [('warning', 'train')]),
    ((images.astype(int) - 128).astype(np.int8), [('note', 'train')]),
    ((images // 2).astype(np.int8), []),
    (images, []),
  ):
    tifffile.imwrite(tmp_path / 'i.tif', array, photometric='minisblack')
    files = Source(images=f'{tmp_path}/i.tif', labels=f'{tmp_path}/l.tif')
    assert found(report(files), 'sign') == expected


def test_data_sets_bring_their_own_labels(tmp_path):
  given = Source(images='tfds://tissue?split=train'), Source(images='images.tif')
  config = Config(data=Data(train=given))
  problems = [p for p in sources.judge_sources(config) if p.kind == 'unlabelled']
  assert [p.message.partition(':')[0] for p in problems] == ['images.tif']
