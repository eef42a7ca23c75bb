"""Boundary F1: how much of each class's outline lies where it should, within a tolerance.

After Csurka et al. 2013, "What is a good evaluation measure for semantic segmentation?". Built on
integer counts that add up over images; an image is a section [Y, X] or a volume [Z, Y, X].
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from emseg_jax.data.pairs import IGNORED

__all__ = ['boundary_counts', 'boundary_scores']


def boundary_counts(
  prediction: np.ndarray,
  label: np.ndarray,
  *,
  num_classes: int,
  tolerance: float,
  spacing: Sequence[float] | None = None,
) -> np.ndarray:
  """Counts boundary voxels of every class, and those near the other map's boundary.

  A boundary voxel belongs to the class and has a face neighbour that does not; the image border is
  no boundary. Ignored voxels belong to no boundary, neither as voxel nor as neighbour, so that the
  edge of an unlabelled region is none.

  Args:
    prediction: [*S] class indices.
    label: [*S] class indices, 255 where not scored.
    num_classes: K.
    tolerance: largest Euclidean distance, inclusive, in voxels.
    spacing: voxel size along each axis in the unit of `tolerance`; None: 1 along all.

  Returns:
    [K, 4] int64: predicted boundary voxels, those within `tolerance` of a labelled one, labelled
    boundary voxels, those within `tolerance` of a predicted one.

  Raises:
    ValueError: the shapes do not belong together.
  """
  if prediction.shape != label.shape:
    raise ValueError(f'prediction {prediction.shape} does not fit label {label.shape}')
  spacing = np.ones(label.ndim) if spacing is None else np.asarray(spacing, np.float64)
  if spacing.shape != (label.ndim,):
    raise ValueError(f'spacing {spacing} for {label.ndim} axes')
  counted = label != IGNORED
  ball = _ball(tolerance, spacing)
  counts = np.zeros((num_classes, 4), np.int64)
  for k in range(num_classes):
    predicted, labelled = (_boundary(classes == k, counted) for classes in (prediction, label))
    # A ball around every voxel of one boundary covers the near ones of the other. With the small
    # tolerances in use this is quicker than a distance transform, and needs far less memory in 3D.
    counts[k] = (
      predicted.sum(),
      (predicted & ndimage.binary_dilation(labelled, ball, mask=predicted)).sum(),
      labelled.sum(),
      (labelled & ndimage.binary_dilation(predicted, ball, mask=labelled)).sum(),
    )
  return counts


def boundary_scores(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
  """Precision, recall and F1 of the boundary of each class.

      precision = predicted near a labelled one / predicted     F1 = 2 P R / (P + R)
      recall    = labelled near a predicted one / labelled

  Args:
    counts: [K, 4] of `boundary_counts`, summed over images.
    classes: K names.

  Returns:
    {'mean_f1', 'per_class': {name: {'f1', 'precision', 'recall'}}}. A class with a boundary in one
    map only has F1 0; without any, its scores are None and left out of the mean.

  Raises:
    ValueError: the counts are not those of K classes.
  """
  if counts.shape != (len(classes), 4):
    raise ValueError(f'counts of shape {counts.shape} for {len(classes)} classes')
  rows = {name: _one_class(*row) for name, row in zip(classes, counts.tolist(), strict=True)}
  known = [row['f1'] for row in rows.values() if row['f1'] is not None]
  return {'mean_f1': sum(known) / len(known) if known else None, 'per_class': rows}


def _one_class(
  predicted: int, predicted_near: int, labelled: int, labelled_near: int
) -> dict[str, float | None]:
  precision = predicted_near / predicted if predicted else None
  recall = labelled_near / labelled if labelled else None
  f1 = None
  if predicted or labelled:
    # 0 as well when nothing is near: no boundary at all of one map, or none where it should be.
    f1 = 2 * precision * recall / (precision + recall) if predicted_near and labelled_near else 0.0
  return {'f1': f1, 'precision': precision, 'recall': recall}


def _boundary(inside: np.ndarray, counted: np.ndarray) -> np.ndarray:
  eroded = ndimage.binary_erosion(inside | ~counted, border_value=1)
  return inside & counted & ~eroded


def _ball(radius: float, spacing: np.ndarray) -> np.ndarray:
  """bool, odd along every axis: the voxels within `radius` of the central one."""
  radius = radius * (1 + 1e-9)  # 3 * 0.1 is within 0.3, whatever the rounding
  reach = np.floor(radius / spacing).astype(int)
  offsets = np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing='ij')
  return sum((o * size) ** 2 for o, size in zip(offsets, spacing, strict=True)) <= radius**2
