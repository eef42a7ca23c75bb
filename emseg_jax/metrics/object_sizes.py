"""How many objects of each size were found: small ones hardly move the scores of voxels.

An object is a connected component of one class of the labels, in 2D or 3D. It is found if more than
half of its voxels were predicted to be of that class. Sizes are counted by octaves: octave n holds
objects of 2^n to 2^(n + 1) - 1 voxels. Counts add up over images.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from emseg_jax.data.pairs import IGNORED

__all__ = ['OCTAVES', 'count_objects', 'found_by_size']

OCTAVES = 40


def count_objects(
  prediction: np.ndarray, label: np.ndarray, *, num_classes: int, multilabel: bool = False
) -> np.ndarray:
  """Counts the objects of one image by class and size.

  Args:
    prediction: [Y, X] or [Z, Y, X] integer class indices, or masks of a multilabel task.
    label: likewise, 255 where not scored; objects end there.
    num_classes: K.
    multilabel: bit k says whether class k is there, and every class has objects. Otherwise class 0
      is the background and has none.

  Returns:
    [K, OCTAVES, 2] int64: objects, and those that were found.

  Raises:
    ValueError: the shapes differ.
  """
  if prediction.shape != label.shape:
    raise ValueError(f'prediction {prediction.shape} does not fit label {label.shape}')
  counts = np.zeros((num_classes, OCTAVES, 2), np.int64)
  for k in range(0 if multilabel else 1, num_classes):
    truth = (label != IGNORED) & (label >> k & 1 == 1) if multilabel else label == k
    objects, number = ndimage.label(truth)  # joined where they share a face
    of = objects[truth]
    chosen = prediction[truth]
    hit = chosen >> k & 1 == 1 if multilabel else chosen == k
    sizes = np.bincount(of, minlength=number + 1)[1:]
    hits = np.bincount(of[hit], minlength=number + 1)[1:]
    octave = np.frexp(sizes)[1] - 1  # frexp: size = m 2^e, m in [1/2, 1)
    for column, counted in enumerate((sizes > 0, 2 * hits > sizes)):
      counts[k, :, column] = np.bincount(octave[counted], minlength=OCTAVES)
  return counts


def found_by_size(
  counts: np.ndarray, classes: Sequence[str], *, ndim: int, voxel: Sequence[float | None] | None
) -> dict[str, Any]:
  """Counts of objects as a record for JSON.

  Args:
    counts: [K, OCTAVES, 2] what `count_objects` returns, summed.
    classes: K names.
    ndim: 2 or 3, of the images whose objects were counted.
    voxel: size of a voxel along (z, y, x), of which the last ndim count, nm; None where unknown.

  Returns:
    {'ndim', 'voxel_size': [ndim] or None, 'octaves': those from the smallest object to the largest,
    'per_class': {name: {'objects': [octaves], 'found': [octaves]}} of classes with objects}.
  """
  some = counts[..., 0].sum(axis=0).nonzero()[0]
  octaves = slice(some[0], some[-1] + 1) if some.size else slice(0)
  sizes = [None] if voxel is None else list(voxel[-ndim:])
  return {
    'ndim': ndim,
    'voxel_size': None if None in sizes else [float(n) for n in sizes],
    'octaves': list(range(OCTAVES))[octaves],
    'per_class': {
      name: {'objects': rows[octaves, 0].tolist(), 'found': rows[octaves, 1].tolist()}
      for name, rows in zip(classes, counts, strict=True)
      if rows.any()
    },
  }
