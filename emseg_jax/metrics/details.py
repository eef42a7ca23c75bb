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
    self._open: object_sizes.ObjectCounter | None = None
    self._ndim = 2

  def add(
    self, prediction: np.ndarray, label: np.ndarray, probabilities: np.ndarray | None = None
  ) -> None:
    """Counts one image, [Y, X] or [Z, Y, X]; arguments as of `Collector.add`, or masks."""
    if probabilities is not None:
      self.add_confidences(label, probabilities)
    self.add_slab(prediction, label)
    self.end_image()

  def add_confidences(self, label: np.ndarray, probabilities: np.ndarray) -> None:
    """Counts any part of an image."""
    counts = calibration.confidence_counts(probabilities, label, multilabel=self._multilabel)
    self._confidence = counts if self._confidence is None else self._confidence + counts

  def add_slab(self, prediction: np.ndarray, label: np.ndarray) -> None:
    """Counts objects of an image, or of the next sections of a volume until `end_image`."""
    self._ndim = label.ndim
    if self._open is None:
      self._open = object_sizes.ObjectCounter(len(self._classes), multilabel=self._multilabel)
    self._open.add(prediction, label)

  def end_image(self) -> None:
    """Objects do not go on in what comes next."""
    counts, self._open = self._open.counts(), None
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
