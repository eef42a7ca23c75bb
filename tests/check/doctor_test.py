"""The data doctor, on tiny files with one thing wrong at a time."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from check_support import SIZE, config, half, listed, message, source, texture, write
from PIL import Image

from emseg_jax import check
from emseg_jax.config import Source


def test_healthy_data_are_ready(healthy):
  report = check.check(config(healthy))
  assert report.ok
  assert report.problems == ()
  assert check.format_report(report).splitlines()[-1] == 'OK: ready to train'


def test_summary_holds_the_numbers_of_the_pixels(tmp_path):
  ramp = np.arange(100, dtype=np.uint8).reshape(10, 10)  # 0..99, each once
  label = np.zeros((10, 10), np.uint8)
  label[:2], label[2:3] = 1, 9  # 20 % foreground, 10 % ignored
  write(tmp_path / 'train', [ramp, np.full((12, 14), 50, np.uint8)], [label, half((12, 14), 0)])
  report = check.check(config(tmp_path, ignore_value=9, validation=()))
  (train,) = report.splits
  assert (train.sections, train.files) == (2, 2)
  assert (train.smallest, train.largest) == ((10, 10), (12, 14))
  assert (train.dtypes, train.channels, train.voxel_sizes_zyx) == (('uint8',), (1,), (None,))
  # 100 pixels of mean 49.5 and variance (100² - 1) / 12, 168 pixels of value 50.
  mean = (4950 + 168 * 50) / 268
  squares = 100 * ((100**2 - 1) / 12 + 49.5**2) + 168 * 50**2
  assert (train.low, train.high) == (0, 99)
  np.testing.assert_allclose([train.mean, train.std], [mean, (squares / 268 - mean**2) ** 0.5])
  everything = np.concatenate([ramp.ravel(), np.full(168, 50)])
  np.testing.assert_allclose(train.percentiles, np.percentile(everything, [1, 99]))
  assert train.label_values == pytest.approx({0: 238 / 268, 1: 20 / 268, 9: 10 / 268})
  assert train.class_shares == pytest.approx({'background': 238 / 258, 'foreground': 20 / 258})
  assert train.ignored_share == pytest.approx(10 / 268)
  assert train.one_class_sections == 1  # the second label is background only


def test_stack_is_one_file_with_its_voxel_size(tmp_path):
  stack = np.stack([texture(i) for i in range(3)])
  metadata = {'axes': 'ZYX', 'spacing': 0.05, 'unit': 'um'}  # 50 nm; 250 pixels per um are 4 nm
  options = {'imagej': True, 'resolution': (250, 250), 'metadata': metadata}
  tifffile.imwrite(tmp_path / 'image.tif', stack, **options)
  tifffile.imwrite(tmp_path / 'labels.tif', np.stack([half()] * 3), photometric='minisblack')
  files = {'images': str(tmp_path / 'image.tif'), 'labels': str(tmp_path / 'labels.tif')}
  train, validation = (Source(**files, slices=s) for s in (':2', '2:'))
  report = check.check(config(tmp_path, train=(train,), validation=(validation,)))
  assert report.ok
  assert [(s.sections, s.files) for s in report.splits] == [(2, 1), (1, 1)]
  assert report.splits[0].voxel_sizes_zyx[0] == pytest.approx((50, 4, 4))


def test_mask_of_0_and_255_gets_its_mapping_proposed(healthy):
  write(healthy / 'train', [texture(i) for i in range(4)], [half(value=255)] * 4)
  write(healthy / 'val', [texture(8), texture(9)], [half(value=255)] * 2)
  report = check.check(config(healthy))
  assert listed(report) == [('error', s, 'label values') for s in ('train', 'validation')]
  text = message(report, 'label values')
  assert 'labels/00.png' in text
  assert '0 (50.00%), 255 (50.00%)' in text
  assert '{"0": 0, "255": 1}' in text
  assert check.check(config(healthy, label_mapping={0: 0, 255: 1})).ok  # the proposal works


def test_more_values_than_classes_are_all_listed(healthy):
  label = half()
  label[0, :2] = 7
  Image.fromarray(label).save(healthy / 'val/labels/01.png')
  text = message(check.check(config(healthy)), 'label values')
  assert 'val/labels/01.png' in text
  assert '{"0": 0, "1": 1, "7": 2}' in text
  assert 'task.classes has 2 names' in text


@pytest.mark.parametrize(
  ('spoil', 'kind', 'words'),
  [
    (lambda d: (d / 'labels').rename(d / 'lables'), 'unreadable', 'no such file or folder'),
    (lambda d: [f.unlink() for f in (d / 'images').iterdir()], 'unreadable', 'holds no images'),
    (
      lambda d: [f.unlink() for f in sorted((d / 'labels').iterdir())[1:]],
      'unmatched',
      '02 has no',
    ),
    (
      lambda d: Image.fromarray(np.dstack([texture(0)] * 3)).save(d / 'images/01.png'),
      'type',
      'is uint8 RGB, but most of',
    ),
    (
      lambda d: [
        Image.fromarray(np.dstack([half()] * 3)).save(f) for f in (d / 'labels').iterdir()
      ],
      'label colours',
      'its three channels are equal',
    ),
  ],
)
def test_source_that_training_refuses_is_an_error(healthy, spoil, kind, words):
  spoil(healthy / 'train')
  report = check.check(config(healthy))
  assert ('train', kind) in listed(report, 'error')
  assert any(words in p.message for p in report.problems)


def test_not_a_number_is_an_error_that_names_the_section(tmp_path):
  stack = np.stack([texture(i) for i in range(3)]).astype(np.float32)
  stack[1, 2, 3] = np.nan
  tifffile.imwrite(tmp_path / 'image.tif', stack, photometric='minisblack')
  tifffile.imwrite(tmp_path / 'labels.tif', np.stack([half()] * 3), photometric='minisblack')
  files = {'images': str(tmp_path / 'image.tif'), 'labels': str(tmp_path / 'labels.tif')}
  report = check.check(config(tmp_path, train=(Source(**files),), validation=()))
  assert listed(report, 'error') == [('train', 'unreadable')]
  assert 'section 1: 1 of 320 values are NaN' in message(report, 'unreadable')  # 16 x 20 pixels


def test_missing_labels_are_an_error_except_in_test(healthy):
  bare = (Source(images=str(healthy / 'train/images')),)
  write(healthy / 'test', [texture(20)], [])
  test = (Source(images=str(healthy / 'test/images')),)
  report = check.check(config(healthy, train=bare, test=test))
  assert listed(report) == [('error', 'train', 'unlabelled'), ('warning', 'test', 'unlabelled')]


def test_missing_validation_is_a_warning(healthy):
  report = check.check(config(healthy, validation=()))
  assert listed(report) == [('warning', 'validation', 'missing')]
  assert report.verdict == 'OK: ready to train (1 warning)'


def test_class_that_never_occurs_is_an_error_in_training_only(healthy):
  report = check.check(config(healthy, classes=('background', 'foreground', 'vesicle')))
  assert listed(report) == [('error', 'train', 'class'), ('note', 'validation', 'class')]
  assert 'vesicle' in message(report, 'class')


def test_rare_class_is_a_warning(tmp_path):
  label = np.zeros((64, 64), np.uint8)
  label[0, :4] = 1  # 4 of 4096 pixels: 0.098 %
  write(tmp_path / 'train', [texture(0, (64, 64))], [label])
  report = check.check(config(tmp_path, validation=()))
  assert listed(report, 'warning') == [('validation', 'missing'), ('train', 'class')]
  assert '0.098%' in message(report, 'class')


def test_identical_images_in_two_splits_are_leakage(healthy):
  Image.fromarray(texture(2)).save(healthy / 'val/images/01.png')
  report = check.check(config(healthy))
  assert listed(report) == [('error', 'validation', 'leakage')]
  text = message(report, 'leakage')
  assert 'val/images/01.png' in text
  assert 'train/images/02.png' in text


def test_overlapping_slices_are_leakage(healthy):
  train, validation = (source(healthy / 'train', slices=s) for s in (':3', '2:'))
  report = check.check(config(healthy, train=(train,), validation=(validation,)))
  assert listed(report) == [('error', 'validation', 'leakage')]
  assert 'train/images/02.png: is also used in train' in message(report, 'leakage')


def test_identical_images_within_a_split_are_a_warning(healthy):
  Image.fromarray(texture(0)).save(healthy / 'train/images/03.png')
  report = check.check(config(healthy))
  assert listed(report) == [('warning', 'train', 'repeated')]


def test_empty_sections_are_warnings_and_no_leakage(healthy):
  for name in ('train/images/01.png', 'val/images/01.png'):
    Image.fromarray(np.full(SIZE, 110, np.uint8)).save(healthy / name)
  report = check.check(config(healthy))
  assert listed(report) == [('warning', s, 'contrast') for s in ('train', 'validation')]


def test_training_images_without_any_contrast_are_an_error(healthy):
  write(healthy / 'train', [np.full(SIZE, 110, np.uint8)] * 4, [half()] * 4)
  report = check.check(config(healthy))
  assert ('train', 'contrast') in listed(report, 'error')


def test_patch_larger_than_an_image_is_a_warning(healthy):
  Image.fromarray(texture(30, (15, 40))).save(healthy / 'train/images/01.png')
  Image.fromarray(half((15, 40))).save(healthy / 'train/labels/01.png')
  report = check.check(config(healthy))
  assert listed(report) == [('warning', 'train', 'patch')]
  assert '01.png: is 15 x 40' in message(report, 'patch')
  assert '1 of 4' in message(report, 'patch')


@pytest.mark.parametrize(
  ('normalisation', 'severity'), [('dataset', 'warning'), ('per_volume', 'note')]
)
def test_shifted_intensities_are_a_warning_unless_evened_out(healthy, normalisation, severity):
  # The training std is that of 20 equally likely values, sqrt((20² - 1) / 12) = 5.8; 15 > 2 * 5.8.
  write(healthy / 'val', [texture(8) + np.uint8(15), texture(9) + np.uint8(15)], [half()] * 2)
  report = check.check(config(healthy, normalisation=normalisation))
  assert listed(report) == [(severity, 'validation', 'range')]


def test_eight_bit_values_in_sixteen_bit_files_and_mixed_types_are_reported(healthy):
  write(healthy / 'val', [texture(8).astype(np.uint16), texture(9).astype(np.uint16)], [half()] * 2)
  report = check.check(config(healthy, normalisation='scale'))
  assert listed(report) == [('warning', 'train', 'type'), ('warning', 'validation', 'range')]
  assert 'train uint8, validation uint16' in message(report, 'type')


def test_instance_ids_are_recognised(healthy):
  ids = np.arange(320, dtype=np.uint16).reshape(SIZE) // 8  # 40 instances
  Image.fromarray(ids).save(healthy / 'train/labels/00.png')
  for number in range(1, 4):
    Image.fromarray(half().astype(np.uint16)).save(healthy / f'train/labels/{number:02d}.png')
  report = check.check(config(healthy))
  assert listed(report) == [('error', 'train', 'label values'), ('warning', 'train', 'label kind')]
  assert '40 values look like instance ids' in message(report, 'label kind')
  assert 'and 30 more' in message(report, 'label values')  # of the 40, ten are shown


def test_only_ten_problems_of_a_kind_are_printed_but_all_are_counted(tmp_path):
  write(tmp_path / 'train', [texture(i) for i in range(14)], [half()] * 14)
  everywhere = (source(tmp_path / 'train'),)
  report = check.check(config(tmp_path, train=everywhere, validation=everywhere))
  text = check.format_report(report)
  assert text.count('is also used in train') == 10
  assert 'and 4 more' in text
  assert text.splitlines()[-1] == '14 errors, 0 warnings: not ready'


def test_report_is_json(healthy):
  report = check.check(config(healthy, validation=()))
  record = json.loads(json.dumps(report.to_json()))
  assert record == report.to_json()
  assert record['ok'] is True
  assert record['splits'][0]['label_values'] == {'0': 0.5, '1': 0.5}  # half() by construction
  assert record['problems'][0]['severity'] == 'warning'


def test_checking_needs_no_jax():
  program = 'import sys, emseg_jax.check, emseg_jax.auto; sys.exit("jax" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', program], check=False).returncode == 0
