"""Pictures of networks: stages as boxes, from top to bottom as they are computed.

The column of a box says how much smaller than the image its output is. The pictures are SVG, and
follow light and dark mode.
"""

import html
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import stages

__all__ = ['draw']

WIDTH, HEIGHT = 134, 34  # of a box
PITCH = 104  # between columns; boxes of neighbouring columns overlap if in one row
UNIT = 22  # of rows: a box takes two, a join one
TOP = 62  # room for title and heads of columns
MARGIN = 34  # for lines beside the outer columns
LANE = 8
STYLE = """
    .paper { fill: #ffffff; } .guide { stroke: #e6e6ea; }
    .box { fill: #eef3fb; stroke: #4a6fa5; } .end { fill: #f6f1e3; stroke: #9a7b2d; }
    .join { fill: #ffffff; stroke: #6b6b76; }
    .line { fill: none; stroke: #6b6b76; } .tip { fill: #6b6b76; }
    text { fill: #1d1d22; font: 11px sans-serif; } .small { fill: #55555f; font-size: 9.5px; }
    .title { font-size: 13px; font-weight: bold; }
    @media (prefers-color-scheme: dark) {
      .paper { fill: #1e2129; } .guide { stroke: #30343f; }
      .box { fill: #263349; stroke: #86a8dc; } .end { fill: #3a3320; stroke: #cdb067; }
      .join { fill: #1e2129; stroke: #a9abb8; }
      .line { stroke: #a9abb8; } .tip { fill: #a9abb8; }
      text { fill: #ececf1; } .small { fill: #b9bbc8; }
    }
"""
Point = tuple[float, float]


class Place(NamedTuple):
  """Where a node is drawn: its centre, and half of its size."""

  x: float
  y: float
  w: float
  h: float


def draw(network: stages.Network) -> str:
  """The picture of a network, as the text of an SVG file."""
  heads, columns = _columns(network)
  places = _places(network, columns)
  width = max(300, 2 * MARGIN + WIDTH + PITCH * (len(heads) - 1))
  height = max(p.y + p.h for p in places) + 16
  axes = 'y, x' if len(network.size) == 2 else 'z, y, x'
  said = f'{network.name}: {network.parameters:,} parameters'
  note = f'columns: size of the output ({axes}) as part of the image'
  lines = [
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:g}" '
    f'viewBox="0 0 {width} {height:g}" role="img">',
    f'  <title>{html.escape(said)}</title>',
    f'  <style>{STYLE}  </style>',
    f'  <rect class="paper" width="{width}" height="{height:g}" rx="6"/>',
    _text(12, 20, said, 'title', 'start'),
    _text(12, 35, note, 'small', 'start'),
  ]
  for n, head in enumerate(heads):
    x = _column(n)
    lines.append(f'  <path class="guide" d="M{x:g} {TOP - 6}V{height - 8:g}"/>')
    lines.append(_text(x, TOP - 12, head, 'small'))
  lines += [line for route in _routes(network, places, width) for line in _arrow(route)]
  for node, place in zip(network.nodes, places, strict=True):
    lines += _shape(node, place)
  return '\n'.join([*lines, '</svg>', ''])


def _columns(network: stages.Network) -> tuple[list[str], list[int]]:
  """Heads of the columns, and the column of each node."""
  scales = [_scale(node.shape, network.size) for node in network.nodes]
  found = sorted(set(scales), key=lambda s: (not s, math.prod(s), s))
  return [_head(s) for s in found], [found.index(s) for s in scales]


def _scale(shape: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
  """How many times smaller than the image along each axis; () if it is no smaller image."""
  ratios = [whole / part for whole, part in zip(size, shape, strict=False)]
  smaller = all(r <= 64 and math.log2(r).is_integer() for r in ratios)
  return tuple(int(r) for r in ratios) if smaller and len(shape) == len(size) + 1 else ()


def _head(scale: tuple[int, ...]) -> str:
  if not scale:
    return 'other'
  parts = ['1' if s == 1 else f'1/{s}' for s in scale]
  return parts[0] if len(set(parts)) == 1 else ', '.join(parts)


def _column(number: int) -> float:
  return MARGIN + WIDTH / 2 + PITCH * number


def _places(network: stages.Network, columns: Sequence[int]) -> list[Place]:
  """Each node below its sources, at the first height where it is free."""
  places: list[Place] = []
  for node, column in zip(network.nodes, columns, strict=True):
    x = _column(column)
    tall = 1 if node.kind in ('join', 'input', 'output') else 2
    half = 5 + 3 * max(1, len(node.name)) if node.kind == 'join' else WIDTH / 2
    h = {1: 8, 2: HEIGHT / 2}[tall]
    start = max((places[s].y + places[s].h + 6 for s in node.sources), default=TOP)
    y = math.ceil((start - TOP) / UNIT) * UNIT + TOP + tall * UNIT / 2
    while any(abs(p.x - x) < p.w + half + 4 and abs(p.y - y) < p.h + h + 4 for p in places):
      y += UNIT
    places.append(Place(x, y, half, h))
  return places


def _routes(network: stages.Network, places: Sequence[Place], width: int) -> Iterator[list[Point]]:
  """A line for each pair of nodes of which one feeds the other."""
  used: list[tuple[float, float, float]] = []  # upright lines: x, from, to
  pairs = [(places[s], p) for n, p in zip(network.nodes, places, strict=True) for s in n.sources]
  for source, target in sorted(pairs, key=lambda pair: pair[1].y - pair[0].y):
    others = [p for p in places if p not in (source, target)]
    best = min(_candidates(source, target, width), key=lambda route: _cost(route, others, used))
    used += [(a[0], a[1], b[1]) for a, b in itertools.pairwise(best) if a[0] == b[0]]
    yield best


def _candidates(source: Place, target: Place, width: int) -> Iterator[list[Point]]:
  side = math.copysign(source.w, target.x - source.x)
  if source.x == target.x:
    yield [(source.x, source.y + source.h), (target.x, target.y - target.h)]
  else:
    yield [(source.x + side, source.y), (target.x, source.y), (target.x, target.y - target.h)]
    end = target.x - math.copysign(target.w, target.x - source.x)
    yield [(source.x, source.y + source.h), (source.x, target.y), (end, target.y)]
  reach = range(int(-WIDTH / 2 - 7 * LANE), int(WIDTH / 2 + 8 * LANE), LANE)
  for lane in {*(source.x + d for d in reach), *(target.x + d for d in reach)}:
    out = math.copysign(source.w, lane - source.x)
    into = math.copysign(target.w, lane - target.x)
    beside = abs(lane - source.x) > source.w and abs(lane - target.x) > target.w
    if beside and 6 <= lane <= width - 6:
      yield [
        (source.x + out, source.y),
        (lane, source.y),
        (lane, target.y),
        (target.x + into, target.y),
      ]


def _cost(
  route: list[Point], others: Sequence[Place], used: Sequence[tuple[float, float, float]]
) -> float:
  """Length and bends, and much more for boxes and lines that are crossed or covered."""
  cost = 12.0 * len(route)
  for (x0, y0), (x1, y1) in itertools.pairwise(route):
    cost += abs(x1 - x0) + abs(y1 - y0)
    low, high = min(x0, x1), max(x0, x1)
    for p in others:
      inside = p.x - p.w - 3 < high and low < p.x + p.w + 3
      cost += 1000 * (inside and p.y - p.h - 2 < max(y0, y1) and min(y0, y1) < p.y + p.h + 2)
    for x, start, stop in used:
      along = abs(x - x0) < LANE - 1 and x0 == x1 and start - 9 < y1 and y0 < stop + 9
      cost += 300 * along + 5 * (low < x < high and start < y0 < stop)
  return cost + 1e-3 * route[1][0]  # the left one of two equals


def _arrow(route: list[Point]) -> Iterator[str]:
  path = ' '.join(f'{"L" if n else "M"}{x:g} {y:g}' for n, (x, y) in enumerate(route))
  yield f'  <path class="line" d="{path}"/>'
  (x0, y0), (x, y) = route[-2:]
  if y != y0:
    yield f'  <path class="tip" d="M{x:g} {y:g}l-3.5 -6h7z"/>'
  else:
    back = math.copysign(6, x0 - x)
    yield f'  <path class="tip" d="M{x:g} {y:g}l{back:g} -3.5v7z"/>'


def _shape(node: stages.Node, place: Place) -> Iterator[str]:
  x, y, w, h = place
  kind = {'join': 'join', 'input': 'end', 'output': 'end'}.get(node.kind, 'box')
  radius = 8 if kind != 'box' else 4
  yield (
    f'  <rect class="{kind}" x="{x - w:g}" y="{y - h:g}" width="{2 * w:g}" height="{2 * h:g}" '
    f'rx="{radius}"/>'
  )
  left, right = x - w + 6, x + w - 6
  if kind == 'join':
    yield _text(x, y + 3.5, node.name)
  elif kind == 'end':
    yield _text(left, y + 3.5, node.name, '', 'start')
    yield _text(right, y + 3.5, str(node.shape[-1]), '', 'end')
  else:
    times = f' ×{node.count}' if node.count > 1 else ''
    yield _text(left, y - 3, node.name, '', 'start')
    yield _text(right, y - 3, str(node.shape[-1]), '', 'end')
    yield _text(left, y + 11, f'{node.kind}{times}', 'small', 'start')
    yield _text(right, y + 11, _short(node.parameters), 'small', 'end')


def _short(number: int) -> str:
  """'' for 0, 128, 37.6 k, 14.2 M."""
  if number < 1000:
    return str(number or '')
  unit, name = (1e6, 'M') if number >= 999_500 else (1e3, 'k')
  value = number / unit
  return f'{value:.0f} {name}' if value >= 99.95 else f'{value:.1f} {name}'


def _text(x: float, y: float, text: str, name: str = '', anchor: str = 'middle') -> str:
  kind = f' class="{name}"' if name else ''
  return f'  <text{kind} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{html.escape(text)}</text>'
