"""Images that occur twice, near-copies, and neighbouring sections on both sides of a split.

Copies are found by the digest of their pixels, or because a section is used twice. Near-copies
(another brightness, contrast or sign, JPEG, a little noise, flipped or turned) are found by the
correlation of their details (`look`): on real data above 0.96 for copies, below 0.92 for
adjacent sections of 5 nm. Adjacent sections are alike without being copies, which is a note: a few
are unavoidable, but scores on sections next to training sections flatter.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from emseg_jax.check.measure import Measured, find_place
from emseg_jax.check.poses import AS_IS, POSES
from emseg_jax.check.problem import Place, Problem
from emseg_jax.check.read import SplitRead
from emseg_jax.check.survey import locate

__all__ = ['correlate', 'judge_repeats']

COPY = 0.95  # least correlation of details of a near-copy
ALIKE = 0.5  # of the details of neighbours, wherever they lie
RELATED = 0.4  # of the thumbnails of sections that are neighbours in their volume
AT_ONCE = 256  # sections that are compared with all others at a time

Splits = Mapping[str, Sequence[Measured]]


def judge_repeats(data: Mapping[str, SplitRead]) -> Iterator[Problem]:
  """Of all kinds; sections of one value may occur any number of times."""
  splits = {name: split.measured for name, split in data.items()}
  yield from _judge_places(data)
  yield from _judge_digests(splits)
  yield from _judge_details(splits)


def _judge_places(data: Mapping[str, SplitRead]) -> Iterator[Problem]:
  """Sections that are used twice, whether they were read or not."""
  seen: dict[tuple[str, int], list[str]] = {}  # place -> splits
  for name, split in data.items():
    number = {id(m.section): i for i, m in enumerate(split.measured)}
    flat = {id(m.section) for m in split.measured if m.low == m.high}
    for section in split.sections:
      place = find_place(section)
      if place is None or id(section) in flat:
        continue
      users = seen.setdefault(place, [])
      where = locate(section.image_volume, section.image_index)
      places = ((name, number[id(section)]),) if id(section) in number else ()
      for user in users:
        if user == name:
          message = f'{where}: is used twice; change slices'
          yield Problem('warning', name, 'repeated', message, places)
        else:
          message = f'{where}: is also used in {user}; change slices'
          yield Problem('error', name, 'leakage', message, places)
      users += [name] * (name not in users)


def _judge_digests(splits: Splits) -> Iterator[Problem]:
  """Different files or sections with the same pixels."""
  seen: dict[str, list[Place]] = {}  # digest -> the first of each split
  for name, read in splits.items():
    for i, m in enumerate(read):
      if m.low == m.high:
        continue
      known = seen.setdefault(m.digest, [])
      for other, j in known:
        twin = splits[other][j]
        if find_place(m.section) is None or find_place(m.section) != find_place(twin.section):
          yield _report_copy((name, i), (other, j), splits, 'has the same pixels as')
      known += [(name, i)] * (name not in [other for other, _ in known])


def _report_copy(a: Place, b: Place, splits: Splits, what: str) -> Problem:
  """Section `a` repeats `b`: leakage from one split to another, or only a waste."""
  m, twin = (splits[name][i] for name, i in (a, b))
  same = a[0] == b[0]
  of = '' if same else f' of {b[0]}'
  message = f'{m.image_at}: {what} {twin.image_at}{of}; remove one of them'
  if same:
    return Problem('warning', a[0], 'repeated', message, (a, b))
  return Problem('error', a[0], 'leakage', message, (a, b))


def _judge_details(splits: Splits) -> Iterator[Problem]:
  """Near-copies; then how many sections of a split have a neighbour in an earlier one."""
  places = [(name, i) for name, read in splits.items() for i in range(len(read))]
  sections = [splits[name][i] for name, i in places]
  split_of = np.array([list(splits).index(name) for name, _ in places])
  limit = _find_limit(sections)
  copies: dict[int, tuple[float, int, str]] = {}
  beside = np.zeros((len(sections), len(splits)), bool)  # is there one like it in that split?
  for what, rows, columns, found in correlate([m.detail for m in sections]):
    for y, x in zip(*np.nonzero(np.abs(found) > limit), strict=True):
      a, b = int(rows[y]), int(columns[x])
      if b < a and sections[a].digest != sections[b].digest:
        copies[a] = max(copies.get(a, (0.0, 0, '')), (abs(float(found[y, x])), b, what))
    if what == AS_IS:
      for s in range(len(splits)):
        beside[rows, s] |= np.where(split_of[columns] == s, found, 0.0).max(axis=1) > ALIKE
  for a, (_, b, what) in sorted(copies.items()):
    turned = '' if what == AS_IS else f', {what},'
    yield _report_copy(places[a], places[b], splits, f'is a near-copy{turned} of')
  _add_adjacent(sections, split_of, beside)
  for a, b in zip(*np.nonzero(np.tri(len(splits), k=-1)), strict=True):
    known = {m.digest for m, s in zip(sections, split_of, strict=True) if s == b}
    near = [k for k in np.flatnonzero((split_of == a) & beside[:, b]) if k not in copies]
    near = [places[k] for k in near if sections[k].digest not in known]
    if near:
      yield _report_neighbours(near, list(splits)[b], splits)


def correlate(
  details: Sequence[np.ndarray],
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
  """Correlations of all details of equal shape, as they are and turned in seven ways.

  Yields:
    How the columns are turned, row numbers, column numbers, f32 [rows, columns].
  """
  shapes = np.array([d.shape for d in details]).reshape(-1, 2)
  for shape in np.unique(shapes, axis=0):
    members = np.flatnonzero((shapes == shape).all(axis=1))
    own = _stack([details[k] for k in members])
    for what, turn in POSES.items():
      turned = [turn(details[k]) for k in members]
      if turned[0].shape == tuple(shape):
        columns = _stack(turned)
        for start in range(0, len(members), AT_ONCE):
          part = slice(start, start + AT_ONCE)
          yield what, members[part], members, own[part] @ columns.T


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
  """f32 [n, pixels], of length 1."""
  flat = np.stack([a.ravel() for a in arrays]).astype(np.float32)
  return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-30)


def _find_limit(sections: Sequence[Measured]) -> float:
  """What correlation makes a copy: more than between sections that follow each other."""
  follow = [
    (_stack([a.detail]) @ _stack([b.detail]).T).item()
    for a, b in itertools.pairwise(sections)
    if a.section.image_volume is b.section.image_volume
    and a.section.image_index + 1 == b.section.image_index
    and a.detail.shape == b.detail.shape
  ]
  return max(COPY, 1 - (1 - float(np.median(follow))) / 2) if follow else COPY


def _add_adjacent(sections: Sequence[Measured], split_of: np.ndarray, beside: np.ndarray) -> None:
  """Marks sections whose neighbour in the same volume belongs to another split and looks alike."""
  place = {_locate(m): k for k, m in enumerate(sections)}
  for (path, index), k in place.items():
    for other in (place.get((path, index - 1)), place.get((path, index + 1))):
      if path and other is not None and split_of[other] != split_of[k]:
        pair = _stack([sections[k].thumbnail, sections[other].thumbnail])
        beside[k, split_of[other]] |= pair[0] @ pair[1] > RELATED


def _locate(m: Measured) -> tuple[str, int]:
  """Volume and number in it; '' in memory."""
  volume = m.section.image_volume
  return '' if volume.kind == 'memory' else os.path.realpath(volume.path), m.section.image_index


def _report_neighbours(near: Sequence[Place], other: str, splits: Splits) -> Problem:
  name, first = near[0]
  message = (
    f'{splits[name][first].image_at}: {len(near)} of {len(splits[name])} sections of {name} look '
    f'like neighbours of sections of {other}; scores on them are better than on tissue never seen, '
    'so keep them few: one block of sections for each split'
  )
  return Problem('note', name, 'neighbours', message, tuple(near[:1]))
