"""What the page shows of `evaluation/<split>.json`: tables as rows, curves drawn.

Files of older versions lack intervals, calibration or objects; the page then goes without.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from emseg_jax.colours import PALETTE
from emseg_jax.errors import DataError
from emseg_jax.report.curves import DASHES, Line, curve
from emseg_jax.report.reading import Json, read_json

__all__ = ['add_views', 'read_evaluations']

SPLITS = ('test', 'validation', 'train')  # the first one present gives the headline
SCORES = ('precision', 'recall', 'dice', 'iou')
DIAGONAL = [i / 20 for i in range(21)]


def read_evaluations(folder: Path) -> dict[str, Json]:
  """The evaluation of each split present, with the fields that the page cannot do without.

  Raises:
    DataError: a file is damaged, or lacks one of them.
  """
  found = {}
  for split in SPLITS:
    path = folder / f'{split}.json'
    content = read_json(path)
    if content is None:
      continue
    for field in ('step', 'classes', 'confusion', 'scores'):
      if field not in content:
        raise DataError(f"{path}: field '{field}' is missing; run --mode=evaluate again")
    content['images'] = sorted(content.get('images') or [], key=_by_score)
    content['baselines'] = content.get('baselines') or {}
    found[split] = content
  return found


def _by_score(image: Json) -> tuple[bool, float, str]:
  miou = image.get('miou')
  return miou is None, 0.0 if miou is None else miou, image['name']


def add_views(evaluation: Json, colours: Mapping[str, str], *, path: Path) -> None:
  """Adds to an evaluation what its tables and figures show.

  Args:
    evaluation: of `read_evaluations`.
    colours: '#rrggbb' by class, of the classes that have one.
    path: the file it is from, for errors.

  Raises:
    DataError: fields are missing, or do not belong together.
  """
  try:
    names = list(evaluation['scores']['per_class'])
    evaluation['rows'] = [
      [(count, count / sum(row) if sum(row) else None) for count in row]
      for row in evaluation['confusion']
    ]
    evaluation['table'] = _class_rows(evaluation, names)
    evaluation['sampled'] = (evaluation.get('intervals') or {}).get('images')
    evaluation['thresholds'] = _thresholds(evaluation, colours)
    evaluation['reliability'] = _reliability(evaluation, overlap=names != evaluation['classes'])
    evaluation['instances'] = _instances(evaluation.get('extras') or {})
    evaluation['sizes'] = _sizes(evaluation.get('objects'))
  except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
    raise DataError(
      f'{path}: its fields do not belong together ({type(error).__name__}: {error}); run '
      '--mode=evaluate again'
    ) from error


def _instances(extras: Json) -> Json | None:
  """Of a task of affinities: what was segmented, beside what needs no network, and each offset."""
  if 'affinities' not in extras:
    return None
  # Here, because it starts jax, which the pages of --mode=check do without.
  from emseg_jax.instance_evaluation import better_threshold

  keys = 'error', 'vi', 'vi_split', 'vi_merge'
  rows = {'This model': extras['rand'], **extras.get('trivial', {})} if 'rand' in extras else {}
  tried = [(row['threshold'], [row[k] for k in keys]) for row in extras.get('by_threshold', ())]
  return {
    'rows': [(name.capitalize(), [row[k] for k in keys]) for name, row in rows.items()],
    'tried': tried,
    'better': better_threshold(extras),
    'found': [(iou, row) for iou, row in extras.get('instances', {}).items()],
    'offsets': list(extras['affinities']['per_class'].items()),
  }


def _class_rows(evaluation: Json, names: Sequence[str]) -> list[Json]:
  """A class a row: counts, and each score with its interval (None without)."""
  # Here, because it starts jax, which the pages of --mode=check do without.
  from emseg_jax.metrics.confusion import count_classes

  confusion = np.asarray(evaluation['confusion'], np.int64)
  hits, labelled, predicted = (n.tolist() for n in count_classes(confusion, len(names)))
  intervals = (evaluation.get('intervals') or {}).get('per_class') or {}
  rows = []
  for k, name in enumerate(names):
    scores = evaluation['scores']['per_class'][name]
    sampled = intervals.get(name) or {}
    rows.append(
      {
        'name': name,
        'labelled': labelled[k],
        'right': hits[k],
        'missed': labelled[k] - hits[k],
        'false': predicted[k] - hits[k],
        'scores': [(scores[key], sampled.get(key)) for key in SCORES],
        'share': scores['share'],
      }
    )
  return rows


def _thresholds(evaluation: Json, colours: Mapping[str, str]) -> Json | None:
  """Scores over the threshold: all of one class, or the IoU of each of several."""
  stored = ((evaluation.get('extras') or {}).get('thresholds') or {}).get('per_class') or {}
  if not stored:
    return None
  title = f'Thresholds, {evaluation["split"]}'
  if len(stored) == 1:
    ((name, found),) = stored.items()
    shown = {key: found['curve'][key] for key in ('iou', 'precision', 'recall')}
    labels, palette = ('IoU', 'precision', 'recall'), PALETTE
    title, y = f'{title}: {name}', 'score'
  else:
    shown = {name: found['curve']['iou'] for name, found in stored.items()}
    labels, y = tuple(shown), 'IoU'
    palette = [colours.get(name, '#808080') for name in shown]
  steps = next(iter(stored.values()))['curve']['threshold']
  lines = []
  for i, (label, values) in enumerate(zip(labels, shown.values(), strict=True)):
    points = [(t, v) for t, v in zip(steps, values, strict=True) if v is not None]
    if points:
      dash = list(DASHES)[i % len(DASHES)]
      lines.append(Line(label, *zip(*points, strict=True), palette[i % len(palette)], dash))
  if not lines:
    return None
  best = [
    (name, found['best_iou'], found['best_threshold'])
    for name, found in stored.items()
    if found['best_iou'] is not None
  ]
  return {'curve': curve(title, {y: lines}, x='threshold', share=True), 'best': best}


def _reliability(evaluation: Json, *, overlap: bool) -> Json | None:
  """How often decisions of one confidence are right, and how many there are."""
  stored = evaluation.get('calibration')
  if not stored or stored['ece'] is None:
    return None
  count, total = stored['count'], sum(stored['count'])
  bins = [
    (c, a, n / total)
    for c, a, n in zip(stored['confidence'], stored['accuracy'], count, strict=True)
    if n
  ]
  confidence, accuracy, share = zip(*bins, strict=True)
  width = 1 / len(count)
  middle = [(m + 0.5) * width for m, n in enumerate(count) if n]
  unit = 'decisions' if overlap else 'pixels'
  panels = {
    'share right': [
      Line('as sure as right', DIAGONAL, DIAGONAL, '#808080', 'dashed'),
      Line('this model', confidence, accuracy, PALETTE[0]),
    ],
    'part': [Line(f'part of all {unit}', middle, share, PALETTE[4], bars=0.9 * width)],
  }
  title = f'Calibration, {evaluation["split"]}'
  return {
    'curve': curve(title, panels, x='confidence', share=True),
    'ece': stored['ece'],
    'confidence': sum(c * s for c, _, s in bins),
    'accuracy': sum(a * s for _, a, s in bins),
    'unit': unit,
    'rows': [
      (m * width, (m + 1) * width, n, stored['confidence'][m], stored['accuracy'][m])
      for m, n in enumerate(count)
      if n
    ],
  }


def _sizes(stored: Json | None) -> Json | None:
  """Objects and found ones, an octave of sizes a row; diameters where voxels have a size."""
  if not stored or not stored['octaves']:
    return None
  voxel, ndim = stored['voxel_size'], stored['ndim']
  rows = []
  for i, octave in enumerate(stored['octaves']):
    sizes = 2**octave, 2 ** (octave + 1)
    cells = [
      (c['found'][i], c['objects'][i], c['found'][i] / c['objects'][i]) if c['objects'][i] else None
      for c in stored['per_class'].values()
    ]
    if not any(cells):
      continue
    across = [_diameter(n * math.prod(voxel), ndim) for n in sizes] if voxel else None
    rows.append({'low': sizes[0], 'high': sizes[1] - 1, 'across': across, 'cells': cells})
  return {
    'classes': list(stored['per_class']),
    'unit': 'pixels' if ndim == 2 else 'voxels',
    'ball': 'disc' if ndim == 2 else 'ball',
    'rows': rows,
    'nm': voxel is not None,
  }


def _diameter(size: float, ndim: int) -> str:
  """Of a disc of this area, or a ball of this volume."""
  length = 2 * math.sqrt(size / math.pi) if ndim == 2 else (6 * size / math.pi) ** (1 / 3)
  return f'{length:,.0f}' if length >= 10 else f'{length:.2g}'
