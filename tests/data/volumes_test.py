"""Folders, slicing and sharing of volumes; TIFF, PNG and JPEG have tests of their own."""

import concurrent.futures
import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from emseg_jax.data import volumes
from emseg_jax.errors import DataError


def random_image(*shape, dtype=np.uint8, seed=0):
  values = np.random.default_rng(seed).integers(0, 65536, shape)
  return values > 32768 if np.dtype(dtype) == bool else values.astype(dtype)


def test_folder_is_in_natural_order_and_skips_what_is_no_image(tmp_path):
  shapes = {'img10.png': (4, 5), 'img2.png': (6, 5), 'img1.tif': (4, 7), 'Img3.JPG': (8, 8)}
  for name, shape in shapes.items():
    Image.fromarray(random_image(*shape)).save(tmp_path / name)
  (tmp_path / 'masks').mkdir()
  for name in ('.hidden.png', 'info.json', 'notes.TXT', 'table.csv', 'README.md'):
    (tmp_path / name).write_text('x')
  volume = volumes.open_volume(tmp_path)
  assert (volume.kind, volume.axes) == ('folder', 'NYX')
  assert volume.names == ('Img3', 'img1', 'img2', 'img10')
  assert [volume.section_shape(i) for i in range(4)] == [(8, 8), (4, 7), (6, 5), (4, 5)]
  np.testing.assert_array_equal(volume.section(3), random_image(4, 5))
  assert [Path(file).name for file in volume.files] == [
    'Img3.JPG',
    'img1.tif',
    'img2.png',
    'img10.png',
  ]


@pytest.mark.parametrize(
  ('odd', 'what'),
  [
    (random_image(4, 4, dtype=np.uint16), r'c\.png: is uint16 grey, but .*a\.png is uint8 grey'),
    (random_image(4, 4, 3), r'c\.png: is uint8 RGB, but .*a\.png is uint8 grey'),
  ],
)
def test_mixed_folder_is_refused_naming_the_first_odd_file(tmp_path, odd, what):
  for name in ('a', 'b', 'd'):
    Image.fromarray(random_image(4, 4)).save(tmp_path / f'{name}.png')
  Image.fromarray(odd).save(tmp_path / 'c.png')
  with pytest.raises(DataError, match=what):
    volumes.open_volume(tmp_path)


def test_folders_without_images_say_what_is_readable(tmp_path):
  with pytest.raises(DataError, match=r'holds no images \(readable: .png, .jpg'):
    volumes.open_volume(tmp_path)
  (tmp_path / 'images').mkdir()
  (tmp_path / 'info.json').write_text('{}')
  with pytest.raises(DataError, match='one of its folders images'):
    volumes.open_volume(tmp_path)


def test_unreadable_inputs_name_the_path_and_what_is_allowed(tmp_path):
  with pytest.raises(DataError, match=r'nothing\.tif: no such file'):
    volumes.open_volume(tmp_path / 'nothing.tif')
  (tmp_path / 'a.bmp').write_bytes(b'BM')
  with pytest.raises(DataError, match=r'a\.bmp: \.bmp is not readable, only \.png, \.jpg'):
    volumes.open_volume(tmp_path / 'a.bmp')
  with pytest.raises(DataError, match=r'a\.bmp: \.bmp is not readable'):
    volumes.open_volume(tmp_path)


def test_folder_with_a_stack_or_with_equal_names_is_refused(tmp_path):
  Image.fromarray(random_image(4, 4)).save(tmp_path / 'a.png')
  tifffile.imwrite(tmp_path / 'b.tif', random_image(3, 4, 4), photometric='minisblack')
  with pytest.raises(DataError, match=r'b\.tif: is a stack of 3 pages in a folder of images'):
    volumes.open_volume(tmp_path)
  (tmp_path / 'b.tif').unlink()
  Image.fromarray(random_image(4, 4)).save(tmp_path / 'a.tif')
  with pytest.raises(DataError, match=r'a\.png and a\.tif have the same name'):
    volumes.open_volume(tmp_path)


def test_a_file_that_vanishes_after_opening_is_reported_as_such(tmp_path):
  for name in ('a.png', 'a.jpg', 'a.tif'):
    Image.fromarray(random_image(4, 4)).save(tmp_path / name)
    volume = volumes.open_volume(tmp_path / name)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f'{name}: cannot be read: No such file'):
      volume.section(0)


def test_volumes_slice_like_arrays(tmp_path):
  array = random_image(6, 8, 9)
  tifffile.imwrite(tmp_path / 'a.tif', array, photometric='minisblack')
  for volume in (volumes.open_volume(tmp_path / 'a.tif'), volumes.ArrayVolume(array)):
    for index in (3, -1, slice(1, 4), slice(None, None, -2), (slice(2, 5), slice(0, 4), 3)):
      np.testing.assert_array_equal(volume[index], array[index])
    np.testing.assert_array_equal(np.stack(list(volume)), array)
    for beyond in (6, -1):
      with pytest.raises(IndexError, match=f'section {beyond} of 6'):
        volume.section(beyond)


def test_sections_of_different_size_do_not_stack(tmp_path):
  for i, shape in enumerate([(4, 5), (4, 5), (6, 5)]):
    Image.fromarray(random_image(*shape)).save(tmp_path / f'{i}.png')
  volume = volumes.open_volume(tmp_path)
  assert volume[:2].shape == (2, 4, 5)
  with pytest.raises(DataError, match=r'sections 0 to 2 .* sizes are \[\(4, 5\), \(6, 5\)\]'):
    volume[:]


def test_array_volume_describes_itself_and_refuses_other_shapes():
  volume = volumes.ArrayVolume(
    random_image(2, 4, 5, 3), name='phantom', axes='NYX', voxel_size_zyx=(None, 4.0, 4.0)
  )
  assert (volume.kind, volume.axes, volume.channels) == ('memory', 'NYXC', 3)
  assert (volume.path, volume.names) == ('phantom', ('phantom[000]', 'phantom[001]'))
  assert (volume.files, volume.voxel_size_zyx) == ((), (None, 4.0, 4.0))
  for shape in [(4, 5), (2, 4, 5, 4), (0, 4, 5)]:
    with pytest.raises(DataError, match='is neither'):
      volumes.ArrayVolume(np.zeros(shape))


def test_threads_and_processes_can_share_a_volume(tmp_path):
  array = random_image(16, 64, 64, dtype=np.uint16)
  tifffile.imwrite(tmp_path / 'a.tif', array, compression='deflate', photometric='minisblack')
  (tmp_path / 'folder').mkdir()
  for i, image in enumerate(array):
    Image.fromarray(image).save(tmp_path / 'folder' / f'{i}.png')
  for name in ('a.tif', 'folder'):
    volume = pickle.loads(pickle.dumps(volumes.open_volume(tmp_path / name)))
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(16), 8)).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      for i, section in zip(order, pool.map(volume.section, order), strict=True):
        np.testing.assert_array_equal(section, array[i])
