"""The report as a browser shows it: at the width of a desktop and of a phone, and by keyboard."""

import html
import json
import pathlib
import re
import shutil
import subprocess
from typing import Any

import pytest
from report_support import make_workdir, report

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')

WIDTHS = (1280, 390)
# Each page in a frame of one width; media queries see the width of their frame.
FRAME = '<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{page}"></iframe>'
MEASURE = """
const measure = (frame) => {
  const page = frame.contentDocument, width = frame.clientWidth;
  page.querySelectorAll('details').forEach((d) => { d.open = true; });
  const style = (e) => frame.contentWindow.getComputedStyle(e);
  const box = (e) => { const r = e.getBoundingClientRect();
    return {name: e.getAttribute('aria-label'), left: r.left, right: r.right, height: r.height}; };
  const stops = [...page.querySelectorAll('a[href], summary, input, [tabindex="0"]')];
  frame.focus();
  return {
    page: page.documentElement.scrollWidth,
    ground: style(page.body).backgroundColor,
    ink: style(page.body).color,
    figures: [...page.querySelectorAll('[role=img]')].map(box),
    stops: stops.length,
    unreachable: stops.filter((e) => {
      e.focus({preventScroll: true});
      return page.activeElement !== e || style(e).outlineStyle === 'none';
    }).map((e) => e.outerHTML),
    trapped: [...page.body.querySelectorAll('*')].filter((e) => e.scrollWidth > e.clientWidth + 1
      && ['auto', 'scroll', 'hidden'].includes(style(e).overflowX) && e.tabIndex < 0)
      .map((e) => e.outerHTML),
    scrolled: [...page.querySelectorAll('.scroll')]
      .filter((e) => e.scrollWidth > e.clientWidth).length,
  };
};
addEventListener('load', () => {
  const found = [...document.querySelectorAll('iframe')].map(measure);
  document.body.innerHTML = '<pre id="found"></pre>';
  document.getElementById('found').textContent = JSON.stringify(found);
});
"""


def browse(folder: pathlib.Path, page: str, *options: str) -> tuple[str, list[str]]:
  """The document after its scripts have run, and what they wrote to the console."""
  path = folder / 'page.html'
  path.write_text(page, 'utf-8')
  done = subprocess.run(
    [
      *(CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr'),
      *(f'--user-data-dir={folder}/profile', '--window-size=1280,1000', '--dump-dom', *options),
      path.as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=180,
    check=True,
  )
  return done.stdout, [line for line in done.stderr.splitlines() if 'CONSOLE' in line]


def measured(
  folder: pathlib.Path, page: str, *options: str, widths: tuple[int, ...] = WIDTHS
) -> list[dict[str, Any]]:
  frames = ''.join(FRAME.format(width=width, page=html.escape(page)) for width in widths)
  document, console = browse(
    folder,
    f'<!doctype html><html><head><meta charset="utf-8"><meta name="color-scheme" '
    f'content="light dark"></head><body>{frames}<script>{MEASURE}</script></body></html>',
    *options,
  )
  assert not console
  return json.loads(html.unescape(re.search(r'<pre id="found">(.*)</pre>', document)[1]))


@pytest.fixture(scope='module')
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
  return report(make_workdir(tmp_path_factory.mktemp('runs') / 'run')).read_text('utf-8')


@pytest.fixture(scope='module')
def light(tmp_path_factory: pytest.TempPathFactory, text: str) -> list[dict[str, Any]]:
  return measured(tmp_path_factory.mktemp('light'), text)


def test_the_console_is_listened_to(tmp_path: pathlib.Path):
  _, console = browse(tmp_path, '<script>console.error("so and so"); missing();</script>')
  assert len(console) == 2
  assert 'so and so' in console[0]


def test_all_figures_are_visible_and_the_page_does_not_overflow(light: list[dict[str, Any]]):
  for width, page in zip(WIDTHS, light, strict=True):
    assert page['page'] <= width
    assert len(page['figures']) == 6 + 2 + 2 * 4
    for figure in page['figures']:
      assert figure['left'] >= 0, figure
      assert figure['left'] + 100 < figure['right'] <= width, figure
      assert figure['height'] > 60, figure
  assert light[1]['scrolled'] > 0  # a phone is narrower than the tables


def test_everything_can_be_reached_by_keyboard_and_shows_it(light: list[dict[str, Any]]):
  for page in light:
    assert page['stops'] > 10
    assert page['unreachable'] == []
    assert page['trapped'] == []


def test_the_page_follows_the_dark_scheme(
  tmp_path: pathlib.Path, text: str, light: list[dict[str, Any]]
):
  dark = measured(tmp_path, text, '--blink-settings=preferredColorScheme=0')
  for before, after in zip(light, dark, strict=True):
    assert (before['ground'], after['ground']) == ('rgb(255, 255, 255)', 'rgb(20, 23, 27)')
    assert before['ink'] != after['ink']


def test_nothing_is_cut_off_on_paper(tmp_path: pathlib.Path, text: str):
  paper = 718  # A4 without margins of 10 mm: 190 mm at 96 dots per inch
  printed = text.replace('@media print', '@media all')
  assert printed != text
  (page,) = measured(tmp_path, printed, widths=(paper,))
  assert page['page'] <= paper
  assert all(figure['right'] <= paper for figure in page['figures'])
