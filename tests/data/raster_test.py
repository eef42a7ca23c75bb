"""PNG and JPEG: bit depths, palettes, transparency, damaged files."""

import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from emseg_jax.data import volumes
from emseg_jax.errors import DataError


def random_image(*shape, dtype=np.uint8, seed=0):
  values = np.random.default_rng(seed).integers(0, 65536, shape)
  return values > 32768 if np.dtype(dtype) == bool else values.astype(dtype)


def write_png(path, width, height, depth, colour_type, rows):
  """A PNG from raw rows, for the kinds that Pillow does not write."""

  def chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

  header = struct.pack('>IIBBBBB', width, height, depth, colour_type, 0, 0, 0)
  data = zlib.compress(b''.join(b'\0' + row for row in rows))
  path.write_bytes(
    b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', data) + chunk(b'IEND', b'')
  )


def cut(path, share):
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize('dtype', [bool, np.uint8, np.uint16])
def test_grey_png_keeps_its_type(tmp_path, dtype):
  array = random_image(9, 14, dtype=dtype)
  Image.fromarray(array).save(tmp_path / 'a.png')
  volume = volumes.open_volume(str(tmp_path / 'a.png'))
  assert (volume.kind, volume.axes, volume.channels) == ('image', 'YX', 1)
  assert volume.path == str(tmp_path / 'a.png')
  assert volume.names == ('a',)
  assert volume.voxel_size_zyx is None
  assert volume.section_shape(0) == (9, 14)
  assert volume.section(0).dtype == volume.dtype == dtype
  np.testing.assert_array_equal(volume.section(0), array)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_png_with_or_without_constant_alpha_keeps_all_bits(tmp_path, dtype, channels):
  array = random_image(9, 14, channels, dtype=dtype)
  colours = 1 if channels < 3 else 3
  array[..., colours:] = np.iinfo(dtype).max
  (tmp_path / 'a.png').write_bytes(imagecodecs.png_encode(array))
  volume = volumes.open_volume(tmp_path / 'a.png')
  assert (volume.channels, volume.dtype) == (colours, dtype)
  expected = array[..., 0] if colours == 1 else array[..., :3]
  np.testing.assert_array_equal(volume.section(0), expected)


def test_transparency_that_varies_is_refused(tmp_path):
  Image.fromarray(random_image(5, 5, 4)).save(tmp_path / 'a.png')
  with pytest.raises(DataError, match=r'a\.png: its transparency varies from'):
    volumes.open_volume(tmp_path / 'a.png').section(0)


@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_palette_png_is_colour_for_images_and_index_for_labels(tmp_path, bits):
  index = np.array([[0, 1, 1], [1, 0, 1]], np.uint8)
  image = Image.frombytes('P', (3, 2), index.tobytes())
  image.putpalette([10, 20, 30, 200, 100, 50])
  image.save(tmp_path / 'a.png', bits=bits)
  volume = volumes.open_volume(tmp_path / 'a.png')
  assert volume.channels == 3
  np.testing.assert_array_equal(volume.section(0)[0, :2], [[10, 20, 30], [200, 100, 50]])
  labels = volumes.open_volume(tmp_path / 'a.png', palette='index')
  assert (labels.channels, labels.dtype) == (1, np.uint8)
  np.testing.assert_array_equal(labels.section(0), index)


def test_four_bit_grey_is_stretched_for_images_and_kept_for_labels(tmp_path):
  write_png(tmp_path / 'a.png', 4, 1, 4, 0, [bytes([0x01, 0x2F])])  # values 0, 1, 2, 15
  image = volumes.open_volume(tmp_path / 'a.png').section(0)
  np.testing.assert_array_equal(image, [[0, 17, 34, 255]])
  labels = volumes.open_volume(tmp_path / 'a.png', palette='index').section(0)
  np.testing.assert_array_equal(labels, [[0, 1, 2, 15]])


@pytest.mark.parametrize(('mode', 'axes'), [('L', 'YX'), ('RGB', 'YXC')])
def test_jpeg_is_read_as_pillow_decodes_it(tmp_path, mode, axes):
  source = Image.fromarray(random_image(16, 24, 3)).convert(mode)
  source.save(tmp_path / 'a.JPG')
  volume = volumes.open_volume(tmp_path / 'a.JPG')
  assert (volume.axes, volume.dtype) == (axes, np.uint8)
  np.testing.assert_array_equal(volume.section(0), np.asarray(Image.open(tmp_path / 'a.JPG')))


def test_cmyk_jpeg_is_refused(tmp_path):
  Image.new('CMYK', (8, 8)).save(tmp_path / 'a.jpg')
  with pytest.raises(DataError, match='colour model CMYK'):
    volumes.open_volume(tmp_path / 'a.jpg')


@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'b.png'])
def test_a_truncated_image_opens_but_does_not_read(tmp_path, name):
  image = random_image(64, 64, dtype=np.uint16 if name == 'b.png' else np.uint8)
  Image.fromarray(image).save(tmp_path / name)
  cut(tmp_path / name, 0.6)
  volume = volumes.open_volume(tmp_path / name)
  with pytest.raises(DataError, match=f'{name}: cannot be read, damaged'):
    volume.section(0)


@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'a.tif'])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, name):
  (tmp_path / name).write_text('version https://git-lfs.github.com/spec/v1')
  with pytest.raises(DataError, match=name):
    volumes.open_volume(tmp_path / name)


def test_images_beyond_the_limit_of_pillow_are_read(tmp_path, monkeypatch):
  image = random_image(40, 40)
  for name in ('a.png', 'a.jpg'):
    Image.fromarray(image).save(tmp_path / name)
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)  # Image.open raises beyond twice this
  for name in ('a.png', 'a.jpg'):
    assert volumes.open_volume(tmp_path / name).section(0).shape == (40, 40)


@pytest.mark.parametrize('size', [(2**31 - 1, 2**31 - 1), (60_000, 60_000), (0, 5)])
def test_a_png_that_announces_absurd_sizes_is_refused_when_opened(tmp_path, size):
  write_png(tmp_path / 'a.png', *size, 8, 0, [bytes(20)] * 20)
  with pytest.raises(DataError, match=f'announces {size[1]} x {size[0]} pixels'):
    volumes.open_volume(tmp_path / 'a.png')


def test_a_jpeg_that_announces_absurd_sizes_is_refused_when_opened(tmp_path):
  Image.fromarray(random_image(16, 16)).save(tmp_path / 'a.jpg')
  data = bytearray((tmp_path / 'a.jpg').read_bytes())
  frame = data.index(b'\xff\xc0')  # then length, depth, height, width
  data[frame + 5 : frame + 9] = struct.pack('>HH', 65535, 65535)
  (tmp_path / 'a.jpg').write_bytes(data)
  with pytest.raises(DataError, match='announces 65535 x 65535 pixels'):
    volumes.open_volume(tmp_path / 'a.jpg')


def test_an_image_of_one_colour_is_not_taken_for_absurd(tmp_path):
  flat = np.zeros((4000, 4000), np.uint8)  # 4 kB per MB of pixels as PNG, 6 as JPEG
  for name in ('a.png', 'a.jpg'):
    Image.fromarray(flat).save(tmp_path / name, optimize=True)
    np.testing.assert_array_equal(volumes.open_volume(tmp_path / name).section(0), flat)
