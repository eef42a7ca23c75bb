"""Scores on whole images: one confusion matrix over a split, beside two trivial baselines.

The same tiles and blending as prediction. Segmentations made elsewhere are scored by the same
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

from emseg_jax import config as config_lib
from emseg_jax import config_io, metrics
from emseg_jax.data import pairs
from emseg_jax.errors import DataError, OutputError
from emseg_jax.predict import Predictor

__all__ = [
  'Evaluation',
  'ImageScore',
  'class_map_path',
  'evaluate_split',
  'format_evaluation',
  'score_files',
  'write_class_map',
  'write_evaluation',
]

COUNT_CHUNK = 2**18  # pixels per call of the jitted count: one shape, so one compilation
MAX_GREY_BINS = 4096


@dataclasses.dataclass(frozen=True)
class ImageScore:
  """Scores of one image; `index` is its place in the split."""

  index: int
  name: str
  accuracy: float
  miou: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Attributes:
  classes: names, in class order.
  confusion: int64 [K, K] over the whole set; rows are labels.
  scores: `metrics.scores` of it.
  baselines: name -> scores of the two trivial predictions, chosen on these very images.
  images: scores image by image.
  seconds: wall time.
  """

  classes: tuple[str, ...]
  confusion: np.ndarray
  scores: dict[str, Any]
  baselines: dict[str, dict[str, Any]]
  images: tuple[ImageScore, ...]
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
      'seconds': self.seconds,
      'voxels': int(self.confusion.sum()),
    }


def evaluate_split(
  predictor: Predictor,
  split: pairs.Split,
  *,
  baselines: bool = True,
  should_stop: Callable[[], bool] | None = None,
  on_prediction: Callable[[int, np.ndarray], None] | None = None,
) -> Evaluation:
  """Predicts and scores every section of a split.

  Args:
    predictor: a loaded predictor.
    split: sections with labels.
    baselines: also compute the trivial baselines.
    should_stop: asked between batches of tiles.
    on_prediction: called with each section's index and its uint8 class map [Y, X].

  Raises:
    DataError: the split is empty or has an unlabelled section.
    Interrupted: `should_stop` said so.
  """

  def predictions() -> Iterator[np.ndarray]:
    for index in range(len(split)):
      image = split.network_image(index, predictor.normalisation)
      prediction = np.argmax(predictor.probabilities(image, should_stop), axis=-1).astype(np.uint8)
      if on_prediction is not None:
        on_prediction(index, prediction)
      yield prediction

  return _score(split, predictions(), predictor.config.task.classes, baselines)


def score_files(
  predictions: Path, labels: Path, *, task: config_lib.Task, label_mapping: dict[int, int] | None
) -> Evaluation:
  """Scores segmentation files made by any program against label files.

  Args:
    predictions: image, folder or stack of label values.
    labels: ground truth of the same kind; both are mapped with `label_mapping`.
    task: class names and the ignored value.
    label_mapping: file value -> class index.

  Raises:
    DataError: they do not match, or hold a value that is not mapped.
  """
  data = config_lib.Data(label_mapping=label_mapping)
  source = config_lib.Source(images=str(predictions), labels=str(labels))
  split = pairs.open_split([source], task=task, data=data, palette='index')

  def mapped() -> Iterator[np.ndarray]:
    for index, section in enumerate(split.sections):
      yield pairs.map_labels(
        split.image(index),
        num_classes=len(task.classes),
        label_mapping=label_mapping,
        ignore_value=None,
        name=f'{predictions}, {section.name}',
      )

  return _score(split, mapped(), task.classes, baselines=False)


def _score(
  split: pairs.Split,
  predictions: Iterator[np.ndarray],
  classes: Sequence[str],
  baselines: bool,
) -> Evaluation:
  if len(split) == 0:
    raise DataError('the split to evaluate has no sections; set its sources in the configuration')
  began = time.perf_counter()
  total = np.zeros((len(classes), len(classes)), np.int64)
  images = []
  for index, prediction in enumerate(predictions):
    confusion = _count(prediction, split.label(index), len(classes))
    total += confusion
    if confusion.sum():  # an image whose labels are all ignored has no score
      scores = metrics.scores(confusion, classes)
      name = split.sections[index].name
      images.append(ImageScore(index, name, scores['accuracy'], scores['miou']))
  found = _baselines(split, total, classes) if baselines else {}
  return Evaluation(
    classes=tuple(classes),
    confusion=total,
    scores=metrics.scores(total, classes),
    baselines=found,
    images=tuple(images),
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


def _baselines(
  split: pairs.Split, confusion: np.ndarray, classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
  """Majority class and best grey threshold, both the best possible on these images."""
  edges = _grey_edges(split)
  histograms = np.zeros((len(classes), len(edges) - 1), np.int64)
  for index in range(len(split)):
    grey, label = _grey(split.image(index)), split.label(index)
    for k in range(len(classes)):
      histograms[k] += np.histogram(grey[label == k], bins=edges)[0]
  majority = metrics.majority(confusion)
  threshold = metrics.best_threshold(histograms, edges)
  return {
    'majority': {**majority, 'class': classes[majority['class']]},
    'threshold': {
      **threshold,
      'below': classes[threshold['below']],
      'above': classes[threshold['above']],
    },
  }


def _grey(image: np.ndarray) -> np.ndarray:
  return image if image.ndim == 2 else image.mean(axis=-1)


def _grey_edges(split: pairs.Split) -> np.ndarray:
  """Histogram edges: one bin per grey value for 8-bit images, else 4096 bins over the range."""
  if all(s.image_volume.dtype == np.uint8 for s in split.sections):
    return np.arange(257, dtype=np.float64)
  low = min(float(image.min()) for image in split.images())
  high = max(float(image.max()) for image in split.images())
  return np.linspace(low, np.nextafter(max(high, low + 1e-6), np.inf), MAX_GREY_BINS + 1)


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


def write_class_map(path: Path, prediction: np.ndarray) -> None:
  """Writes a class map [Y, X] uint8 as a PNG of class indices.

  Raises:
    OutputError: the file cannot be written.
  """
  from PIL import Image

  temporary = path.with_name(path.name + '.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(prediction).save(temporary, format='PNG')
    os.replace(temporary, path)
  except OSError as error:
    raise OutputError(f'{path}: cannot be written: {error.strerror}') from error
