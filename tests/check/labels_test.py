"""Judgements on label files: each with a case that triggers it and one where it stays silent."""

import io

import numpy as np
import pytest
import tifffile
from check_support import found, message, report, source, tissue, volume, write
from PIL import Image
from scipy import ndimage

from emseg_jax.config import Source

BINARY = ('background', 'foreground')


def masks(value=255, count=4):
  return np.where(tissue(count)[1] == 1, value, 0).astype(np.uint8)


def smoothed(mask):
  half = Image.fromarray(mask).resize((48, 48), Image.Resampling.BILINEAR)
  return np.asarray(half.resize((96, 96), Image.Resampling.BILINEAR))


def compressed(mask):
  buffer = io.BytesIO()
  Image.fromarray(mask).save(buffer, 'JPEG', quality=80)
  return np.asarray(Image.open(buffer))


def checked(folder, label_files, *, classes=BINARY, **data):
  write(folder, tissue(len(label_files))[0], label_files)
  return report(source(folder), classes=classes, **data)


def test_mask_and_class_indices_are_fine(tmp_path):
  result = checked(tmp_path / 'a', masks(), label_mapping={0: 0, 255: 1})
  assert found(result, 'label values', 'label kind', 'label file', 'label colours') == []
  result = checked(tmp_path / 'b', tissue(4)[1], classes=('a', 'b', 'c'))
  assert found(result, 'label values', 'label kind', 'label file', 'label colours') == []


@pytest.mark.parametrize('spoil', [smoothed, compressed])
def test_smoothed_and_compressed_masks_are_recognised(tmp_path, spoil):
  result = checked(tmp_path, [spoil(m) for m in masks()], label_mapping={0: 0, 255: 1})
  assert found(result, 'label values', 'label kind') == [('error', 'train'), ('warning', 'train')]
  assert 'anti-aliased, resized or JPEG' in message(result, 'label kind')
  assert 'cut at 128' in message(result, 'label values')


def test_smoothed_mask_whose_values_are_all_allowed_is_a_warning(tmp_path):
  result = checked(
    tmp_path, [smoothed(m) for m in masks()], label_mapping={0: 0}, labels={'other': 1}
  )
  assert found(result, 'label values', 'label kind') == [('warning', 'train')]
  assert 'anti-aliased' in message(result, 'label kind')


def test_few_instances_are_told_from_classes(tmp_path):
  ids = [np.minimum(ndimage.label(label == 0)[0], 12).astype(np.uint8) for label in tissue(4)[1]]
  result = checked(tmp_path / 'ids', ids)
  assert found(result, 'label values', 'label kind') == [('error', 'train'), ('warning', 'train')]
  assert '13 values look like instance ids' in message(result, 'label kind')
  assert 'data.labels.kind=instances' in message(result, 'label values')
  result = checked(tmp_path / 'ids', ids, classes=('o', 'i', 'b'), labels={'kind': 'instances'})
  assert found(result, 'label values', 'label kind') == []
  scattered = [
    np.random.default_rng(i).integers(0, 6, (12, 12), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    for i in range(4)
  ]
  for label in scattered:
    label[:48, :48] = 7  # one nucleus
  result = checked(tmp_path / 'classes', scattered)
  assert found(result, 'label values', 'label kind') == [('error', 'train')]


def test_colours_are_listed_and_a_legend_is_proposed(tmp_path):
  table = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 255]], np.uint8)
  labels = tissue(4)[1]
  result = checked(tmp_path, table[labels], classes=('a', 'b', 'c'))
  assert found(result, 'label colours', 'unreadable') == [('error', 'train')]
  text = message(result, 'label colours')
  share = (labels == 1).mean()
  assert f'#ff0000 ({share:.2%})' in text
  assert 'data.labels.colours={"#000000": 0, "#ff0000": 1, "#0080ff": 2}' in text
  legend = {'#000000': 0, '#ff0000': 1, '#0080ff': 2}
  result = checked(tmp_path, table[labels], classes=('a', 'b', 'c'), labels={'colours': legend})
  assert found(result, 'label colours', 'unreadable', 'label values') == []  # the proposal works
  assert result.splits[0].class_shares['b'] == pytest.approx(share)
  del legend['#0080ff']
  result = checked(tmp_path, table[labels], classes=('a', 'b'), labels={'colours': legend})
  assert found(result, 'unreadable') == [('error', 'train')] * 4
  assert '#0080ff' in message(result, 'unreadable')


def test_colours_of_a_photograph_get_no_legend(tmp_path):
  noise = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3)).astype(np.uint8)
  text = message(checked(tmp_path, noise), 'label colours')
  assert 'without smoothing' in text
  assert 'legend' not in text


def test_jpeg_files_are_a_warning(tmp_path):
  write(tmp_path, tissue(3)[0], masks(count=3), suffix='.jpg', quality=100)
  result = report(source(tmp_path), classes=BINARY, label_mapping={0: 0}, labels={'other': 1})
  assert ('warning', 'train') in found(result, 'label file')
  assert 'labels/00.jpg: is JPEG, as are 3 of 3 labels' in message(result, 'label file')


def test_palette_is_explained_where_colours_differ_from_values(tmp_path):
  write(tmp_path, tissue(3)[0], masks(1, count=3))
  grey, black_and_white = [n for v in range(256) for n in (v, v, v)], [0, 0, 0, 255, 255, 255]
  for palette, expected in ((grey, []), (black_and_white, [('note', 'train')])):
    for file in (tmp_path / 'labels').iterdir():
      image = Image.fromarray(np.asarray(Image.open(file)))
      image.putpalette(palette)
      image.save(file)
    result = report(source(tmp_path), classes=BINARY)
    assert found(result, 'label file') == expected
  assert '0 is #000000, 1 is #ffffff' in message(result, 'label file')


def test_inverted_tiff_is_explained(tmp_path):
  images, labels = tissue(3)[0], masks(1, count=3)
  tifffile.imwrite(tmp_path / 'i.tif', images, photometric='minisblack')
  for kind, expected in (('minisblack', []), ('miniswhite', [('note', 'train')])):
    tifffile.imwrite(tmp_path / 'l.tif', labels, photometric=kind)
    files = Source(images=f'{tmp_path}/i.tif', labels=f'{tmp_path}/l.tif')
    assert found(report(files, classes=BINARY), 'label file') == expected


def test_signed_mask_is_explained_and_mapped(tmp_path):
  mask = masks(1).astype(np.int8)
  tifffile.imwrite(tmp_path / 'i.tif', tissue(4)[0], photometric='minisblack')
  tifffile.imwrite(tmp_path / 'l.tif', -mask, photometric='minisblack')
  files = Source(images=f'{tmp_path}/i.tif', labels=f'{tmp_path}/l.tif')
  result = report(files, classes=BINARY)
  assert '-1 (unsigned: 255)' in message(result, 'label kind')
  assert '{"0": 0, "-1": 1}' in message(result, 'label values')
  assert report(files, classes=BINARY, label_mapping={0: 0, -1: 1}).ok


def test_empty_label_between_filled_ones_of_a_volume_is_a_warning(tmp_path):
  images, labels = (a[::2] for a in volume())
  write(tmp_path / 'full', images, labels)
  assert found(report(source(tmp_path / 'full')), 'empty label') == []
  empty = labels.copy()
  empty[2] = 0
  write(tmp_path / 'volume', images, empty)
  result = report(source(tmp_path / 'volume'))
  assert found(result, 'empty label') == [('warning', 'train')]
  assert 'labels/02.png: all pixels are 0' in message(result, 'empty label')
  unrelated, masks_ = (a.copy() for a in tissue(4))
  masks_[2] = 0  # an image without objects among others
  write(tmp_path / 'images', unrelated, masks_)
  assert found(report(source(tmp_path / 'images')), 'empty label') == []


def test_mask_of_what_is_annotated_counts_as_ignored(tmp_path):
  images, labels = tissue(3)
  write(tmp_path, images, labels)
  annotated = np.ones_like(labels)
  annotated[:, :24] = 0  # a quarter of the rows
  (tmp_path / 'masks').mkdir()
  for number, array in enumerate(annotated):
    Image.fromarray(array).save(tmp_path / f'masks/{number:02d}.png')
  summary = report(source(tmp_path, mask=f'{tmp_path}/masks')).splits[0]
  assert summary.ignored_share == pytest.approx(0.25)
  assert summary.class_shares['membrane'] == pytest.approx((labels[:, 24:] == 1).mean())
