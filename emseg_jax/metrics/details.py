"""What only reports show, counted image by image beside the confusion matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from emseg_jax.metrics import calibration, object_sizes

__all__ = ['Details']


class Details:
  """Sums up confidences, and objects by size.

  Args:
    classes: K names.
    multilabel: class maps hold masks of classes that may overlap.
  """

  def __init__(self, classes: Sequence[str], *, multilabel: bool):
    self._classes = tuple(classes)
    self._multilabel = multilabel
    self._confidence: np.ndarray | None = None
    self._objects: np.ndarray | None = None
    self._ndim = 2

  def add(
    self, prediction: np.ndarray, label: np.ndarray, probabilities: np.ndarray | None = None
  ) -> None:
    """Counts one image, [Y, X] or [Z, Y, X]; arguments as of `Collector.add`, or masks."""
    multilabel, self._ndim = self._multilabel, label.ndim
    if probabilities is not None:
      counts = calibration.confidence_counts(probabilities, label, multilabel=multilabel)
      self._confidence = counts if self._confidence is None else self._confidence + counts
    counts = object_sizes.count_objects(
      prediction, label, num_classes=len(self._classes), multilabel=multilabel
    )
    self._objects = counts if self._objects is None else self._objects + counts

  def calibration(self) -> dict[str, Any] | None:
    """See `calibration.calibration`; None if no image had probabilities."""
    return None if self._confidence is None else calibration.calibration(self._confidence)

  def objects(self, voxel_sizes: Sequence[Sequence[float | None] | None]) -> dict[str, Any] | None:
    """See `object_sizes.found_by_size`; None without an image.

    Args:
      voxel_sizes: (z, y, x) of every image, nm; objects have a size in nm if they all agree.
    """
    if self._objects is None:
      return None
    known = {tuple(size or (None,) * 3)[-self._ndim :] for size in voxel_sizes}
    voxel = known.pop() if len(known) == 1 else None
    return object_sizes.found_by_size(self._objects, self._classes, ndim=self._ndim, voxel=voxel)
