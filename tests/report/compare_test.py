"""Runs side by side: the numbers of the table by hand, the files written, and bad input."""

import html.parser
import json
import math
import pathlib
import re
import xml.etree.ElementTree
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
import support
from compare_support import CHENG, RESCRNET, make_run, rows_of

from emseg_jax.report import compare, compare_figures

# Depthwise 3·3 and pointwise with bias, twice around a batch norm; the shortcut and its batch norm;
# the classes: (9 + 8) + 8 + (36 + 20) + 8 + 8 + 15.
SMALL_PARAMETERS = 112


def run_compare(output: pathlib.Path, *folders: pathlib.Path) -> int:
  return support.run_main('--mode=compare', f'--output={output}', *map(str, folders))


def read_table(markdown: str) -> list[dict[str, str]]:
  """Rows of the first Markdown table, by column."""
  lines = [line for line in markdown.splitlines() if line.startswith('| ')]
  cells = [[c.strip() for c in re.split(r'(?<!\\)\|', line)[1:-1]] for line in lines]
  header, rule, *rows = cells
  assert set(rule) == {'---'}
  return [dict(zip(header, row, strict=True)) for row in rows]


class Page(html.parser.HTMLParser):
  """The cells of the table; tags have to balance."""

  def __init__(self, text: str):
    super().__init__()
    self.open: list[str] = []
    self.table: list[list[str]] = []
    self.feed(text)
    assert not self.open, f'never closed: {self.open}'

  def handle_starttag(self, tag, attrs):
    if tag != 'meta':
      self.open.append(tag)
    if tag == 'tr':
      self.table.append([])
    if tag in ('td', 'th'):
      self.table[-1].append('')

  def handle_startendtag(self, tag, attrs):
    pass

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] in ('td', 'th'):
      self.table[-1][-1] += data


def test_two_seeds_and_another_network_are_two_rows(tmp_path, capsys):
  published = {'miou': 0.7311, 'iou/membrane': 0.5, 'soft/cross_entropy': 0.25}
  rates = [{'step': s, 'perf/images_per_sec': r} for s, r in ((20, 3.0), (40, 7.0), (60, 5.0))]
  runs = [
    make_run(
      tmp_path / 'a', miou=0.70, records=rates, train={'seed': 0},
      run={'published': published, 'protocol': 'half the steps'},
    ),
    make_run(tmp_path / 'b', miou=0.74, train={'seed': 1}),
    make_run(tmp_path / 'c', miou=0.61, model=CHENG),
  ]  # fmt: skip
  assert run_compare(tmp_path / 'out', *runs) == 0
  first, second = read_table((tmp_path / 'out' / 'comparison.md').read_text())
  assert read_table(capsys.readouterr().out) == [first, second]
  # (0.70 + 0.74) / 2, and sqrt(0.02² + 0.02²) with one degree of freedom.
  assert first['mIoU'] == '0.7200 ± 0.0283'
  assert first['accuracy'] == '0.8200 ± 0.0283'
  assert first['as published'] == 'miou 0.7311, iou/membrane 0.5, soft/cross_entropy 0.25'
  assert first['ours'] == (
    'miou 0.7200 ± 0.0283, iou/membrane 0.5200 ± 0.0283, soft/cross_entropy 0.2800 ± 0.0283'
  )
  assert (first['runs'], first['images/s'], first['protocol']) == ('2', '5', 'half the steps')
  assert first['parameters'] == str(SMALL_PARAMETERS)
  assert (first['network'], first['data'], first['split']) == (
    'rescrnet', 'em/isbi/train.tif', 'validation',
  )  # fmt: skip
  assert (second['#'], second['network'], second['runs']) == ('2', 'cheng2d', '1')
  assert (second['mIoU'], second['as published'], second['ours']) == ('0.6100', '-', '-')
  assert (second['images/s'], second['protocol']) == ('-', '-')
  # Of other networks nothing but the effort is said.
  assert (first['setting'], second['setting']) == ('-', '-')


def test_all_files_are_written_and_well_formed(tmp_path):
  records = [
    {'step': 20, 'train/loss': 2.0},
    {'step': 20, 'validation/miou': 0.5, 'validation/soft/cross_entropy': 0.4},
  ]
  protocol = 'a | b <b>&\n'
  runs = [
    make_run(tmp_path / 'a', records=records, run={'protocol': protocol}),
    make_run(tmp_path / 'b', records=records, model=CHENG),
  ]
  output = tmp_path / 'new' / 'out'
  assert run_compare(output, *runs) == 0
  figures = {'parameters', 'validation_miou', 'validation_soft_cross_entropy', 'train_loss'}
  assert {f.name for f in output.iterdir()} == {
    'comparison.md', 'comparison.html', *(f'{name}.svg' for name in figures),
  }  # fmt: skip
  markdown = (output / 'comparison.md').read_text()
  assert read_table(markdown)[0]['protocol'] == r'a \| b <b>&'
  assert set(re.findall(r'!\[.*?\]\((.*?)\.svg\)', markdown)) == figures
  for name in figures:
    root = xml.etree.ElementTree.parse(output / f'{name}.svg').getroot()
    assert root.tag == '{http://www.w3.org/2000/svg}svg'
  page = Page((output / 'comparison.html').read_text())
  assert page.table[0] == list(compare.HEADER)
  assert len(page.table) == 3
  assert page.table[1][-1] == protocol
  assert (output / 'comparison.html').read_text().count('<svg') == len(figures)
  # Again, over the old one: the same bytes.
  before = {f.name: f.read_bytes() for f in output.iterdir()}
  assert run_compare(output, *runs) == 0
  assert {f.name: f.read_bytes() for f in output.iterdir()} == before


def test_networks_of_one_size_still_have_an_axis_with_numbers(tmp_path):
  figure = matplotlib.figure.Figure()
  axis = figure.subplots()
  compare_figures._parameters(axis, rows_of(make_run(tmp_path / 'a')))  # 0.000112 million
  figure.draw_without_rendering()
  low, high = axis.get_xlim()
  shown = [t.get_text() for t in axis.get_xticklabels() if low <= t.get_position()[0] <= high]
  assert shown == ['0.0001', '0.0002']


def test_a_run_without_a_log_has_no_curves(tmp_path):
  assert list(compare_figures.draw(rows_of(make_run(tmp_path / 'a')))) == ['parameters']


def test_shares_of_the_data_are_one_figure_with_a_line_per_network(tmp_path):
  def runs(network: dict[str, Any], scores: dict[float, list[float]]) -> list[pathlib.Path]:
    return [
      make_run(
        tmp_path / f'{network["name"]}{fraction}{seed}',
        miou=miou, model=network, source={'fraction': fraction}, train={'seed': seed},
      )
      for fraction, values in scores.items()
      for seed, miou in enumerate(values)
    ]  # fmt: skip

  folders = runs(RESCRNET, {1.0: [0.9], 0.1: [0.5, 0.6], 0.5: [0.7]})
  folders += runs(CHENG, {0.5: [0.6], 1.0: [0.8]})
  assert run_compare(tmp_path / 'out', *folders) == 0
  table = read_table((tmp_path / 'out' / 'comparison.md').read_text())
  assert [row['data'] for row in table] == [
    f'em/isbi/train.tif{share}' for share in ('', ' (10%)', ' (50%)', ' (50%)', '')
  ]
  svg = (tmp_path / 'out' / 'fractions.svg').read_text()
  assert '<!-- training sections used, % -->' in svg  # matplotlib's own remark on a drawn text
  axis = matplotlib.figure.Figure().subplots()
  compare_figures._fractions(axis, rows_of(*folders))
  rescrnet, cheng = (c.lines[0].get_xydata() for c in axis.containers)
  np.testing.assert_allclose(rescrnet, [(10, 0.55), (50, 0.7), (100, 0.9)])
  np.testing.assert_allclose(cheng, [(50, 0.6), (100, 0.8)])
  assert axis.get_legend_handles_labels()[1] == ['rescrnet', 'cheng2d']


def test_curves_are_means_at_the_steps_that_all_runs_have(tmp_path):
  def records(*values: float | None) -> list[dict[str, Any]]:
    return [{'step': 10 * i, 'validation/miou': v} for i, v in enumerate(values, 1)]

  rows = rows_of(
    make_run(tmp_path / 'a', records=records(0.2, 0.4, 0.5, 0.6)),
    make_run(tmp_path / 'b', records=records(0.4, None, 0.7), train={'seed': 1}),
    make_run(tmp_path / 'c', model=CHENG),
  )
  axis = matplotlib.figure.Figure().subplots()
  compare_figures._curves(axis, rows, 'validation/miou', 'mIoU')
  (line,) = axis.lines
  np.testing.assert_allclose(line.get_xydata(), [(10, 0.3), (30, 0.6)])
  assert line.get_label() == '1  rescrnet'
  (band,) = axis.collections  # ± sqrt(2 · 0.1²)
  assert band.get_datalim(axis.transData).y0 == pytest.approx(0.3 - math.sqrt(0.02))


def test_long_curves_are_thinned_out_up_to_the_last_step(tmp_path):
  records = [{'step': s, 'train/loss': float(s)} for s in range(1, 1002)]
  axis = matplotlib.figure.Figure().subplots()
  rows = rows_of(make_run(tmp_path / 'a', records=records))
  compare_figures._curves(axis, rows, 'train/loss', 'loss')
  x = axis.lines[0].get_xdata()
  assert x[-1] == 1001
  assert len(x) == 334  # every third


def _says(capsys, *expected: str) -> None:
  said = capsys.readouterr().err
  assert 'Traceback' not in said
  (line,) = said.strip().splitlines()
  for text in expected:
    assert text in line


@pytest.mark.parametrize(
  ('content', 'expected'),
  [
    ('{"scores": {"miou"', 'JSONDecodeError'),
    ('{}', "KeyError('scores')"),
    ('[]', 'TypeError'),
    ('{"scores": 3}', 'AttributeError'),
  ],
)
def test_a_damaged_evaluation_is_named(tmp_path, capsys, content, expected):
  run = make_run(tmp_path / 'a')
  (run / 'evaluation' / 'validation.json').write_text(content)
  assert run_compare(tmp_path / 'out', run) == 2
  _says(capsys, 'DataError', 'a/evaluation/validation.json', expected, '--mode=evaluate')
  assert not (tmp_path / 'out').exists()


def test_a_run_without_an_evaluation_is_named(tmp_path, capsys):
  whole, bare = make_run(tmp_path / 'a'), make_run(tmp_path / 'b')
  (bare / 'evaluation' / 'validation.json').unlink()
  assert run_compare(tmp_path / 'out', whole, bare) == 2
  _says(capsys, 'DataError', f'{bare}: holds no evaluation', '--mode=evaluate')


def test_a_folder_that_is_no_run_is_named(tmp_path, capsys):
  assert run_compare(tmp_path / 'out', tmp_path / 'nowhere') == 2
  _says(capsys, 'ConfigError', f'{tmp_path}/nowhere', 'holds no run')


def test_runs_and_an_output_are_needed(tmp_path, capsys):
  assert run_compare(tmp_path / 'out') == 2
  _says(capsys, '--mode=compare: needs work directories behind the flags')
  assert support.run_main('--mode=compare', str(make_run(tmp_path / 'a'))) == 2
  _says(capsys, '--mode=compare: needs --output')


def test_a_run_that_is_given_twice_is_refused(tmp_path, capsys):
  run = make_run(tmp_path / 'a')
  assert run_compare(tmp_path / 'out', run, tmp_path / 'a' / '..' / 'a') == 2
  _says(capsys, 'ConfigError', 'given twice')


def test_an_output_that_is_a_file_is_refused(tmp_path, capsys):
  (tmp_path / 'out').write_text('')
  assert run_compare(tmp_path / 'out', make_run(tmp_path / 'a')) == 2
  _says(capsys, 'OutputError', f'{tmp_path}/out')
  assert (tmp_path / 'out').read_text() == ''


def test_an_option_that_the_network_does_not_have_is_named(tmp_path, capsys):
  run = make_run(tmp_path / 'a', model={'name': 'rescrnet', 'options': {'blocks': 1}})
  assert run_compare(tmp_path / 'out', run) == 2
  _says(capsys, 'ConfigError', "'blocks' is not known")


def test_scripts_get_a_score_of_every_run(tmp_path, capsys):
  runs = [
    make_run(
      tmp_path / str(seed), miou=miou, train={'seed': seed}, run={'published': {'miou': 0.5}}
    )
    for seed, miou in enumerate((0.7, 0.8))
  ]
  code = support.run_main(
    '--mode=compare', f'--output={tmp_path}/out', '--json', '--quiet', *map(str, runs)
  )
  assert code == 0
  said = capsys.readouterr()
  found = json.loads(said.out)
  assert said.err == ''
  assert found['written'] == f'{tmp_path}/out'
  (row,) = found['rows']
  assert (row['network'], row['runs'], row['published']) == ('rescrnet', 2, {'miou': 0.5})
  assert row['scores']['miou'] == [0.7, 0.8]
