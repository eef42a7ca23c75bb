"""Tables and figures of an evaluation on the page."""

import pathlib

import pytest
from report_support import EVALUATION, Page, make_workdir, report, write_evaluation

from emseg_jax.errors import DataError


@pytest.fixture
def workdir(tmp_path: pathlib.Path) -> pathlib.Path:
  return make_workdir(tmp_path / 'run')


def test_each_class_has_counts_and_intervals(workdir: pathlib.Path):
  page = Page(report(workdir).read_text('utf-8'))
  # Of [[100, 50, 0], [20, 1830, 0]]: 150 labelled, 100 right, 50 missed, 20 false.
  row = page.text.split('Missed False membrane ')[1].split(' interior ')[0]
  assert row == (
    '0.8333 0.800 to 0.900 0.6667 0.610 to 0.710 0.7407 0.700 to 0.800 0.5882 0.511 to 0.622 '
    '0.0751 150 100 50 20'
  )
  assert 'Mean 0.8653 0.822 to 0.900 0.7752 0.731 to 0.811' in page.text
  assert 'intervals of 95 %, by drawing from the 2 images' in page.text


def test_calibration_thresholds_and_sizes_are_shown(workdir: pathlib.Path):
  page = Page(report(workdir).read_text('utf-8'))
  assert 'Expected calibration error 0.0500.' in page.text
  # (0.5 + 1) / 2 right, (0.58 + 0.98) / 2 sure.
  assert '75.0 % are right, at a mean confidence of 78.0 %' in page.text
  assert 'the network is overconfident' in page.text
  assert '0.53 to 0.60 1,000 0.5800 0.5000' in page.text  # bin 8 of 15
  assert 'membrane 0.611 at 0.25; interior 0.922 at 0.25.' in page.text
  # 64 and 128 pixels of 16 nm²: 2 sqrt(1024 / pi) = 36.1, 2 sqrt(2048 / pi) = 51.1.
  assert '64 to 127 36 to 51 75.0 % 3 of 4 Objects are' in page.text  # no row for none


def test_overlapping_classes_have_a_row_each(workdir: pathlib.Path):
  rows = EVALUATION['scores']['per_class']
  masks = ['none', 'a', 'b', 'a + b']
  scores = {**EVALUATION['scores'], 'per_class': {'a': rows['membrane'], 'b': rows['interior']}}
  confusion = [[9, 1, 0, 0], [0, 5, 0, 2], [0, 0, 4, 0], [3, 0, 0, 6]]
  write_evaluation(
    workdir,
    {**EVALUATION, 'classes': masks, 'confusion': confusion, 'scores': scores, 'extras': {}},
  )
  page = Page(report(workdir, worst=[], best=[]).read_text('utf-8'))
  # a: masks 'a' and 'a + b' hold 7 + 9 pixels; 5 + 2 + 6 right, 3 missed; 1 false. b: 6 + 4 right,
  # 3 missed, 2 false.
  assert ' 16 13 3 1 b ' in page.text
  assert ' 13 10 3 2 Mean ' in page.text
  assert 'Of all decisions' in page.text


def test_one_curve_of_thresholds_has_precision_and_recall(workdir: pathlib.Path):
  curves = EVALUATION['extras']['thresholds']['per_class']
  extras = {'thresholds': {'per_class': {'membrane': curves['membrane']}}}
  write_evaluation(workdir, {**EVALUATION, 'extras': extras})
  page = Page(report(workdir).read_text('utf-8'))
  assert 'Thresholds, validation: membrane IoU precision recall' in page.text


def test_an_evaluation_whose_fields_do_not_fit_is_named(workdir: pathlib.Path):
  write_evaluation(workdir, {**EVALUATION, 'confusion': [[1, 2], [3, 4]]})
  with pytest.raises(DataError, match=r'validation\.json: its fields do not belong together'):
    report(workdir)
