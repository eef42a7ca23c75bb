"""Scores on whole images: one confusion matrix over a split, beside two trivial baselines.

The same tiles and blending as prediction; volumes are predicted and counted box by box (see
`volume_scores`), files section by section. Segmentations made elsewhere are scored by the same
counting.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emseg_jax import baselines as baselines_lib
from emseg_jax import config as config_lib
from emseg_jax import config_io, metrics, volume_scores
from emseg_jax.data import blocks, pairs
from emseg_jax.data import labels as labels_lib
from emseg_jax.errors import DataError, OutputError
from emseg_jax.metrics.details import Details
from emseg_jax.predict import Predictor, file_values, label_values

__all__ = [
  'Evaluation',
  'ImageScore',
  'class_map_path',
  'evaluate_split',
  'flat_scores',
  'format_evaluation',
  'object_map_path',
  'score_files',
  'write_evaluation',
  'write_map',
]

LARGE = 2**26  # pixels of a section whose probabilities are not held as a whole either
COUNT_CHUNK = 2**18  # pixels per call of the jitted count: one shape, so one compilation


@dataclasses.dataclass(frozen=True)
class ImageScore:
  """Scores of one image; `index` is its place in the split.

  `miou` is None where all masks, of the label and predicted, are 0.
  """

  index: int
  name: str
  accuracy: float
  miou: float | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Attributes:
  classes: names of the rows of `confusion`: the classes, or the masks of a multilabel task.
  confusion: int64 over the whole set; rows are labels, columns predictions.
  scores: `metrics.scores` of it.
  baselines: name -> scores of the two trivial predictions, chosen on these very images.
  images: scores image by image.
  extras: what `metrics.Collector` gathered beside the confusion matrix.
  intervals: bootstrap intervals over images, score -> (low, high); empty for a single image.
  calibration: of `metrics.calibration`; None without probabilities.
  objects: of `metrics.object_sizes`; None if not asked for.
  seconds: wall time.
  """

  classes: tuple[str, ...]
  confusion: np.ndarray
  scores: dict[str, Any]
  baselines: dict[str, dict[str, Any]]
  images: tuple[ImageScore, ...]
  extras: dict[str, Any]
  intervals: dict[str, Any]
  calibration: dict[str, Any] | None
  objects: dict[str, Any] | None
  seconds: float

  def to_json(self, *, step: int | None, split: str) -> dict[str, Any]:
    return {
      'step': step,
      'split': split,
      'classes': list(self.classes),
      'confusion': self.confusion.tolist(),
      'scores': self.scores,
      'baselines': self.baselines,
      'images': [dataclasses.asdict(image) for image in self.images],
      'extras': self.extras,
      'intervals': self.intervals,
      'calibration': self.calibration,
      'objects': self.objects,
      'seconds': self.seconds,
      'voxels': int(self.confusion.sum()),
    }


def evaluate_split(
  predictor: Predictor,
  split: pairs.Split,
  *,
  extra_metrics: Sequence[str] = (),
  baselines: bool = True,
  details: bool = True,
  should_stop: Callable[[], bool] | None = None,
  on_prediction: Callable[[int, np.ndarray], None] | None = None,
) -> Evaluation:
  """Predicts and scores every section of a split; networks for volumes see whole volumes.

  Args:
    predictor: a loaded predictor.
    split: sections with labels.
    extra_metrics: names as in eval.metrics.
    baselines: also compute the trivial baselines.
    details: also count calibration and objects by size, which only reports show.
    should_stop: asked between batches of tiles.
    on_prediction: called with each section's index and its uint8 class map [Y, X].

  Raises:
    DataError: the split is empty or has an unlabelled section.
    Interrupted: `should_stop` said so.
  """
  config = predictor.config
  collector = metrics.Collector(tuple(extra_metrics), config.task.classes)
  counted = Details(config.task.classes, multilabel=config.task.multilabel) if details else None

  def predictions() -> Iterator[np.ndarray]:
    for group in blocks.groups(split, len(config.data.patch)):
      if len(config.data.patch) == 3 or np.prod(split.sections[group[0]].shape) > LARGE:
        found = volume_scores.predict_sections(
          predictor, split, group, collector, counted, should_stop=should_stop
        )
      else:
        probabilities = predictor.group_probabilities(split, group, should_stop)
        found = [label_values(probabilities, config.task)]
        if extra_metrics or counted:
          label = split.label(group[0])
          collector.add(found[0], label, probabilities)
          if counted:
            counted.add(found[0], label, probabilities)
      for index, section in zip(group, found, strict=True):
        if on_prediction is not None:
          on_prediction(index, section)
        yield section

  return _score(split, predictions(), config, collector, counted, baselines=baselines)


def score_files(
  predictions: str | Path, labels: str | Path, *, config: config_lib.Config
) -> Evaluation:
  """Scores segmentation files made by any program against label files, section by section.

  Args:
    predictions: image, folder or volume of label values, as `predict` writes them.
    labels: ground truth of the same kind, as the labels that are trained on.
    config: its sections task, data and eval.

  Raises:
    DataError: they do not match, or hold a value that is not mapped.
  """
  task, mapping = config.task, config.data.label_mapping
  data = config_lib.Data(
    label_mapping=mapping, labels=config.data.labels, cache_gb=config.data.cache_gb
  )
  source = config_lib.Source(images=str(predictions), labels=str(labels))
  split = pairs.open_split([source], task=task, data=data, palette='index')
  # A class or mask that no label has may be predicted: as the value that `predict` writes.
  written = {int(value): index for index, value in enumerate(file_values(config))}
  collector = metrics.Collector(config.eval.metrics, task.classes)
  counted = Details(task.classes, multilabel=task.multilabel)

  def mapped() -> Iterator[np.ndarray]:
    for index, section in enumerate(split.sections):
      prediction = labels_lib.map_labels(
        split.image(index),
        num_classes=len(task.values),
        label_mapping={**written, **(mapping or {})},
        ignore_value=None,
        other=config.data.labels.other,
        name=f'{predictions}, {section.name}',
      )
      label = split.label(index)
      collector.add(prediction, label, None)
      counted.add(prediction, label, None)
      yield prediction

  return _score(split, mapped(), config, collector, counted, baselines=False)


def _score(
  split: pairs.Split,
  predictions: Iterator[np.ndarray],
  config: config_lib.Config,
  collector: metrics.Collector,
  details: Details | None,
  *,
  baselines: bool,
) -> Evaluation:
  if len(split) == 0:
    raise DataError('the split to evaluate has no sections; set its sources in the configuration')
  began, classes, values = time.perf_counter(), config.task.classes, config.task.values
  counts, images = [], []
  for index, prediction in enumerate(predictions):
    counts.append(_count(prediction, split.label(index), len(values)))
    if counts[-1].sum():  # an image whose labels are all ignored has no score
      scores = metrics.scores(counts[-1], classes)
      name = split.sections[index].name
      images.append(ImageScore(index, name, scores['accuracy'], scores['miou']))
  total = np.sum(counts, axis=0)
  found = {}
  if baselines:
    overlapping = len(classes) if config.task.multilabel else None
    found = baselines_lib.trivial_baselines(split, total, values, num_classes=overlapping)
  intervals = metrics.intervals(
    np.stack(counts), classes, confidence=config.eval.confidence, seed=config.train.seed
  )
  return Evaluation(
    classes=values,
    confusion=total,
    scores=metrics.scores(total, classes),
    baselines=found,
    images=tuple(images),
    extras=collector.result(),
    intervals=intervals or {},
    calibration=details.calibration() if details else None,
    objects=details.objects([s.image_volume.voxel_size_zyx for s in split.sections])
    if details
    else None,
    seconds=time.perf_counter() - began,
  )


def _count(prediction: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
  """Confusion matrix of one image, int64, in chunks of one shape."""
  total = np.zeros((num_classes, num_classes), np.int64)
  prediction, label = prediction.ravel(), label.ravel()
  for start in range(0, label.size, COUNT_CHUNK):
    chunk = slice(start, start + COUNT_CHUNK)
    padding = (0, COUNT_CHUNK - label[chunk].size)
    truth = np.pad(label[chunk], padding, constant_values=pairs.IGNORED)
    guess = np.pad(prediction[chunk], padding)
    weight = (truth != pairs.IGNORED).astype(np.float32)
    counts = metrics.confusion_matrix(guess, truth, weight, num_classes=num_classes)
    total += np.asarray(counts, np.int64)
  return total


def flat_scores(evaluation: Evaluation) -> dict[str, float]:
  """The scores of a whole set by the names that eval.best uses; undefined ones are left out."""
  return metrics.flat(evaluation.scores) | metrics.flat(evaluation.extras)


def format_evaluation(evaluation: Evaluation) -> str:
  """The score table, baselines beside it, as plain text."""
  return metrics.format_table(evaluation.scores, evaluation.baselines)


def write_evaluation(evaluation: Evaluation, path: Path, *, step: int | None, split: str) -> None:
  """Writes the JSON form atomically.

  Raises:
    OutputError: the file cannot be written.
  """
  record = evaluation.to_json(step=step, split=split)
  config_io.write_text(path, json.dumps(record, indent=2) + '\n')


def class_map_path(workdir: Path, split: str, index: int) -> Path:
  """Where the class map of one evaluated section is kept, for the report."""
  return workdir / 'evaluation' / split / f'{index:05d}.png'


def object_map_path(workdir: Path, split: str, index: int) -> Path:
  """The same for the instances that were made of it."""
  return workdir / 'evaluation' / split / f'{index:05d}_objects.png'


def write_map(path: Path, values: np.ndarray) -> None:
  """Writes a class map [Y, X] uint8, or numbers of objects uint16, as a PNG of these values.

  Raises:
    OutputError: the file cannot be written.
  """
  from PIL import Image

  temporary = path.with_name(path.name + '.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(temporary, format='PNG')
    os.replace(temporary, path)
  except OSError as error:
    raise OutputError(f'{path}: cannot be written: {error.strerror}') from error
