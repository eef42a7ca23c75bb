"""Which runs are one row, and what tells rows apart."""

from pathlib import Path

import pytest
from compare_support import RESCRNET, SMALL, make_run, rows_of


@pytest.mark.parametrize(
  ('others', 'setting'),
  [
    ({'optim': {'learning_rate': 0.5}}, ('learning_rate=0.01', 'learning_rate=0.5')),
    ({'train': {'steps': 7}}, ('steps=1000', 'steps=7')),
    ({'model': RESCRNET | {'options': SMALL | {'filters': 5}}}, ('filters=4', 'filters=5')),
    # A field that only one of them has.
    ({'model': RESCRNET | {'options': SMALL | {'dropout': 0.5}}}, ('', 'dropout=0.5')),
    (
      {'loss': {'terms': {'ce': {'weight': 2}}}},
      ('ce.weight=1.0; dice.weight=3.0', 'ce.weight=2.0'),
    ),
    ({'data': {'patch': (32, 32)}}, ('patch=[16, 16]', 'patch=[32, 32]')),
    # The same images with other labels, and the same images at another place.
    (
      {'source': {'labels': '/disk/new/labels.tif'}},
      ('labels=/disk/em/isbi/labels.tif', 'labels=/disk/new/labels.tif'),
    ),
    (
      {'source': {'images': '/other/em/isbi/train.tif'}},
      ('images=/disk/em/isbi/train.tif', 'images=/other/em/isbi/train.tif'),
    ),
    # Fewer sections to train on, but the same ones to score: no fold.
    ({'source': {'slices': '0:10'}}, ('train=all', 'train=0:10')),
  ],
)  # fmt: skip
def test_another_experiment_is_another_row_that_says_how(tmp_path, others, setting):
  rows = rows_of(make_run(tmp_path / 'a'), make_run(tmp_path / 'b', **others))
  assert tuple(row.setting for row in rows) == setting
  assert [len(row.runs) for row in rows] == [1, 1]


@pytest.mark.parametrize(
  'others',
  [
    {'train': {'seed': 5}},
    {'train': {'log_every': 3, 'checkpoint_every': 3}},
    {'run': {'protocol': 'x'}, 'mesh': {'data': 1}, 'data': {'threads': 7}},
  ],
)
def test_what_changes_no_experiment_changes_no_row(tmp_path, others):
  (row,) = rows_of(make_run(tmp_path / 'a'), make_run(tmp_path / 'b', **others))
  assert len(row.runs) == 2


def test_folds_are_one_row(tmp_path):
  def fold(name: str, *train: str, validation: str, miou: float) -> Path:
    file = '/disk/em/isbi/train.tif'
    used = [{'images': file, 'labels': file, 'slices': s} for s in train]
    scored = [{'images': file, 'labels': file, 'slices': validation}]
    return make_run(tmp_path / name, miou=miou, data={'train': used, 'validation': scored})

  (row,) = rows_of(
    fold('0', '10:30', validation='0:10', miou=0.6),
    fold('1', '0:10', '20:30', validation='10:20', miou=0.7),
    fold('2', '0:20', validation='20:30', miou=0.8),
  )
  assert row.scores('miou') == [0.6, 0.7, 0.8]
  assert row.data == 'em/isbi/train.tif'
  assert row.setting == ''


def test_a_test_set_counts_before_validation_and_is_not_mixed_with_it(tmp_path):
  first = make_run(tmp_path / 'a', miou=0.6)
  make_run(tmp_path / 'other', miou=0.5, split='test')
  (tmp_path / 'other' / 'evaluation' / 'test.json').rename(first / 'evaluation' / 'test.json')
  second = make_run(tmp_path / 'b', miou=0.9, train={'seed': 1})
  rows = rows_of(first, second)
  assert [row.runs[0].split for row in rows] == ['test', 'validation']
  assert [row.scores('miou') for row in rows] == [[0.5], [0.9]]


def test_other_data_are_another_row_and_their_own_fields_are_not_settings(tmp_path):
  there = {'images': '/disk/em/lucchi/x.tif', 'labels': '/disk/em/lucchi/y.tif'}
  rows = rows_of(
    make_run(tmp_path / 'a'),
    make_run(tmp_path / 'b', source=there, task={'classes': ('no', 'yes')}),
    make_run(tmp_path / 'c', source=there | {'fraction': 0.25}, task={'classes': ('no', 'yes')}),
    make_run(tmp_path / 'd', source={'images': None, 'labels': None, 'phantom': {'seed': 3}}),
  )
  assert [row.data for row in rows] == [
    'em/isbi/train.tif', 'em/lucchi/x.tif', 'em/lucchi/x.tif', 'phantom-3',
  ]  # fmt: skip
  assert [row.setting for row in rows] == [''] * 4
  assert [row.fraction for row in rows] == [1.0, 1.0, 0.25, 1.0]
  # With several data, the figures have to name them.
  assert rows[1].line == rows[2].line == 'rescrnet | em/lucchi/x.tif'


def test_a_log_cut_off_by_a_crash_counts_up_to_there(tmp_path):
  run = make_run(tmp_path / 'a', records=[{'step': 1, 'perf/images_per_sec': 4.0}])
  with (run / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 2, "perf/ima')
  assert rows_of(run)[0].images_per_second == 4.0
