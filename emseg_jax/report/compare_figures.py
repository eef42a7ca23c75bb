"""Figures of a comparison, as SVG, and the page that holds table and figures.

mIoU against parameters (one point per row), validation curves per row (mean over its runs), and,
where rows differ in the share of training sections, mIoU against that share.
"""

import html
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from emseg_jax.report.figures import PALETTE

__all__ = ['draw', 'page']

MARKERS = 'osD^vP*X'
STYLE = """body{font:15px/1.4 sans-serif;margin:2em;max-width:90em}
table{border-collapse:collapse}td,th{padding:.3em .6em;border-bottom:1px solid #bbb;text-align:left}
figure{display:inline-block;margin:1em}"""


class Row(Protocol):
  """What is drawn of a row of the table; see `compare.Row`."""

  runs: Sequence[Any]
  setting: str
  parameters: int

  @property
  def config(self) -> Any: ...
  @property
  def fraction(self) -> float: ...
  def scores(self, name: str) -> list[float]: ...


def draw(rows: Sequence[Row]) -> dict[str, str]:
  """File name without suffix -> SVG."""
  figures = {
    'parameters': _figure(lambda axis: _parameters(axis, rows)),
    'validation_miou': _figure(lambda axis: _curves(axis, rows, 'validation/miou', 'mIoU')),
  }
  for key, label in (
    ('validation/soft/cross_entropy', 'validation cross entropy'),
    ('train/loss', 'training loss'),
  ):
    if any(key in record for row in rows for run in row.runs for record in run.records):
      name = key.replace('/', '_')
      figures[name] = _figure(lambda axis, k=key, text=label: _curves(axis, rows, k, text))
  if len({row.fraction for row in rows}) > 1:
    figures['fractions'] = _figure(lambda axis: _fractions(axis, rows))
  return figures


def page(header: Sequence[str], cells: Sequence[Sequence[str]], figures: Mapping[str, str]) -> str:
  """One self-contained HTML page."""

  def line(tag: str, texts: Sequence[str]) -> str:
    return '<tr>' + ''.join(f'<{tag}>{html.escape(text)}</{tag}>' for text in texts) + '</tr>'

  table = '\n'.join([line('th', header), *(line('td', row) for row in cells)])
  pictures = '\n'.join(
    f'<figure>{svg[svg.index("<svg") :]}<figcaption>{name.replace("_", " ")}</figcaption></figure>'
    for name, svg in figures.items()
  )
  return (
    f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Comparison</title>'
    f'<style>{STYLE}</style><h1>Comparison</h1><table>{table}</table>{pictures}</html>\n'
  )


def _figure(plot: Callable[[Any], None]) -> str:
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context({'svg.hashsalt': 'comparison', 'font.size': 11}):
    figure = Figure(figsize=(7, 4.4), layout='constrained')
    axis = figure.subplots()
    plot(axis)
    axis.grid(alpha=0.2)
    axis.spines[['top', 'right']].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
      axis.legend(fontsize=9)
    buffer = io.StringIO()
    nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    figure.savefig(buffer, format='svg', metadata=nothing)
  return buffer.getvalue()


def _label(row: Row) -> str:
  text = f'{row.config.model.name} {row.setting}'.strip()
  return text if len(text) <= 60 else f'{text[:57]}...'


def _style(index: int) -> dict[str, str]:
  return {'color': PALETTE[index % len(PALETTE)], 'marker': MARKERS[index % len(MARKERS)]}


def _parameters(axis: Any, rows: Sequence[Row]) -> None:
  for index, row in enumerate(rows):
    values = row.scores('miou')
    if not values:
      continue
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    axis.errorbar(
      row.parameters / 1e6,
      statistics.mean(values),
      spread or None,
      linestyle='none',
      capsize=3,
      label=_label(row),
      **_style(index),
    )
  axis.set_xscale('log')
  axis.set_xlabel('parameters, millions')
  axis.set_ylabel('mIoU')


def _curves(axis: Any, rows: Sequence[Row], key: str, label: str) -> None:
  """Mean over runs at the steps that all of them have."""
  for index, row in enumerate(rows):
    by_step: dict[int, list[float]] = {}
    for run in row.runs:
      for record in run.records:
        if record.get(key) is not None:
          by_step.setdefault(record['step'], []).append(record[key])
    steps = [step for step, values in sorted(by_step.items()) if len(values) == len(row.runs)]
    means = [statistics.mean(by_step[step]) for step in steps]
    axis.plot(steps, means, markersize=3, label=_label(row), **_style(index))
  axis.set_xlabel('step')
  axis.set_ylabel(label)


def _fractions(axis: Any, rows: Sequence[Row]) -> None:
  networks = list(dict.fromkeys(row.config.model.name for row in rows))
  for index, network in enumerate(networks):
    own = sorted((r for r in rows if r.config.model.name == network), key=lambda r: r.fraction)
    means = [statistics.mean(row.scores('miou') or [float('nan')]) for row in own]
    axis.plot([100 * row.fraction for row in own], means, label=network, **_style(index))
  axis.set_xlabel('training sections used, %')
  axis.set_ylabel('mIoU')
