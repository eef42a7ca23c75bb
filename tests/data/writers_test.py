"""Results come back from disk unchanged, and failures leave nothing behind."""

import os
import resource
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from emseg_jax.data import volumes, writers
from emseg_jax.errors import OutputError


def random_image(*shape, dtype=np.uint8):
  return np.random.default_rng(0).integers(0, 65536, shape).astype(dtype)


def write_stack(path, array, voxel_size=None, form='imagej'):
  metadata, options = {'axes': 'ZYX'}, {}
  if voxel_size and form == 'imagej':
    z, y, x = voxel_size
    metadata |= {'unit': 'nm', 'spacing': z}
    options['resolution'] = (1 / x, 1 / y)
  if voxel_size and form == 'ome':
    for axis, size in zip('ZYX', voxel_size, strict=True):
      if size is not None:
        metadata |= {f'PhysicalSize{axis}': size, f'PhysicalSize{axis}Unit': 'nm'}
  tifffile.imwrite(
    path, array, photometric='minisblack', metadata=metadata, **{form: True}, **options
  )
  return volumes.open_volume(path)


def left_over(folder):
  return sorted(p.name for p in folder.rglob('*') if p.name.endswith('.tmp'))


@settings(max_examples=25, deadline=None)
@given(
  labels=hnp.arrays(
    st.sampled_from([np.uint8, np.uint16]),
    st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(2, 20)),
  ),
  axes=st.sampled_from(['ZYX', 'NYX']),
)
def test_any_labels_come_back_from_the_written_file(labels, axes):
  reference = volumes.ArrayVolume(np.zeros(labels.shape, np.uint8), axes=axes)
  with tempfile.TemporaryDirectory() as folder:
    path = writers.write_like(reference, Path(folder, 'out'), iter(labels))
    volume = volumes.open_volume(path)
    assert volume.dtype == labels.dtype
    assert len(volume) == len(labels)
    for i, section in enumerate(labels):
      np.testing.assert_array_equal(volume.section(i), section)
    assert left_over(Path(folder)) == []


@pytest.mark.parametrize('form', ['imagej', 'ome'])
@pytest.mark.parametrize('name', ['out.tif', 'out.ome.tif'])
def test_stack_keeps_its_voxel_size(tmp_path, form, name):
  reference = write_stack(tmp_path / 'in.tif', random_image(3, 8, 9), (50.0, 4.6, 4.0), form)
  labels = random_image(3, 8, 9)
  path = writers.write_like(reference, tmp_path / name, labels)
  written = volumes.open_volume(path)
  assert (path.name, written.kind) == (name, 'stack')
  assert written.voxel_size_zyx == pytest.approx((50.0, 4.6, 4.0), rel=1e-6)
  np.testing.assert_array_equal(written[:], labels)
  with tifffile.TiffFile(path) as tif:
    assert tif.is_ome == (name == 'out.ome.tif')
    assert tif.is_imagej == (name == 'out.tif')
    assert tif.pages[0].compression.name == 'ADOBE_DEFLATE'
  with Image.open(path) as image:  # another library agrees
    assert image.n_frames == 3
    image.seek(2)
    np.testing.assert_array_equal(np.asarray(image), labels[2])


@pytest.mark.parametrize(
  'voxel_size', [None, (None, 5.0, 4.0), (50.0, None, None), (None, None, 4.0)]
)
def test_unknown_voxel_sizes_stay_unknown(tmp_path, voxel_size):
  reference = volumes.ArrayVolume(random_image(3, 8, 9), voxel_size_zyx=voxel_size)
  path = writers.write_like(reference, tmp_path / 'out.tif', random_image(3, 8, 9))
  assert volumes.open_volume(path).voxel_size_zyx == voxel_size


def test_large_stacks_are_written_as_bigtiff_with_their_voxel_size(tmp_path, monkeypatch):
  monkeypatch.setattr(writers, 'CLASSIC_TIFF_BYTES', 3 * 8 * 9 - 1)
  reference = write_stack(tmp_path / 'in.tif', random_image(3, 8, 9), (50.0, 4.0, 4.0))
  labels = random_image(3, 8, 9)
  path = writers.write_like(reference, tmp_path / 'out.tif', labels)
  with tifffile.TiffFile(path) as tif:
    assert tif.is_bigtiff
  written = volumes.open_volume(path)
  assert written.voxel_size_zyx == (50.0, 4.0, 4.0)
  np.testing.assert_array_equal(written[:], labels)


def test_stack_is_written_page_by_page(tmp_path):
  reference = volumes.ArrayVolume(np.zeros((6, 64, 64), np.uint8))
  sizes = []

  def sections():
    for _ in range(6):
      sizes.append(sum(p.stat().st_size for p in tmp_path.glob('.*.tmp')))
      yield random_image(64, 64)  # noise: 4096 bytes that deflate cannot shrink

  writers.write_like(reference, tmp_path / 'out.tif', sections())
  # tifffile takes a page before it writes the last one, and files are buffered (8 kB and more).
  assert sizes[-1] - sizes[0] > 4096


def test_image_gives_png_unless_it_was_a_tiff(tmp_path):
  image = random_image(8, 9)
  for name, expected in [('a.png', 'o.png'), ('b.jpg', 'o.png'), ('c.tiff', 'o.tiff')]:
    Image.fromarray(image).save(tmp_path / name)
    path = writers.write_like(volumes.open_volume(tmp_path / name), tmp_path / 'o', [image])
    assert path == tmp_path / expected
    written = volumes.open_volume(path)
    assert written.kind == 'image'
    np.testing.assert_array_equal(written.section(0), image)


def test_sixteen_bit_png_keeps_all_bits(tmp_path):
  image = random_image(8, 9, dtype=np.uint16)
  reference = volumes.ArrayVolume(image[None], axes='NYX')
  path = writers.write_like(reference, tmp_path / 'out', [image])
  np.testing.assert_array_equal(volumes.open_volume(path).section(0), image)


def test_folder_gives_folder_with_the_same_names(tmp_path):
  (tmp_path / 'in').mkdir()
  shapes = {'img2.png': (4, 5), 'img10.jpg': (6, 7), 'img3.tif': (8, 9)}
  for name, shape in shapes.items():
    Image.fromarray(random_image(*shape)).save(tmp_path / 'in' / name)
  reference = volumes.open_volume(tmp_path / 'in')
  labels = [random_image(*reference.section_shape(i), dtype=np.uint16) for i in range(3)]
  path = writers.write_like(reference, tmp_path / 'new' / 'out', labels, suffix='-p1')
  assert path == tmp_path / 'new' / 'out-p1'
  assert sorted(p.name for p in path.iterdir()) == ['img10.png', 'img2.png', 'img3.tif']
  written = volumes.open_volume(path)
  assert written.names == reference.names
  for i, label in enumerate(labels):
    np.testing.assert_array_equal(written.section(i), label)


@pytest.mark.parametrize(
  ('given_name', 'suffix', 'expected'),
  [
    ('out', '', 'out.tif'),
    ('out.tif', '-p1', 'out-p1.tif'),
    ('out.ome.tif', '-p1', 'out-p1.ome.tif'),
    ('model.v2', '', 'model.v2.tif'),
  ],
)
def test_suffix_and_extension_are_added_to_the_name(tmp_path, given_name, suffix, expected):
  reference = volumes.ArrayVolume(np.zeros((2, 4, 5), np.uint8))
  labels = random_image(2, 4, 5)
  path = writers.write_like(reference, tmp_path / given_name, labels, suffix=suffix)
  assert path == tmp_path / expected
  assert path.exists()


def test_extension_of_another_format_is_refused(tmp_path):
  reference = volumes.ArrayVolume(np.zeros((2, 4, 5), np.uint8))
  with pytest.raises(OutputError, match=r'out\.png: this result is written as \.tif'):
    writers.write_like(reference, tmp_path / 'out.png', random_image(2, 4, 5))
  assert list(tmp_path.iterdir()) == []


def test_the_input_is_never_overwritten(tmp_path):
  array = random_image(3, 8, 9)
  reference = write_stack(tmp_path / 'in.tif', array)
  with pytest.raises(OutputError, match=r'in\.tif: is the input'):
    writers.write_like(reference, tmp_path / 'in.tif', array)
  (tmp_path / 'link.tif').symlink_to(tmp_path / 'in.tif')
  with pytest.raises(OutputError, match=r'link\.tif: is the input'):
    writers.write_like(reference, tmp_path / 'link', array)
  (tmp_path / 'images').mkdir()
  Image.fromarray(array[0]).save(tmp_path / 'images' / 'a.png')
  with pytest.raises(OutputError, match='images: is the input'):
    writers.write_like(volumes.open_volume(tmp_path / 'images'), tmp_path / 'images', [array[0]])


def test_outputs_that_exist_as_something_else_are_refused(tmp_path):
  stack = volumes.ArrayVolume(np.zeros((2, 4, 5), np.uint8))
  images = volumes.ArrayVolume(np.zeros((2, 4, 5), np.uint8), axes='NYX')
  labels = random_image(2, 4, 5)
  (tmp_path / 'folder.tif').mkdir()
  with pytest.raises(OutputError, match=r'folder\.tif: is a folder, but the result is one file'):
    writers.write_like(stack, tmp_path / 'folder.tif', labels)
  (tmp_path / 'file').write_text('x')
  with pytest.raises(OutputError, match='file: is a file, but the result is a folder'):
    writers.write_like(images, tmp_path / 'file', labels)
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'x').write_text('x')
  with pytest.raises(OutputError, match='full: is not empty'):
    writers.write_like(images, tmp_path / 'full', labels)
  (tmp_path / 'empty').mkdir()
  assert len(volumes.open_volume(writers.write_like(images, tmp_path / 'empty', labels))) == 2


@pytest.mark.parametrize('axes', ['ZYX', 'NYX'])
@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_an_interruption_leaves_the_old_result_and_nothing_else(tmp_path, axes, error):
  reference = volumes.ArrayVolume(np.zeros((3, 4, 5), np.uint8), axes=axes)
  old = tmp_path / 'out.tif'
  old.write_text('old')

  def sections():
    yield random_image(4, 5)
    raise error

  name = 'out.tif' if axes == 'ZYX' else 'out'
  with pytest.raises(error):
    writers.write_like(reference, tmp_path / name, sections())
  assert [p.name for p in tmp_path.iterdir()] == ['out.tif']
  assert old.read_text() == 'old'
  if axes == 'ZYX':
    writers.write_like(reference, old, random_image(3, 4, 5))
    np.testing.assert_array_equal(volumes.open_volume(old)[:], random_image(3, 4, 5))


@pytest.mark.parametrize('axes', ['ZYX', 'NYX'])
def test_a_full_disk_is_reported_and_cleaned_up(tmp_path, axes):
  reference = volumes.ArrayVolume(np.zeros((3, 256, 256), np.uint8), axes=axes)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # bytes per file
  try:
    with pytest.raises(OutputError, match=r'out.*: cannot be written: File too large'):
      writers.write_like(reference, tmp_path / 'out', random_image(3, 256, 256))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_reported(tmp_path):
  (tmp_path / 'file').write_text('x')
  reference = volumes.ArrayVolume(np.zeros((1, 4, 5), np.uint8), axes='NYX')
  with pytest.raises(OutputError, match=r'out: cannot be written: .*(directory|exists)'):
    writers.write_like(reference, tmp_path / 'file' / 'out', random_image(1, 4, 5))


@pytest.mark.parametrize('axes', ['ZYX', 'NYX'])
@pytest.mark.parametrize(
  ('labels', 'message'),
  [
    (random_image(2, 4, 5), '3 sections are needed, got 2'),
    (random_image(5, 4, 5), '3 sections are needed, got 4 or more'),
    (random_image(3, 4, 6), r'section 0 is \(4, 6\) uint8, but \(4, 5\) uint8 is needed'),
    (random_image(3, 4, 5).astype(np.int32), 'int32, but .* uint8, uint16 or uint32 is needed'),
    ([], '3 sections are needed, got 0'),
  ],
)
def test_sections_that_do_not_fit_are_refused(tmp_path, axes, labels, message):
  reference = volumes.ArrayVolume(np.zeros((3, 4, 5), np.uint8), axes=axes)
  with pytest.raises(ValueError, match=message):
    writers.write_like(reference, tmp_path / 'out', iter(labels))
  assert list(tmp_path.iterdir()) == []


def test_written_files_have_ordinary_permissions(tmp_path):
  reference = volumes.ArrayVolume(np.zeros((1, 4, 5), np.uint8))
  path = writers.write_like(reference, tmp_path / 'out.tif', random_image(1, 4, 5))
  (tmp_path / 'plain').touch()
  assert os.stat(path).st_mode == os.stat(tmp_path / 'plain').st_mode
