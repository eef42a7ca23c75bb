"""Curves as inline SVG, which take text colour and font from the page (`currentColor`).

So they read on light and dark grounds; their legends are left to the page.
"""

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ['DASHES', 'Curve', 'Line', 'curve']

DASHES = {'solid': '-', 'dashed': '--', 'dotted': ':'}
# A colour that no line has; replaced by the page's text colour.
INK = '#010203'
MAX_POINTS = 600


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of a curve, or bars of a width. NaN in `values` leaves a gap."""

  label: str
  x: Sequence[float]
  values: Sequence[float]
  colour: str
  dash: str = 'solid'
  bars: float | None = None


@dataclasses.dataclass(frozen=True)
class Curve:
  """A drawn curve: inline SVG, its lines for the legend, and words that stand in for it."""

  title: str
  description: str
  svg: str
  lines: tuple[Line, ...]


def curve(
  title: str,
  panels: Mapping[str, Sequence[Line]],
  *,
  x: str = 'step',
  share: bool = False,
  log: bool = False,
) -> Curve:
  """Draws lines, one axis per panel (y label -> lines), stacked.

  More than 600 points are drawn as means over runs of points; a run with a NaN becomes a gap.

  Args:
    title: no other curve of a page may have it.
    panels: y label -> lines.
    x: what the x axis shows.
    share: x runs from 0 to 1, and so does the y axis of the first panel; otherwise x counts.
    log: logarithmic y axes.
  """
  import matplotlib
  from matplotlib import style, ticker
  from matplotlib.figure import Figure

  # A context, because SVG text and ids can only be set through rcParams; it is left as it was.
  options = {
    'svg.fonttype': 'none',
    'svg.hashsalt': title,
    'font.size': 11,
    **dict.fromkeys(('text.color', 'axes.labelcolor', 'axes.edgecolor'), INK),
    **dict.fromkeys(('xtick.color', 'ytick.color'), INK),
  }
  with matplotlib.rc_context(), style.context(['default', options]):
    figure = Figure(figsize=(5.4, 3.2), layout='constrained')
    heights = [2.5 if share and i == 0 else 1 for i in range(len(panels))]
    axes = figure.subplots(
      len(panels), 1, sharex=True, squeeze=False, gridspec_kw={'height_ratios': heights}
    )[:, 0]
    for axis, (label, lines) in zip(axes, panels.items(), strict=True):
      _draw(axis, label, lines, log=log, bins=6 if len(panels) == 1 else 3)
    if share:
      axes[0].set_ylim(-0.02, 1.02)
      axes[-1].set_xlim(0, 1)
    else:
      axes[-1].xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
      axes[-1].xaxis.set_major_formatter(ticker.EngFormatter(sep=''))
      axes[-1].set_xlim(left=0)
    axes[-1].set_xlabel(x)
    buffer = io.StringIO()
    nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    figure.savefig(buffer, format='svg', transparent=True, metadata=nothing)
  lines = tuple(line for panel in panels.values() for line in panel)
  return Curve(title, _describe(title, lines, x), _inline(buffer.getvalue(), title), lines)


def _draw(axis: Any, label: str, lines: Sequence[Line], *, log: bool, bins: int) -> None:
  from matplotlib import ticker

  for line in lines:
    x, values = _thin(line)
    if line.bars is not None:
      axis.bar(x, values, line.bars, color=line.colour)
      continue
    axis.plot(
      x,
      values,
      color=line.colour,
      linestyle=DASHES[line.dash],
      linewidth=1.8,
      marker='o' if len(x) <= 15 else None,
      markersize=4,
    )
  axis.set_ylabel(label)
  if log:
    axis.set_yscale('log')
  else:
    axis.yaxis.set_major_locator(ticker.MaxNLocator(bins, steps=[1, 2, 5, 10]))
  axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f'{y:.6g}'))
  axis.yaxis.set_minor_formatter(ticker.NullFormatter())
  axis.spines[['top', 'right']].set_visible(False)
  axis.grid(color=INK, alpha=0.15, linewidth=0.8)
  axis.set_axisbelow(True)


def _thin(line: Line) -> tuple[np.ndarray, np.ndarray]:
  x = np.asarray(line.x, np.float64)
  values = np.asarray(line.values, np.float64)
  if len(x) <= MAX_POINTS:
    return x, values
  starts = np.linspace(0, len(x), MAX_POINTS, endpoint=False).astype(int)
  counts = np.diff(np.append(starts, len(x)))
  return np.add.reduceat(x, starts) / counts, np.add.reduceat(values, starts) / counts


def _describe(title: str, lines: Sequence[Line], x: str) -> str:
  """The curve in words, for readers who do not see it."""
  parts = [
    f'{line.label} from {line.values[0]:.4g} at {x} {line.x[0]:.6g} '
    f'to {line.values[-1]:.4g} at {x} {line.x[-1]:.6g}'
    for line in lines
  ]
  return f'{title}: ' + '; '.join(parts) + '.'


def _inline(svg: str, title: str) -> str:
  """matplotlib's SVG file as an element of an HTML page: no prolog, unique ids, page colours."""
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', svg, count=1)
  svg = re.sub(r'<style.*?</style>', '', svg, flags=re.DOTALL)  # it would style the whole page
  svg = re.sub(r'<!--.*?-->', '', svg, flags=re.DOTALL)
  key = re.sub(r'\W', '', title)
  svg = re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{key}-', svg)
  return svg.replace(INK, 'currentColor').strip()
