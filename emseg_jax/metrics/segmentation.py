"""Scores of instances against instances, and of what needs no network.

Ids are [Y, X] or [Z, Y, X] integer, 0 in the background. True objects are the connected parts of an
id (across faces): what a section, or a box, cuts into two cannot be known to be one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from emseg_jax.data.labels import NO_ID
from emseg_jax.metrics import instances, partition

__all__ = ['grey_parts', 'mean_rows', 'partition_scores', 'parts', 'segmentation_scores']

QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)


def parts(ids: np.ndarray) -> np.ndarray:
  """Numbers the connected parts of every object; what is not scored becomes background."""
  from skimage import measure

  return measure.label(np.where(ids == NO_ID, 0, ids), background=0, connectivity=1)


def partition_scores(
  predicted: np.ndarray, truth: np.ndarray, ignored: np.ndarray
) -> dict[str, float | None]:
  """Adapted Rand error over the voxels of true objects, variation of information over all.

  As eval.metrics=rand has them: scikit-image's with ignore_labels=(0,), and its default.

  Args:
    predicted: ids.
    truth: ids, see `parts`.
    ignored: bool, True where a voxel does not count.
  """
  inside = partition.contingency(predicted, truth, ignored=ignored, foreground_only=True)
  everywhere = partition.contingency(predicted, truth, ignored=ignored)
  vi = partition.variation_of_information(everywhere)
  return {
    'error': partition.adapted_rand(inside)['error'],
    'vi': vi['variation_of_information'],
    'vi_split': vi['split'],
    'vi_merge': vi['merge'],
  }


def mean_rows(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
  """Means over images of scores that do not add up; of those that have one."""
  known = {key: [row[key] for row in rows if row[key] is not None] for key in rows[0]}
  return {key: sum(values) / len(values) if values else None for key, values in known.items()}


def segmentation_scores(
  rows: Sequence[Mapping[str, float | None]], matches: np.ndarray
) -> dict[str, Any]:
  """{'rand': means of `partition_scores`, 'instances': of `instances.instance_scores`}.

  Args:
    rows: of the images.
    matches: of `instances.count_matches`, summed.
  """
  return {'rand': mean_rows(rows), 'instances': instances.instance_scores(matches)}


def grey_parts(image: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
  """The components of an image below, and above, some of its quantiles, with a name for each."""
  grey = image.mean(axis=-1) if image.ndim > 3 else image
  for share, cut in zip(QUANTILES, np.quantile(grey, QUANTILES), strict=True):
    yield f'above the {share:.0%} darkest', ndimage.label(grey > cut)[0]
    yield f'the {share:.0%} darkest', ndimage.label(grey <= cut)[0]
