"""Which scored images the report shows, with image, label and prediction of each."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from emseg_jax import config as config_lib
from emseg_jax import evaluation, instance_evaluation
from emseg_jax.data import labels, pairs
from emseg_jax.errors import DataError
from emseg_jax.report.figures import Case

__all__ = ['worst_and_best']


def worst_and_best(config: config_lib.Config, folder: Path) -> tuple[list[Case], list[Case]]:
  """The worst and the best images of the last evaluation, run.report_cases of each at most.

  Args:
    config: the run's configuration.
    folder: work directory.

  Returns:
    Both lists, the extreme ones first; empty before any evaluation.

  Raises:
    DataError: images or class maps are not what was scored.
  """
  name = next(
    (s for s in ('test', 'validation') if (folder / 'evaluation' / f'{s}.json').is_file()), None
  )
  sources = getattr(config.data, name) if name else ()
  if not sources:
    return [], []
  images = json.loads((folder / 'evaluation' / f'{name}.json').read_text())['images']
  data = pairs.open_split(sources, task=config.task, data=config.data)
  if any(i['index'] >= len(data) for i in images):
    raise DataError(f'data.{name}: has fewer sections than were scored; run --mode=evaluate again')
  # Without a mean IoU there was nothing to find, and nothing was found: no image is better.
  ranked = sorted(images, key=lambda image: 1.0 if image['miou'] is None else image['miou'])
  count = min(config.run.report_cases, (len(ranked) + 1) // 2)
  chosen = ranked[:count], ranked[count:][::-1][:count]
  return tuple([_case(config, folder, name, data, i) for i in images] for images in chosen)


def _case(
  config: config_lib.Config, folder: Path, split: str, data: pairs.Split, image: dict[str, Any]
) -> Case:
  from PIL import Image

  index = image['index']
  path = evaluation.class_map_path(folder, split, index)
  if not path.is_file():
    raise DataError(
      f'{path}: the class map of {image["name"]} is missing; run --mode=evaluate again'
    )
  label, objects = data.label(index), None
  if config.task.affinities:
    made = evaluation.object_map_path(folder, split, index)
    if made.is_file():  # not after an evaluation by an older version
      ids = np.where(labels.ignored(label), 0, label)
      objects = ids, np.asarray(Image.open(made)).astype(np.int64)
    label = instance_evaluation.label_map(label, config.task)
  return Case(
    name=image['name'],
    accuracy=image['accuracy'],
    miou=image['miou'],
    image=data.image(index),
    label=label,
    weight=(label != pairs.IGNORED).astype(np.float32),
    prediction=np.asarray(Image.open(path)),
    objects=objects,
  )
