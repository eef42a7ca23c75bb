"""Sources that training refuses: every broken file is named, and the rest is still looked at."""

import numpy as np
import zarr
from check_support import config, half, listed, source, texture
from PIL import Image

from emseg_jax import check
from emseg_jax.config import Source


def test_every_broken_file_is_reported(healthy):
  images, labels = (sorted((healthy / 'train' / k).iterdir()) for k in ('images', 'labels'))
  images[0].write_bytes(b'')  # no header
  images[1].write_bytes(images[1].read_bytes()[:120])  # header, then cut
  labels[2].unlink()
  Image.fromarray(half((8, 8))).save(labels[3])
  report = check.check(config(healthy))
  assert not report.ok
  assert sorted(listed(report, 'error')) == [
    ('train', 'size'),
    ('train', 'unmatched'),
    ('train', 'unreadable'),
    ('train', 'unreadable'),
  ]
  messages = [p.message for p in report.problems]
  for expected in (str(images[0]), str(images[1]), 'images: 02 has no partner', '8 x 8'):
    assert any(expected in m for m in messages), expected
  assert report.splits[1].sections == 2  # validation is looked at all the same


def test_broken_file_does_not_hide_a_pair_matched_by_number(healthy):
  for label in (healthy / 'train/labels').iterdir():
    label.rename(label.with_name(f'mask_{label.name}'))
  (healthy / 'train/images/00.png').write_bytes(b'')
  Image.fromarray(half(value=5)).save(healthy / 'train/labels/mask_03.png')
  report = check.check(config(healthy))
  assert listed(report) == [('error', 'train', 'unreadable'), ('error', 'train', 'label values')]


def test_broken_folder_is_cut_by_slices_as_training_does(healthy):
  (healthy / 'train/images/03.png').write_bytes(b'')
  train, validation = (source(healthy / 'train', slices=s) for s in (':2', '2:'))
  report = check.check(config(healthy, train=(train,), validation=(validation,)))
  assert [s.sections for s in report.splits] == [2, 1]
  assert listed(report) == [('error', s, 'unreadable') for s in ('train', 'validation')]


def test_broken_folder_is_cut_by_names_as_training_does(healthy):
  (healthy / 'train/images/03.png').write_bytes(b'')
  train, validation = (source(healthy / 'train', include=(n,)) for n in ('0[01]', '0[23]'))
  report = check.check(config(healthy, train=(train,), validation=(validation,)))
  assert [s.sections for s in report.splits] == [2, 1]
  nothing = source(healthy / 'train', include=('x*',))
  report = check.check(config(healthy, train=(nothing,)))
  assert any('include=x* fits none' in p.message for p in report.problems)


def test_volume_and_labels_of_another_depth_are_one_error(healthy):
  for name, stack in (('i', [texture(i) for i in range(3)]), ('l', [half()] * 2)):
    zarr.save_array(str(healthy / f'{name}.zarr'), np.stack(stack))
  axes = {'axes': 'ZYX'}
  train = Source(
    images=f'{healthy}/i.zarr', labels=f'{healthy}/l.zarr', reading=axes, label_reading=axes
  )
  report = check.check(config(healthy, train=(train,)))
  assert listed(report, 'error') == [('train', 'source')]  # and not one for each of its chunks
  assert 'has 2 sections but' in report.problems[0].message
