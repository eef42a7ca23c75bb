"""Figures of a comparison, as SVG, and the page that holds table and figures.

mIoU against parameters (one point per row), validation curves per row (mean and standard deviation
over its runs), and, where rows differ in the share of training sections, mIoU against that share.
"""

import html
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from emseg_jax.colours import PALETTE
from emseg_jax.report.compare_rows import Row

__all__ = ['draw', 'page']

MARKERS = 'osD^vP*X'
LONGEST_LABEL = 90
MOST_POINTS, MOST_MARKERS = 400, 20  # per curve
CURVES = {
  'validation/miou': 'validation mIoU',
  'validation/soft/cross_entropy': 'validation cross entropy',
  'train/loss': 'training loss',
}
STYLE = """body{font:15px/1.4 sans-serif;margin:2em}
table{border-collapse:collapse}td,th{padding:.3em .7em;border-bottom:1px solid #bbb;text-align:left;
vertical-align:top}td{font-variant-numeric:tabular-nums}.n{white-space:nowrap}
td:not(.n){min-width:8em}div{overflow-x:auto}
figure{display:inline-block;margin:1em 1em 1em 0;vertical-align:top}"""


def draw(rows: Sequence[Row]) -> dict[str, str]:
  """File name without suffix -> SVG; curves of which no run has a value are left out."""
  figures = {'parameters': _figure(lambda axis: _parameters(axis, rows))}
  for key, label in CURVES.items():
    if any(_known(record, key) for row in rows for run in row.runs for record in run.records):
      name = key.replace('/', '_')
      figures[name] = _figure(lambda axis, k=key, text=label: _curves(axis, rows, k, text))
  if len({row.fraction for row in rows}) > 1:
    figures['fractions'] = _figure(lambda axis: _fractions(axis, rows))
  return figures


def page(
  header: Sequence[str],
  cells: Sequence[Sequence[str]],
  *,
  note: str,
  figures: Mapping[str, str],
) -> str:
  """One self-contained HTML page."""

  def cell(tag: str, text: str) -> str:
    kind = ' class="n"' if len(text) < 24 else ''  # short ones stay on one line
    return f'<{tag}{kind}>{html.escape(text)}</{tag}>'

  def line(tag: str, texts: Sequence[str]) -> str:
    return f'<tr>{"".join(cell(tag, text) for text in texts)}</tr>'

  table = '\n'.join([line('th', header), *(line('td', row) for row in cells)])
  pictures = '\n'.join(f'<figure>{svg[svg.index("<svg") :]}</figure>' for svg in figures.values())
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Comparison</title>'
    f'<style>{STYLE}</style></head><body><h1>Comparison</h1><div><table>{table}</table></div>'
    f'<p>{html.escape(note)}</p>{pictures}</body></html>\n'
  )


def _figure(plot: Callable[[Any], None]) -> str:
  """Axes of one size, with the legend below them: labels are long, and there may be many."""
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context({'svg.hashsalt': 'comparison', 'font.size': 11}):
    figure = Figure(layout='constrained')
    axis = figure.subplots()
    plot(axis)
    axis.grid(alpha=0.2)
    axis.spines[['top', 'right']].set_visible(False)
    handles, labels = axis.get_legend_handles_labels()
    columns = 1 if any(len(label) > 40 for label in labels) else 2
    figure.set_size_inches(7, 4 + 0.22 * -(-len(labels) // columns))
    figure.legend(
      handles, labels, loc='outside lower left', fontsize=9, ncols=columns, frameon=False
    )
    buffer = io.StringIO()
    nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    figure.savefig(buffer, format='svg', metadata=nothing)
  return buffer.getvalue()


def _known(record: Mapping[str, Any], key: str) -> bool:
  return record.get(key) is not None


def _label(row: Row) -> str:
  """As the legend has it: the number comes first, so that a long one may be cut off."""
  share = f' ({row.fraction:.0%})' if row.fraction < 1 else ''
  return _shortened(f'{row.number}  {row.line}{share}')


def _shortened(text: str) -> str:
  return text if len(text) <= LONGEST_LABEL else f'{text[: LONGEST_LABEL - 3]}...'


def _style(index: int) -> dict[str, str]:
  return {'color': PALETTE[index % len(PALETTE)], 'marker': MARKERS[index % len(MARKERS)]}


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
  return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _parameters(axis: Any, rows: Sequence[Row]) -> None:
  from matplotlib import ticker

  for index, row in enumerate(rows):
    values = row.scores('miou')
    if not values:
      continue
    mean, spread = _mean_and_spread(values)
    x = row.parameters / 1e6
    axis.errorbar(x, mean, spread or None, ls='none', capsize=3, label=_label(row), **_style(index))
    axis.annotate(str(row.number), (x, mean), (7, 4), textcoords='offset points', fontsize=9)
  axis.set_xscale('log')
  sizes = [row.parameters / 1e6 for row in rows]
  axis.set_xlim(min(sizes) / 2, 2 * max(sizes))  # wide enough for two of 1, 2, 5, 10, ...
  axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axis.xaxis.set_major_formatter('{x:g}')
  axis.xaxis.set_minor_locator(ticker.NullLocator())
  axis.set_xlabel('parameters, millions')
  axis.set_ylabel('mIoU')


def _curves(axis: Any, rows: Sequence[Row], key: str, label: str) -> None:
  """Mean and standard deviation over runs at the steps that all of them have."""
  for index, row in enumerate(rows):
    by_step: dict[int, list[float]] = {}
    for run in row.runs:
      for record in run.records:
        if _known(record, key):
          by_step.setdefault(record['step'], []).append(record[key])
    steps = [step for step, values in sorted(by_step.items()) if len(values) == len(row.runs)]
    if not steps:
      continue
    thinning = -(-len(steps) // MOST_POINTS)
    steps = steps[::-thinning][::-1]  # the last one stays
    means, spreads = np.transpose([_mean_and_spread(by_step[step]) for step in steps])
    style = _style(index)
    every = -(-len(steps) // MOST_MARKERS)
    axis.plot(steps, means, markersize=4, markevery=every, label=_label(row), **style)
    if spreads.any():
      axis.fill_between(steps, means - spreads, means + spreads, color=style['color'], alpha=0.15)
  axis.set_xlabel('step')
  axis.set_ylabel(label)


def _fractions(axis: Any, rows: Sequence[Row]) -> None:
  """One line per network, setting and data of which there are several shares."""
  for index, line in enumerate(dict.fromkeys(row.line for row in rows)):
    own = [row for row in rows if row.line == line and row.scores('miou')]
    if len(own) < 2:
      continue
    own.sort(key=lambda row: row.fraction)
    means, spreads = np.transpose([_mean_and_spread(row.scores('miou')) for row in own])
    x = [100 * row.fraction for row in own]
    axis.errorbar(x, means, spreads, capsize=3, label=_shortened(line), **_style(index))
  axis.set_xlabel('training sections used, %')
  axis.set_ylabel('mIoU')
