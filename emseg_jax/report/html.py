"""The report of a run as one HTML file that needs no network, no server and no script.

Reads `config.json`, `metrics.jsonl` and `evaluation/<split>.json` of a work directory; each may be
missing, and the page then says so. The same inputs give the same bytes.
"""

import contextlib
import datetime
import functools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emseg_jax import colours as colours_lib
from emseg_jax.colours import PALETTE
from emseg_jax.errors import DataError, OutputError
from emseg_jax.report import curves, evaluation_view, figures, objects, reading
from emseg_jax.report.reading import Json

__all__ = ['write_report']

SCORES = {'miou': 'Mean IoU', 'accuracy': 'Accuracy', 'mean_dice': 'Mean Dice'}
# Pictures hardly compress: 8 grey cases of 768 x 768 make a page of about 6 MB.
LONGEST, PIXELS = 768, 5_000_000


def write_report(
  workdir: Path,
  *,
  worst: Sequence[figures.Case],
  best: Sequence[figures.Case],
  versions: Mapping[str, str],
  colours: Sequence[str] | None,
  command: str | None,
) -> Path:
  """Writes `report.html` into a work directory and returns its path.

  Args:
    workdir: the run; its files are only read.
    worst: the images with the lowest scores, worst first.
    best: the images with the highest scores, best first.
    versions: package name -> version.
    colours: '#rrggbb' per class; None takes a colour-blind-safe palette.
    command: the command line of the run, None if not known.

  Raises:
    DataError: a file of the work directory is damaged, or a case does not fit the classes.
    ConfigError: a colour cannot be read.
    OutputError: the report could not be written; an older one is left as it was.
  """
  config = reading.read_json(workdir / 'config.json') or {}
  records, cut = reading.read_records(workdir / 'metrics.jsonl')
  evaluations = evaluation_view.read_evaluations(workdir / 'evaluation')
  classes = _class_names(config, evaluations, [*worst, *best])
  palette = colours_lib.class_colours(colours, len(classes))
  named = dict(zip(classes, palette, strict=True))
  for split, evaluation in evaluations.items():
    evaluation_view.add_views(evaluation, named, path=workdir / 'evaluation' / f'{split}.json')
  page = _render(
    workdir,
    name=workdir.resolve().name,
    settings={section: config.get(section, {}) for section in ('task', 'model', 'train')},
    last=records[-1] if records else None,
    classes=named,
    headline=_headline(evaluations, records),
    evaluations=evaluations,
    confidence=config.get('eval', {}).get('confidence'),
    curves=_curves(records, named),
    cut=cut,
    cases=_cases(worst, best, classes, palette),
    config={section: list(_flatten(fields)) for section, fields in config.items()},
    versions=versions,
    command=command,
  )
  return _write(workdir / 'report.html', page)


def _class_names(
  config: Json, evaluations: Mapping[str, Json], cases: Sequence[figures.Case]
) -> list[str]:
  # An evaluation's names come first: where classes overlap they are those of the masks.
  names = next((evaluation['classes'] for evaluation in evaluations.values()), None)
  names = names or config.get('task', {}).get('classes')
  if names:
    return list(names)
  highest = [max((c.label * (c.weight != 0)).max(), c.prediction.max()) for c in cases]
  return [f'class {i}' for i in range(max(highest, default=-1) + 1)]


def _headline(evaluations: Mapping[str, Json], records: Sequence[Json]) -> Json | None:
  """The first evaluation present; else the last scores of training in the same form."""
  for evaluation in evaluations.values():
    return evaluation
  for record in reversed(records):
    if record.get('validation/miou') is not None:
      scores = {key: record.get(f'validation/{key}') for key in SCORES}
      return {'split': 'validation', 'step': record['step'], 'scores': scores, 'baselines': {}}
  return None


def _curves(records: Sequence[Json], colours: Mapping[str, str]) -> list[curves.Curve]:
  """One curve per subject of the records; a subject without any value has none."""
  pick = functools.partial(_lines, records)
  terms = sorted({key for record in records for key in record if key.startswith('train/')})
  terms.sort(key='train/loss'.__ne__)
  loss = pick({key: key.removeprefix('train/') for key in terms})
  values = [value for line in loss for value in line.values if math.isfinite(value)]
  classes = {f'validation/iou/{name}': name for name in colours}
  scores = {f'validation/{key}': name for key, name in SCORES.items()}
  throughput = {
    'images/s': pick({'perf/images_per_sec': 'images per second'}),
    'waiting': pick({'perf/data_wait_frac': 'share of time waiting for data'}, PALETTE[1:]),
  }
  subjects = {
    'Training loss': {'loss': loss},
    'Learning rate': {'learning rate': pick({'opt/learning_rate': 'learning rate'})},
    'Gradient norm': {'norm': pick({'norm/grads': 'gradient norm'})},
    'Validation scores': {'score': pick(scores)},
    'Validation IoU per class': {'IoU': pick(classes, list(colours.values()))},
    'Throughput': throughput,
  }
  wide = bool(values) and min(values) > 0 and max(values) > 50 * min(values)
  return [
    curves.curve(title, shown, log=wide and title == 'Training loss')
    for title, panels in subjects.items()
    if (shown := {label: lines for label, lines in panels.items() if lines})
  ]


def _lines(
  records: Sequence[Json], names: Mapping[str, str], colours: Sequence[str] = PALETTE
) -> list[curves.Line]:
  """A line for each key with a value, told apart by colour and dash; a null score is no point."""
  lines = []
  for i, (key, name) in enumerate(names.items()):
    points = [(r['step'], r[key]) for r in records if r.get(key) is not None]
    if points:
      steps, values = zip(*points, strict=True)
      dash = list(curves.DASHES)[i % len(curves.DASHES)]
      lines.append(curves.Line(name, steps, values, colours[i % len(colours)], dash))
  return lines


def _cases(
  worst: Sequence[figures.Case],
  best: Sequence[figures.Case],
  classes: Sequence[str],
  palette: Sequence[str],
) -> Json | None:
  """Layers and legends of the pictures; None without any."""
  cases = [*worst, *best]
  if not cases:
    return None
  channels = max(1 if case.image.ndim == 2 else 3 for case in cases)
  longest = min(LONGEST, int(math.sqrt(PIXELS / len(cases) / channels)))
  common = figures.most_common_class(cases, len(classes))
  return {
    'common': common,
    'objects': any(case.objects for case in cases),
    'colours': figures.ERROR_COLOURS,
    'groups': {
      title: [_layers(case, palette, common, longest) for case in group]
      for title, group in (('Worst', worst), ('Best', best))
      if group
    },
  }


def _layers(case: figures.Case, palette: Sequence[str], common: int, longest: int) -> Json:
  """One case: the grey image and the overlays that the page stacks on it, all of one size."""
  label, prediction, plain = case.label, case.prediction, common
  if case.objects:
    label, prediction = map(objects.colour_numbers, case.objects)
    palette, plain = ('#000000', *PALETTE), 0
  layers = {
    'image': figures.draw_image(case.image),
    'label': figures.draw_labels(label, colours=palette, plain=plain, weight=case.weight),
    'prediction': figures.draw_labels(prediction, colours=palette, plain=plain),
    'errors': figures.draw_errors(case.label, case.weight, case.prediction, common=common),
  }
  uris = {name: figures.png_uri(pixels, longest=longest) for name, pixels in layers.items()}
  scored = case.weight != 0
  wrong = (case.label != case.prediction)[scored]
  return {
    'name': case.name,
    'accuracy': case.accuracy,
    'miou': case.miou,
    'size': case.image.shape[:2],
    'shown': uris['image'][1],
    'uris': {name: uri for name, (uri, _) in uris.items()},
    'wrong': float(wrong.mean()) if wrong.size else None,
    'unscored': float(1 - scored.mean()),
  }


def _flatten(value: Any, path: str = '') -> Iterator[tuple[str, str]]:
  """Leaves of nested objects as (dotted path, JSON)."""
  if isinstance(value, dict) and value:
    for key, child in value.items():
      yield from _flatten(child, f'{path}.{key}' if path else key)
  else:
    yield path, json.dumps(value, ensure_ascii=False)


def _score(value: float | None, digits: int = 4) -> str:
  if value is None:
    return 'absent'
  return f'{value:.{digits}f}' if math.isfinite(value) else 'not finite'


def _date(seconds: float) -> str:
  """Seconds since 1970 as a date that does not depend on where the report is written."""
  return f'{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC'


def _render(workdir: Path, **context: Any) -> str:
  import jinja2

  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['score'] = _score
  environment.filters['percent'] = lambda value: f'{100 * value:.1f} %'
  environment.filters['date'] = _date
  template = environment.get_template('report.html.j2')
  try:
    return template.render(context, SCORES=SCORES)
  except jinja2.UndefinedError as error:
    raise DataError(
      f'{workdir}: a file under evaluation/ or config.json lacks a field of the report ({error}); '
      'run --mode=evaluate again'
    ) from error


def _write(path: Path, page: str) -> Path:
  """Writes to a temporary name in the same folder, then renames."""
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    temporary.write_text(page, 'utf-8', errors='replace')  # file names need not be valid UTF-8
    os.replace(temporary, path)
  except OSError as error:
    with contextlib.suppress(OSError):  # the first error is the one to report
      temporary.unlink(missing_ok=True)
    raise OutputError(f'{path}: cannot be written ({error.strerror})') from error
  return path
