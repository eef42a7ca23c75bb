"""All scores beside those of the confusion matrix, fed image by image.

Class 0 is the background: objects are the connected components of every other class, and for
`isbi2012` class 0 is the membrane.

A result is nested dicts, ready for JSON. A score is a float, or None where it has no denominator;
lists and integers are details. `flat` gives every score one name, as eval.best and TensorBoard use
it; the name of a class's score ends in the class.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from emseg_jax.data.pairs import IGNORED
from emseg_jax.metrics import (
  affinities,
  border,
  boundary,
  confusion,
  instances,
  isbi2012,
  partition,
  segmentation,
  soft,
  thresholds,
)

__all__ = ['METRICS', 'Collector', 'flat', 'known_scores', 'lower_is_better']

SETTINGS = {'share', 'best_threshold', 'threshold_rand', 'threshold_info'}  # floats, no scores
Unit = Literal['voxel', 'section', 'image']
LOWER_IS_BETTER = ('soft/cross_entropy', 'border/error/', 'rand/')


@dataclasses.dataclass(frozen=True)
class _Image:
  """One image and what else counting it depends on; see `Collector`."""

  prediction: np.ndarray
  label: np.ndarray
  probabilities: np.ndarray | None
  num_classes: int
  tolerance: float
  spacing: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class _Metric:
  """`count` makes of an image what adds up (+) over images; `scores` makes scores of the sum.

  `unit` is what a volume may be cut into without changing the sum.
  """

  count: Callable[[_Image], Any]
  scores: Callable[[Any, Sequence[str]], dict[str, Any]]
  of_probabilities: bool = False
  unit: Unit = 'image'


class Collector:
  """Counts image by image what the chosen scores need.

  Args:
    names: of `METRICS`.
    classes: K names; class 0 is the background.
    tolerance: of `boundary`, in voxels along the finest axis of the image.
    voxel: size of a voxel along (z, y, x), or (y, x) for 2D images only, in any unit; None: the
      same along all axes.

  Raises:
    ValueError: a name is unknown.
  """

  def __init__(
    self,
    names: Sequence[str],
    classes: Sequence[str],
    *,
    tolerance: float = 2.0,
    voxel: Sequence[float] | None = None,
  ):
    for name in names:
      if name not in _METRICS:
        raise ValueError(f'unknown metric {name!r}, must be one of {", ".join(METRICS)}')
    self._names = tuple(names)
    self._classes = tuple(classes)
    self._tolerance = tolerance
    self._voxel = None if voxel is None else tuple(voxel)
    self._totals: dict[str, Any] = {}

  def needs(self, unit: Unit) -> bool:
    """Whether a score is counted by parts of this kind; see `add`."""
    return any(_METRICS[name].unit == unit for name in self._names)

  def add(
    self,
    prediction: np.ndarray,
    label: np.ndarray,
    probabilities: np.ndarray | None = None,
    *,
    unit: Unit | None = None,
  ) -> None:
    """Counts one image, [Y, X] or [Z, Y, X].

    Args:
      prediction: [*S] class indices.
      label: [*S] class indices, 255 where not scored.
      probabilities: [*S, K], any value where the label is 255; None if there are none, and then
        the scores that need them do not see this image.
      unit: for a volume in parts. 'voxel': what is given is any box of it, and the scores that are
        sums over voxels see it; 'section': one of its sections [Y, X], for the scores defined on
        sections; 'image': the whole, for all other scores, which need no probabilities.

    Raises:
      ValueError: the shapes do not belong together.
    """
    if prediction.shape != label.shape:
      raise ValueError(f'prediction {prediction.shape} does not fit label {label.shape}')
    expected = (*label.shape, len(self._classes))
    if probabilities is not None and probabilities.shape != expected:
      raise ValueError(f'probabilities {probabilities.shape} must have the shape {expected}')
    spacing = None
    if self._voxel is not None:
      sizes = np.array(self._voxel[-label.ndim :], np.float64)
      spacing = sizes / sizes.min()
    image = _Image(prediction, label, probabilities, len(self._classes), self._tolerance, spacing)
    for name in self._names:
      metric = _METRICS[name]
      if unit not in (None, metric.unit):
        continue
      if probabilities is not None or not metric.of_probabilities:
        counts = metric.count(image)
        self._totals[name] = self._totals[name] + counts if name in self._totals else counts

  def result(self) -> dict[str, Any]:
    """Name -> scores so far, of the metrics that have seen an image."""
    return {name: _METRICS[name].scores(t, self._classes) for name, t in self._totals.items()}


def flat(result: Mapping[str, Any]) -> dict[str, float]:
  """One name for every score: 'boundary/mean_f1', 'soft/dice/mitochondrion', 'iou/membrane'.

  Args:
    result: of `Collector.result`, or of `metrics.scores`.

  Returns:
    Name -> value, without the scores that are None.
  """
  return {name: value for name, value in _leaves(result) if value is not None}


def known_scores(
  classes: Sequence[str], names: Sequence[str], offsets: Sequence[str] = ()
) -> tuple[str, ...]:
  """Every name that `flat` may give, of `metrics.scores` and of these metrics.

  Args:
    classes: K names.
    names: of `METRICS`.
    offsets: names of those of a task of affinities, which adds scores of them and of instances.

  Raises:
    ValueError: a name is unknown.
  """
  k = len(classes)
  collector = Collector(names, classes)
  nothing = np.full((1, 1), IGNORED, np.uint8)
  collector.add(nothing, nothing, np.zeros((1, 1, k), np.float32))
  results = [confusion.scores(np.zeros((k, k), np.int64), classes), collector.result()]
  if offsets:
    zeros = np.zeros((len(offsets), 2, 2), np.int64)
    results.append({'affinities': affinities.affinity_scores(zeros, offsets)})
    row = segmentation.partition_scores(nothing, nothing, nothing > 0)
    results.append(
      segmentation.segmentation_scores([row], instances.count_matches(nothing, nothing))
    )
  return tuple(name for result in results for name, _ in _leaves(result))


def lower_is_better(name: str) -> bool:
  """Whether a score, named as by `flat`, is an error."""
  return name.startswith(LOWER_IS_BETTER)


def _leaves(result: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
  for key, value in result.items():
    if key == 'per_class':
      for name, row in value.items():
        yield from ((f'{score}/{name}', number) for score, number in _leaves(row))
    elif isinstance(value, Mapping):
      yield from ((f'{key}/{name}', number) for name, number in _leaves(value))
    elif key not in SETTINGS and (value is None or isinstance(value, float)):
      yield key, value


def _boundary(image: _Image) -> np.ndarray:
  return boundary.boundary_counts(
    image.prediction,
    image.label,
    num_classes=image.num_classes,
    tolerance=image.tolerance,
    spacing=image.spacing,
  )


def _isbi2012(image: _Image) -> list[dict[str, list[float | None]]]:
  """One curve per section."""
  label = np.where(image.label == IGNORED, IGNORED, image.label > 0)
  interior = 1 - image.probabilities[..., 0]
  sections = zip(interior, label, strict=True) if label.ndim == 3 else [(interior, label)]
  return [isbi2012.curve(*section) for section in sections]


def _objects(image: _Image) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Objects of both maps, class by class; voxels that are not scored cut both alike."""
  scored = np.where(image.label == IGNORED, IGNORED, image.prediction)
  for k in range(1, image.num_classes):
    yield tuple(instances.connected_components(m, k) for m in (scored, image.label))


def _instances(image: _Image) -> np.ndarray:
  """[K - 1, thresholds, 4]."""
  return np.stack([instances.count_matches(*pair) for pair in _objects(image)])


def _instance_scores(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
  rows = [instances.instance_scores(row) for row in counts]
  return {'per_class': dict(zip(classes[1:], rows, strict=True))}


def _rand(image: _Image) -> list[list[dict[str, float | None]]]:
  """One image, its classes: adapted Rand error and variation of information of the objects.

  With scikit-image's defaults: the error is over the voxels of true objects, the variation of
  information over all voxels, where the background is one more region.
  """
  ignored = image.label == IGNORED
  rows = []
  for pair in _objects(image):
    inside = partition.contingency(*pair, ignored=ignored, foreground_only=True)
    everywhere = partition.contingency(*pair, ignored=ignored)
    vi = partition.variation_of_information(everywhere)
    rows.append(
      {
        'error': partition.adapted_rand(inside)['error'],
        'vi': vi['variation_of_information'],
        'vi_split': vi['split'],
        'vi_merge': vi['merge'],
      }
    )
  return [rows]


def _rand_scores(
  images: list[list[dict[str, float | None]]], classes: Sequence[str]
) -> dict[str, Any]:
  """Means over the images that have a score, per class; then over the classes."""
  per_class = {
    name: {key: _mean(row[key] for row in rows) for key in rows[0]}
    for name, rows in zip(classes[1:], zip(*images, strict=True), strict=True)
  }
  overall = {key: _mean(row[key] for row in per_class.values()) for key in ('error', 'vi')}
  return {**overall, 'per_class': per_class}


def _mean(values: Iterable[float | None]) -> float | None:
  known = [value for value in values if value is not None]
  return sum(known) / len(known) if known else None


_METRICS = {
  'soft': _Metric(
    lambda image: soft.soft_sums(image.probabilities, image.label),
    soft.soft_scores,
    of_probabilities=True,
    unit='voxel',
  ),
  'thresholds': _Metric(
    lambda image: thresholds.probability_histograms(image.probabilities, image.label),
    thresholds.threshold_scores,
    of_probabilities=True,
    unit='voxel',
  ),
  'boundary': _Metric(_boundary, boundary.boundary_scores),
  'border': _Metric(
    lambda image: border.border_counts(image.prediction, image.label),
    lambda counts, classes: border.border_scores(counts),
  ),
  'rand': _Metric(_rand, _rand_scores),
  'isbi2012': _Metric(
    _isbi2012,
    lambda curves, classes: isbi2012.best(curves),
    of_probabilities=True,
    unit='section',
  ),
  'instances': _Metric(_instances, _instance_scores),
}
METRICS = tuple(_METRICS)
