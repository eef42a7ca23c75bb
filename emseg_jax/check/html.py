"""The findings of the data doctor as one HTML page that needs no network, no server, no script.

A few sections of each split are read again and drawn with their labels; those that a problem names
are drawn at full resolution, with the edges of the label.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from emseg_jax import colours as colours_lib
from emseg_jax.check import fit, instances
from emseg_jax.check.doctor import Report
from emseg_jax.check.measure import Measured, read_label
from emseg_jax.check.problem import SHOWN, Problem
from emseg_jax.check.read import spread
from emseg_jax.check.table import table_rows
from emseg_jax.config import Config
from emseg_jax.data.labels import IGNORED, Rules
from emseg_jax.errors import DataError
from emseg_jax.report import figures

__all__ = ['render']

# The page has the style of the report.
TEMPLATES = (Path(__file__).parent, Path(figures.__file__).parent)
SAMPLES = 4  # sections of each split
LONGEST = 384  # of a drawn section, pixels
CROP = 256  # side of the part of a section that is drawn for a problem, pixels
MOST_PICTURES = 24  # of problems
PER_KIND = 3  # of these, problems of one kind
EDGE = '#e69f00'
HEADINGS = {'error': 'Errors', 'warning': 'Warnings', 'note': 'Notes'}


@dataclasses.dataclass(frozen=True)
class Picture:
  """A drawn section: an image and, on top of it, a transparent overlay of the same size."""

  title: str
  image: str  # data URI
  overlay: str | None
  size: tuple[int, int]  # (y, x) as drawn


@dataclasses.dataclass(frozen=True)
class _Group:
  """Problems of one severity, split and kind."""

  split: str
  problems: tuple[Problem, ...]
  more: int
  pictures: tuple[Picture, ...]


def render(report: Report, config: Config) -> str:
  """The page; reads up to 4 sections of each split and up to 24 that problems name.

  Raises:
    ConfigError: a colour of task.colours cannot be read.
  """
  import jinja2

  config = instances.as_classes(config)
  rules = Rules(config.task, config.data)
  colours = colours_lib.class_colours(config.task.colours, len(config.task.values))
  plain = _find_plain(report, config)
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template('page.html.j2').render(
    report=report,
    headings=HEADINGS,
    groups=_group(report, rules),
    rows=table_rows(report.splits, most_values=SHOWN) if report.splits else [],
    samples={
      split: [_draw_section(read[i], rules, colours, plain) for i in spread(len(read), SAMPLES)]
      for split, read in report.measured.items()
      if read
    },
    classes=dict(zip(config.task.values, colours, strict=True)),
    plain=config.task.values[plain],
    edge=EDGE,
  )


def _find_plain(report: Report, config: Config) -> int:
  """What is drawn without colour: the most frequent class of the training data, or the mask 0."""
  if config.task.multilabel:
    return 0
  shares = next((s.class_shares for s in report.splits), {})
  return max(range(len(config.task.classes)), key=lambda i: shares.get(config.task.classes[i], 0.0))


def _group(report: Report, rules: Rules) -> dict[str, list[_Group]]:
  kinds: dict[tuple[str, str, str], list[Problem]] = {}
  for problem in report.problems:
    kinds.setdefault((problem.severity, problem.split, problem.kind), []).append(problem)
  left = MOST_PICTURES
  groups: dict[str, list[_Group]] = {severity: [] for severity in HEADINGS}
  for (severity, split, _), problems in kinds.items():
    pictures = tuple(_draw_problems(problems[:PER_KIND], report, rules))[:left]
    left -= len(pictures)
    more = max(0, len(problems) - SHOWN)
    groups[severity].append(_Group(split, tuple(problems[:SHOWN]), more, pictures))
  return {severity: found for severity, found in groups.items() if found}


def _draw_problems(problems: Sequence[Problem], report: Report, rules: Rules) -> Iterator[Picture]:
  for problem in problems:
    for split, i in problem.places:
      yield _draw_detail(report.measured[split][i], rules)


def _draw_section(m: Measured, rules: Rules, colours: Sequence[str], plain: int) -> Picture:
  """A whole section, reduced, tinted by class; with the edges of a label that has no classes."""
  section, overlay = m.section, None
  if m.label is not None:
    raw, label, unused = read_label(section, rules)
    try:
      classes = rules.apply(raw, name=m.label.at)
      scored = classes != IGNORED if unused is None else (classes != IGNORED) & ~unused
      overlay = figures.draw_labels(
        np.where(scored, classes, 0), colours=colours, plain=plain, weight=scored
      )
    except DataError:  # the page says elsewhere what is wrong with it
      overlay = _draw_edges(label)
  image = section.image_volume.section(section.image_index)
  return _picture(m.image_at, image, overlay, longest=LONGEST)


def _draw_detail(m: Measured, rules: Rules) -> Picture:
  """Where the label has most edges, else the centre, at full resolution."""
  section, overlay = m.section, None
  image = section.image_volume.section(section.image_index)
  window = tuple(slice((n - min(n, CROP)) // 2, (n + min(n, CROP)) // 2) for n in image.shape[:2])
  if m.label is not None:
    _, label, _ = read_label(section, rules)
    window = fit.busiest_window(label, size=CROP)
    overlay = _draw_edges(label[window])
  return _picture(m.image_at, image[window], overlay, longest=CROP)


def _draw_edges(label: np.ndarray) -> np.ndarray:
  overlay = np.zeros((*label.shape, 4), np.uint8)
  overlay[fit.find_boundary(label)] = (*bytes.fromhex(EDGE[1:]), 255)
  return overlay


def _picture(title: str, image: np.ndarray, overlay: np.ndarray | None, *, longest: int) -> Picture:
  uri, size = figures.png_uri(figures.draw_image(image), longest=longest)
  top = None if overlay is None else figures.png_uri(overlay, longest=longest)[0]
  return Picture(title, uri, top, size)
