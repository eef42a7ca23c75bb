"""Scores of affinities, and of the instances that they make, on whole sections or volumes.

The matrix of an evaluation counts pairs of voxels, apart or joined, over all offsets. Beside it, in
`extras`, stand the scores of each offset, and those of the instances against the true ones: adapted
Rand error, variation of information, and how many objects are found. Class maps show where a pixel
is joined to all four that share a side with it.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emseg_jax import config as config_lib
from emseg_jax import evaluation, metrics
from emseg_jax.config.postprocess import Postprocess
from emseg_jax.data import blocks, pairs
from emseg_jax.data import labels as labels_lib
from emseg_jax.errors import DataError
from emseg_jax.evaluation import Evaluation, ImageScore
from emseg_jax.metrics import affinities, instances, segmentation
from emseg_jax.postprocess.affinities import quantised, segment
from emseg_jax.predict import Predictor

__all__ = ['better_threshold', 'evaluate_split', 'format_evaluation', 'label_map', 'score_files']

THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # tried for components, or for markers
CLEARLY = 0.02  # of adapted Rand error


def evaluate_split(
  predictor: Predictor,
  split: pairs.Split,
  *,
  extra_metrics: Sequence[str] = (),
  baselines: bool = True,
  details: bool = True,
  should_stop: Callable[[], bool] | None = None,
  on_prediction: Callable[[int, np.ndarray], None] | None = None,
  on_instances: Callable[[int, np.ndarray], None] | None = None,
) -> Evaluation:
  """`evaluation.evaluate_split` for every kind of task; see there for what is common to all.

  Args:
    predictor, split, extra_metrics, should_stop, on_prediction: as there.
    baselines: also score what needs no network.
    details: also make and score instances, with other thresholds as well; otherwise only where
      eval.best is a score of theirs.
    on_instances: called with each section's index and the instances in it, uint16 [Y, X], where
      they are made; they are numbered from 1 in each section.
  """
  config = predictor.config
  if not config.task.affinities:
    return evaluation.evaluate_split(
      predictor,
      split,
      extra_metrics=extra_metrics,
      baselines=baselines,
      details=details,
      should_stop=should_stop,
      on_prediction=on_prediction,
    )
  best = config.eval.best
  counting = _Counting(
    config,
    segment=details or best.startswith(('rand/', 'instances/')),
    thresholds=THRESHOLDS if details else (),
    trivial=baselines,
  )
  for group in blocks.groups(split, len(config.data.patch)):
    found = predictor.group_probabilities(split, group, should_stop)
    found = found.reshape(len(group), *found.shape[-3:])
    maps = {offset: found[..., k] for k, offset in enumerate(config.task.offsets)}
    decided = {offset: values > 0.5 for offset, values in maps.items()}
    ids = np.stack([split.label(i) for i in group])
    voxel = split.sections[group[0]].image_volume.voxel_size_zyx
    made = functools.partial(segment, quantised(maps), voxel_size=voxel)
    image = np.stack([split.image(i) for i in group]) if baselines else None
    objects = counting.add(group, decided, ids, made, image)
    if on_instances is not None and objects is not None:
      for index, section in zip(group, objects, strict=True):
        on_instances(index, _numbered(section))
    if on_prediction is not None:
      for index, section in zip(group, affinities.interior(decided), strict=True):
        on_prediction(index, section)
  return counting.result(split)


def score_files(
  predictions: str | Path, labels: str | Path, *, config: config_lib.Config
) -> Evaluation:
  """`evaluation.score_files` for every kind of task; of affinities the files hold instance ids."""
  task = config.task
  if not task.affinities:
    return evaluation.score_files(predictions, labels, config=config)
  source = config_lib.Source(images=str(predictions), labels=str(labels))
  split = pairs.open_split(
    [source], task=task, data=config_lib.Data(labels=config.data.labels), palette='index'
  )
  counting = _Counting(config, segment=True)
  for group in blocks.groups(split, len(config.data.patch)):
    made = np.stack(
      [
        labels_lib.instance_ids(split.image(i), ignore_value=None, name=split.sections[i].name)
        for i in group
      ]
    )
    ids = np.stack([split.label(i) for i in group])
    decided = {offset: affinities.joined(made, offset) for offset in task.offsets}
    counting.add(group, decided, ids, lambda _, made=made: made)
  return counting.result(split)


def label_map(ids: np.ndarray, task: config_lib.Task) -> np.ndarray:
  """The class map of a label [Y, X], as those of predictions: 0 or 1, IGNORED where not scored."""
  maps = {offset: affinities.joined(ids, offset[-2:])[None] for offset in task.offsets}
  flat = {o: m for o, m in maps.items() if not any(o[:-2])}
  shown = affinities.interior(flat)[0]
  return np.where(labels_lib.ignored(ids), labels_lib.IGNORED, shown).astype(np.uint8)


class _Counting:
  """Adds up groups of sections.

  Args:
    config: of the run.
    segment: also score instances.
    thresholds: others that are tried.
    trivial: also score what needs no network.
  """

  def __init__(
    self,
    config: config_lib.Config,
    *,
    segment: bool,
    thresholds: Sequence[float] = (),
    trivial: bool = False,
  ) -> None:
    self._config, self._began = config, time.perf_counter()
    self._options = config.postprocess
    self._tried = {t: _with_threshold(self._options, t) for t in thresholds if segment}
    self._segments, self._trivial = segment, trivial
    self._counts: list[np.ndarray] = []  # of each section, [A, 2, 2]
    self._sections: list[int] = []
    self._rows: dict[Any, list[dict[str, float | None]]] = {}
    self._matches: Any = 0

  def add(
    self,
    group: Sequence[int],
    decided: dict[tuple[int, ...], np.ndarray],
    ids: np.ndarray,
    make: Callable[[Postprocess], np.ndarray],
    image: np.ndarray | None = None,
  ) -> np.ndarray | None:
    """Takes in the sections of a group: decided affinities, ids, how instances are made, image.

    Returns:
      The instances, if they are made.
    """
    found = [affinities.count_pairs(values, ids, offset) for offset, values in decided.items()]
    self._counts += list(np.stack(found, axis=1))
    self._sections += group
    if not self._segments:
      return None
    truth, ignored = segmentation.parts(ids), labels_lib.ignored(ids)
    made = make(self._options)
    self._score('made', made, truth, ignored)
    self._matches = self._matches + instances.count_matches(made, truth, ignored=ignored)
    for threshold, options in self._tried.items():
      self._score(threshold, make(options), truth, ignored)
    if self._trivial and image is not None:
      self._score('one object', np.ones_like(truth), truth, ignored)
      for name, components in segmentation.grey_parts(image):
        self._score(('grey', name), components, truth, ignored)
    return made

  def _score(self, key: Any, made: np.ndarray, truth: np.ndarray, ignored: np.ndarray) -> None:
    row = segmentation.partition_scores(made, truth, ignored)
    self._rows.setdefault(key, []).append(row)

  def result(self, split: pairs.Split) -> Evaluation:
    """The evaluation of all groups.

    Raises:
      DataError: there was none.
    """
    if not self._sections:
      raise DataError('the split to evaluate has no sections; set its sources in the configuration')
    config, classes = self._config, affinities.CLASSES
    counts = np.stack(self._counts)  # [sections, A, 2, 2]
    sections = counts.sum(axis=1)
    total = sections.sum(axis=0)
    majority = metrics.majority(total) if self._trivial else None
    return Evaluation(
      classes=classes,
      confusion=total,
      scores=metrics.scores(total, classes),
      baselines={'majority': {**majority, 'class': classes[majority['class']]}} if majority else {},
      images=tuple(self._images(split, sections)),
      extras=self._extras(counts.sum(axis=0)),
      intervals=metrics.intervals(
        sections, classes, confidence=config.eval.confidence, seed=config.train.seed
      )
      or {},
      calibration=None,
      objects=None,
      seconds=time.perf_counter() - self._began,
    )

  def _images(self, split: pairs.Split, sections: np.ndarray) -> Iterator[ImageScore]:
    for index, own in zip(self._sections, sections, strict=True):
      if own.sum():
        found = metrics.scores(own, affinities.CLASSES)
        yield ImageScore(index, split.sections[index].name, found['accuracy'], found['miou'])

  def _extras(self, counts: np.ndarray) -> dict[str, Any]:
    extras = {'affinities': affinities.affinity_scores(counts, self._config.task.offset_names)}
    if not self._segments:
      return extras
    extras |= segmentation.segmentation_scores(self._rows['made'], self._matches)
    if self._tried:
      option = f'postprocess.{_threshold_of(self._options)}'
      extras['by_threshold'] = [
        {'threshold': t, 'option': option, **segmentation.mean_rows(self._rows[t])}
        for t in self._tried
      ]
    if 'one object' in self._rows:
      extras['trivial'] = self._trivial_scores()
    return extras

  def _trivial_scores(self) -> dict[str, Any]:
    """One object everywhere, and the best of all grey thresholds, chosen on these very images."""
    grey = {
      key[1]: segmentation.mean_rows(rows)
      for key, rows in self._rows.items()
      if isinstance(key, tuple)
    }
    best = min(grey, key=lambda name: 2.0 if grey[name]['error'] is None else grey[name]['error'])
    return {
      'one object': segmentation.mean_rows(self._rows['one object']),
      f'components of the grey image, {best}': grey[best],
    }


def _numbered(section: np.ndarray) -> np.ndarray:
  """Instances of a section from 1 on; numbers beyond uint16 start again, as pictures may."""
  values, dense = np.unique(section, return_inverse=True)
  numbers = np.cumsum(values != 0)
  numbers = np.where(values != 0, (numbers - 1) % np.iinfo(np.uint16).max + 1, 0)
  return numbers.astype(np.uint16)[dense.reshape(section.shape)]


def _threshold_of(options: Postprocess) -> str:
  """Which option decides where objects end: that of components, or of markers."""
  return 'threshold' if options.instances == 'components' else 'marker_threshold'


def _with_threshold(options: Postprocess, threshold: float) -> Postprocess:
  """The options with another threshold of components, or of markers."""
  field = _threshold_of(options)
  lowest = {'threshold': min(threshold, options.threshold or 0.5)} if field != 'threshold' else {}
  return Postprocess.model_validate({**dict(options), field: threshold, **lowest})


def format_evaluation(result: Evaluation) -> str:
  """`evaluation.format_evaluation`, with the instances where there are some."""
  lines = [evaluation.format_evaluation(result)]
  if 'rand' in result.extras:
    extras = result.extras
    rows = {'network': extras['rand'], **extras.get('trivial', {})}
    width = max(map(len, rows))
    lines += ['', f'{"":<{width}}  Rand error   VI (split + merge), bits']
    lines += [f'{name:<{width}}  {_row(row)}' for name, row in rows.items()]
    lines += [
      f'objects at IoU {iou}: {row["tp"]} of {row["tp"] + row["fn"]} found, {row["fp"]} false'
      for iou, row in extras['instances'].items()
    ]
    for row in extras.get('by_threshold', ()):
      lines.append(f'{"threshold " + format(row["threshold"], "g"):<{width}}  {_row(row)}')
    if better := better_threshold(extras):
      lines.append(
        f'{better["option"]}={better["threshold"]:g} would have a Rand error of '
        f'{better["error"]:.4f} on these images'
      )
  return '\n'.join(lines)


def better_threshold(extras: Mapping[str, Any]) -> dict[str, Any] | None:
  """The row of the tried threshold that is clearly better than the configured one, if any is.

  Args:
    extras: of an evaluation.
  """
  rows = [row for row in extras.get('by_threshold', ()) if row['error'] is not None]
  best = min(rows, key=lambda row: row['error'], default=None)
  ours = extras.get('rand', {}).get('error')
  return best if best and ours is not None and best['error'] < ours - CLEARLY else None


def _row(row: dict[str, float | None]) -> str:
  error, vi, split, merge = (
    '-' if row[key] is None else f'{row[key]:.4f}'
    for key in ('error', 'vi', 'vi_split', 'vi_merge')
  )
  return f'{error:>10}  {vi:>7} ({split} + {merge})'
