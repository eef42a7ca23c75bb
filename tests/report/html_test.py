"""The report of a run on a small synthetic work directory."""

import base64
import io
import itertools
import json
import os
import pathlib
import re

import numpy as np
import pytest
from PIL import Image
from report_support import EVALUATION, Page, make_case, make_workdir, report, write_evaluation

from emseg_jax.config import Config
from emseg_jax.errors import ConfigError, DataError, OutputError
from emseg_jax.report import Case


@pytest.fixture(scope='module')
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
  return report(make_workdir(tmp_path_factory.mktemp('runs') / 'first-run')).read_text('utf-8')


@pytest.fixture(scope='module')
def page(text: str) -> Page:
  return Page(text)


@pytest.fixture
def workdir(tmp_path: pathlib.Path) -> pathlib.Path:
  return make_workdir(tmp_path / 'run')


def test_the_page_needs_nothing_from_outside(text: str, page: Page):
  assert not re.search(r'https?:', text)
  assert '@import' not in text
  assert 'url(http' not in text
  links = [
    value
    for _, attributes in page.elements
    for name, value in attributes.items()
    if name in ('src', 'href', 'xlink:href', 'action', 'poster', 'srcset')
  ]
  assert links
  assert all(link.startswith(('#', 'data:image/png;base64,')) for link in links)
  ids = [attributes['id'] for _, attributes in page.elements if 'id' in attributes]
  assert len(ids) == len(set(ids))
  assert {link[1:] for link in links if link.startswith('#')} <= set(ids)


def test_headings_are_in_order_and_tables_and_pictures_have_words(text: str, page: Page):
  levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r'h[1-6]', tag)]
  assert levels[0] == 1
  assert levels.count(1) == 1
  assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
  assert len(page.find('table')) == len(page.find('caption')) >= 5
  assert all(th['scope'] in ('row', 'col', 'colgroup') for th in page.find('th'))
  pictures = [a for _, a in page.elements if a.get('role') == 'img']
  assert len(pictures) == 6 + 2 + 2 * 4  # curves, of training and scores; two cases of four panels
  assert all(len(a['aria-label']) > 5 for a in pictures)
  # Every svg either is such a picture or is hidden behind one.
  assert all(a.get('role') == 'img' or a.get('aria-hidden') == 'true' for a in page.find('svg'))
  assert page.find('html')[0]['lang'] == 'en'


def test_every_number_of_the_evaluation_is_on_the_page(page: Page):
  scores = EVALUATION['scores']
  numbers = [scores['accuracy'], scores['miou'], scores['mean_dice']]
  numbers += [v for row in scores['per_class'].values() for v in row.values() if v is not None]
  numbers += [b[key] for b in EVALUATION['baselines'].values() for key in ('miou', 'accuracy')]
  numbers += [image[key] for image in EVALUATION['images'] for key in ('miou', 'accuracy')]
  for number in numbers:
    assert f' {number:.4f} ' in page.text, number
  # Confusion matrix: counts, and shares of each row: 100 / 150, 50 / 150, 20 / 1850, 1830 / 1850.
  for cell in ('66.7 % 100', '33.3 % 50', '1.1 % 20', '98.9 % 1,830'):
    assert cell in page.text
  assert 'Grey value below 96.5: membrane, else interior' in page.text
  assert 'Mean IoU is 0.179 above the better baseline.' in page.text  # 0.7752 - 0.5957 = 0.1795


def test_the_header_names_run_model_task_step_and_date(page: Page):
  for words in (
    'first-run',
    'pmcanet (width = 0.25)',
    'membrane, interior, vesicle',
    '1,000 of 1,000',
    '2023-11-14 22:30 UTC',  # 1.7e9 + 1000 s
    'python -m emseg_jax.main --mode=train',
    'jax 0.10.2',
  ):
    assert words in page.text


def test_all_fields_of_the_configuration_are_on_the_page(page: Page):
  assert 'options.width 0.25' in page.text
  assert 'terms.dice.weight 3.0' in page.text
  for section, fields in json.loads(Config().model_dump_json()).items():
    assert f' {section} Field Value ' in page.text
    assert all(field in page.text for field in fields)


def test_an_absent_class_is_called_absent(page: Page):
  assert 'vesicle absent absent absent absent 0.0000 0 0 0 0' in page.text  # scores and counts
  assert 'vesicle absent absent absent' in page.text.split('Predicted')[1]  # its row of counts


def test_images_are_listed_worst_first(page: Page):
  table = page.text.split('lowest mean IoU first')[1]
  assert table.index('stack[018]') < table.index('stack[019]')


def test_names_cannot_break_the_page(workdir: pathlib.Path):
  nasty = '<b a="1">\'&"</script><script>alert(1)</script>'
  config = json.loads((workdir / 'config.json').read_text())
  config['task']['classes'] = [nasty, 'interior', 'vesicle']
  (workdir / 'config.json').write_text(json.dumps(config))
  evaluation = json.loads(json.dumps(EVALUATION).replace('"membrane"', json.dumps(nasty)))
  evaluation['images'][0]['name'] = nasty
  write_evaluation(workdir, evaluation)
  record = {'step': 2000, 'train/loss': 1.0, f'train/{nasty}': 1.0, f'validation/iou/{nasty}': 0.5}
  with (workdir / 'metrics.jsonl').open('a') as file:
    file.write(json.dumps(record) + '\n')
  text = report(
    workdir, worst=[make_case(nasty)], command=nasty, versions={nasty: nasty}
  ).read_text('utf-8')
  page = Page(text)
  assert len(page.find('script')) == 1  # our own
  assert not page.find('b')
  assert text.count('<script>') == 1
  assert nasty in page.text


def test_an_empty_workdir_gives_a_page_that_says_what_is_missing(tmp_path: pathlib.Path):
  path = report(tmp_path, worst=[], best=[], versions={}, command=None)
  page = Page(path.read_text('utf-8'))
  for words in (
    'No scores yet',
    'No curves: metrics.jsonl is missing',
    'Not evaluated',
    'No images',
    'config.json is missing',
    'Not recorded.',
  ):
    assert words in page.text


@pytest.mark.parametrize('name', ['config.json', 'metrics.jsonl', 'evaluation/validation.json'])
def test_any_one_file_may_be_missing(workdir: pathlib.Path, name: str):
  (workdir / name).unlink()
  page = Page(report(workdir).read_text('utf-8'))
  if name == 'evaluation/validation.json':
    # The last validation record stands in: 0.6 + 1000 / 10000.
    assert 'Mean IoU 0.700' in page.text
    assert 'measured during training' in page.text


def test_an_evaluation_may_lack_baselines_images_and_time(workdir: pathlib.Path):
  optional = (
    *('baselines', 'images', 'seconds', 'voxels'),
    *('intervals', 'calibration', 'objects', 'extras'),  # which older versions did not write
  )
  write_evaluation(workdir, {k: v for k, v in EVALUATION.items() if k not in optional})
  page = Page(report(workdir).read_text('utf-8'))
  assert 'This evaluation holds no baselines.' in page.text
  assert 'This evaluation holds no scores per image.' in page.text
  assert 'Objects found' not in page.text
  assert 'Calibration' not in page.text


def test_a_model_no_better_than_a_trivial_rule_is_called_so(workdir: pathlib.Path):
  write_evaluation(workdir, {**EVALUATION, 'scores': {**EVALUATION['scores'], 'miou': 0.5957}})
  assert 'does not exceed the better baseline' in Page(report(workdir).read_text('utf-8')).text


def test_the_test_split_comes_first_when_there_is_one(workdir: pathlib.Path):
  write_evaluation(workdir, {**EVALUATION, 'split': 'test', 'step': 777})
  page = Page(report(workdir).read_text('utf-8'))
  assert 'Scores on the test images at step 777' in page.text
  assert page.text.index('Scores per class, test') < page.text.index('Scores per class, validation')


def test_a_last_record_cut_short_is_left_out_and_mentioned(workdir: pathlib.Path):
  with (workdir / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 1020, "train/lo')
  page = Page(report(workdir).read_text('utf-8'))
  assert 'The last line of metrics.jsonl is incomplete' in page.text
  assert '1,000 of 1,000' in page.text


def test_damaged_files_are_named(workdir: pathlib.Path):
  metrics = (workdir / 'metrics.jsonl').read_text()
  (workdir / 'metrics.jsonl').write_text('{"step": 1\n' + metrics)
  with pytest.raises(DataError, match=r'metrics\.jsonl: line 1 is not valid JSON'):
    report(workdir)
  (workdir / 'metrics.jsonl').write_text(metrics)
  write_evaluation(workdir, {k: v for k, v in EVALUATION.items() if k != 'confusion'})
  with pytest.raises(DataError, match=r"validation\.json: field 'confusion' is missing"):
    report(workdir)
  write_evaluation(
    workdir, {**EVALUATION, 'scores': dict.fromkeys(('miou', 'accuracy', 'mean_dice'), 0.5)}
  )
  with pytest.raises(DataError, match='per_class'):
    report(workdir)
  (workdir / 'config.json').write_text('[1]')
  with pytest.raises(DataError, match=r'config\.json: holds a JSON list'):
    report(workdir)
  assert not (workdir / 'report.html').exists()


def test_a_colour_that_is_none_is_an_error(workdir: pathlib.Path):
  with pytest.raises(ConfigError, match='is not a colour'):
    report(workdir, colours=['#000000', '#ffffff', 'red;background:blue'])


def test_the_error_map_on_the_page_has_the_colours_of_its_legend(workdir: pathlib.Path):
  label = np.ones((4, 4), np.int32)
  label[0] = 0  # four membrane pixels, twelve of the common interior
  prediction = label.copy()
  prediction[0, 0] = 1  # a missed membrane pixel
  prediction[1, 1] = 0  # a false one
  prediction[3, 3] = 0  # not scored
  weight = np.ones((4, 4), np.float32)
  weight[3, 3] = 0
  image = np.arange(16, dtype=np.uint8).reshape(4, 4)
  case = Case('tiny', 0.9, 0.7, image, label, weight, prediction)
  text = report(workdir, worst=[case], best=[]).read_text('utf-8')
  page = Page(text)
  uris = [a['href'] for a in page.find('image')]
  assert len(uris) == 4  # the image once; label, prediction, errors as overlays
  errors = np.asarray(
    Image.open(io.BytesIO(base64.b64decode(uris[-1].split(',')[1]))).convert('RGBA')
  )
  assert tuple(errors[0, 0]) == (86, 180, 233, 255)
  assert tuple(errors[1, 1]) == (213, 94, 0, 255)
  assert tuple(errors[3, 3]) == (128, 128, 128, 255)
  assert np.count_nonzero(errors[..., 3]) == 3
  legend = re.findall(r'--c: (#\w+)"></span>([^<]+)</li>', text.split('>Errors</p>')[1])[:4]
  assert legend[0] == ('#d55e00', 'another class where the label is interior')
  assert legend[1] == ('#56b4e9', 'interior where the label is another class')
  assert legend[3] == ('#808080', 'not scored')
  assert 'Errors (13.3 %)' in page.text  # 2 of 15 scored pixels
  assert '6.2 % not scored' in page.text  # 1 of 16


def test_a_case_without_any_scored_pixel_can_be_drawn(workdir: pathlib.Path):
  case = make_case()
  case = Case('blank', float('nan'), 0.0, case.image, case.label - 5, case.label * 0, case.label)
  page = Page(report(workdir, worst=[case], best=[]).read_text('utf-8'))
  assert '100.0 % not scored' in page.text
  assert 'accuracy not finite' in page.text


def test_equal_inputs_give_equal_bytes(workdir: pathlib.Path):
  first = report(workdir).read_bytes()
  assert report(workdir).read_bytes() == first


def test_a_write_that_fails_leaves_the_old_report(
  workdir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
  path = report(workdir)
  path.write_text('old')
  names = sorted(p.name for p in workdir.iterdir())

  def full(source: str, target: str) -> None:
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'replace', full)
  with pytest.raises(OutputError, match=r'report\.html: cannot be written \(No space left'):
    report(workdir)
  assert path.read_text() == 'old'
  assert sorted(p.name for p in workdir.iterdir()) == names


def test_eight_large_cases_stay_below_ten_megabytes(workdir: pathlib.Path):
  cases = [make_case(f'large {i}', size=1024, seed=i) for i in range(8)]
  path = report(workdir, worst=cases[:4], best=cases[4:])
  assert path.stat().st_size < 10e6  # of white noise, which does not compress
  assert '1024 × 1024 pixels, shown at 768 × 768' in path.read_text('utf-8')
