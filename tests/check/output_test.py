"""What the data doctor writes: text, JSON and the page, in files and folders."""

import base64
import io
import json
import re

import numpy as np
import pytest
from check_support import tissue, write
from PIL import Image

from emseg_jax import check
from emseg_jax.check import html, output
from emseg_jax.config import Config, Data, Source, Task
from emseg_jax.data import phantom
from emseg_jax.errors import ConfigError


def configured(folder, *, shift=0, classes=phantom.CLASSES):
  images, labels = tissue(6, (96, 128))
  write(folder / 'a<b', images, np.roll(labels, shift, axis=1))
  files = {'images': f'{folder}/a<b/images', 'labels': f'{folder}/a<b/labels'}
  train, validation = (Source(**files, slices=s) for s in (':4', '4:'))
  data = Data(train=(train,), validation=(validation,), patch=(32, 32))
  return Config(task=Task(classes=classes), data=data)


@pytest.fixture(scope='module')
def shifted(tmp_path_factory):
  """Labels moved by 9 rows: a warning with places in both splits."""
  config = configured(tmp_path_factory.mktemp('data'), shift=9)
  return check.check(config), config


def pictures(page):
  """Every embedded PNG, decoded."""
  return [
    np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert('RGBA'))
    for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)
  ]


def test_folder_gets_all_three(shifted, tmp_path):
  report, config = shifted
  output.write(report, config, tmp_path / 'new')
  assert sorted(f.name for f in (tmp_path / 'new').iterdir()) == [
    'check.html',
    'check.json',
    'check.txt',
  ]
  assert (tmp_path / 'new/check.txt').read_text() == check.format_report(report) + '\n'
  assert json.loads((tmp_path / 'new/check.json').read_text()) == report.to_json()


@pytest.mark.parametrize(
  ('name', 'start'), [('x.json', '{'), ('x.HTML', '<!doctype'), ('x.txt', ' ')]
)
def test_file_gets_what_its_name_says(shifted, tmp_path, name, start):
  report, config = shifted
  output.write(report, config, tmp_path / name)
  assert [f.name for f in tmp_path.iterdir()] == [name]
  assert (tmp_path / name).read_text().startswith(start)


def test_other_names_are_refused(shifted, tmp_path):
  report, config = shifted
  with pytest.raises(
    ConfigError, match=r'ends in \.xml; allowed: \.txt, \.json, \.html, or a folder'
  ):
    output.write(report, config, tmp_path / 'x.xml')
  assert not list(tmp_path.iterdir())


def test_json_names_the_sections_of_a_problem(shifted):
  report, _ = shifted
  record = report.to_json()
  problem = next(p for p in record['problems'] if p['kind'] == 'misaligned')
  assert [p.rsplit('/', 1)[1] for p in problem['places']] == ['00.png', '01.png']
  assert record['splits'][0]['best_shift'][0] in (-8, -9, -10)
  assert record['advice'].startswith('Voxel size: unknown')


def test_page_needs_nothing_from_outside(shifted):
  page = re.sub('base64,[^"]+', '', html.render(*shifted))
  assert not re.findall(r'https?:|src="/|<script|<link|@import|url\(', page)
  assert 'a&lt;b' in page
  assert 'a<b' not in page


def test_page_shows_problems_numbers_and_sections(shifted):
  report, config = shifted
  page = html.render(report, config)
  for problem in report.problems:
    assert problem.message.replace('<', '&lt;') in page
  assert f'<h1>{report.verdict}</h1>' in page
  assert f'<td>{report.splits[0].label_fit:.3f}</td>' in page
  # Two problems with two places, a note with one or none, 4 + 2 sections; each with its label.
  drawn = sum(len(p.places) for p in report.problems) + 4 + 2
  assert len(pictures(page)) == 2 * drawn


def test_overlay_shows_the_label_where_it_is(tmp_path):
  config = configured(tmp_path)
  report = check.check(config)
  page = html.render(report, config)
  image, overlay = pictures(page)[-2:]  # the last validation section
  assert image.shape == overlay.shape == (96, 128, 4)
  # Cytoplasm is most of it and stays clear; membrane and mitochondria have their tints.
  clear = overlay[..., 3] == 0
  np.testing.assert_array_equal(clear, tissue(6, (96, 128))[1][5] == 0)


def test_labels_without_classes_are_drawn_by_their_edges(tmp_path):
  config = configured(tmp_path, classes=('a', 'b'))
  report = check.check(config)
  assert not report.ok
  overlay = pictures(html.render(report, config))[-1]
  label = tissue(6, (96, 128))[1][5]
  edge = overlay[..., 3] > 0
  inner = label[1:-1, 1:-1]
  around = (label[2:, 1:-1], label[:-2, 1:-1], label[1:-1, 2:], label[1:-1, :-2])
  differs = np.any([inner != other for other in around], axis=0)
  np.testing.assert_array_equal(edge[1:-1, 1:-1], differs)


def test_page_is_made_of_nothing_readable(tmp_path):
  source = Source(images=str(tmp_path / 'none'), labels=str(tmp_path / 'none'))
  config = Config(data=Data(train=(source,), validation=()))
  report = check.check(config)
  output.write(report, config, tmp_path / 'out')
  assert 'no such file or folder' in (tmp_path / 'out/check.html').read_text()
  assert not pictures((tmp_path / 'out/check.html').read_text())
