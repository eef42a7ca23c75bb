"""How many objects of each size were found: small ones hardly move the scores of voxels.

An object is a connected component of one class of the labels, in 2D or 3D. It is found if more than
half of its voxels were predicted to be of that class. Sizes are counted by octaves: octave n holds
objects of 2^n to 2^(n + 1) - 1 voxels. Counts add up over images.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage, sparse

from emseg_jax.data.pairs import IGNORED

__all__ = ['OCTAVES', 'ObjectCounter', 'count_objects', 'found_by_size']

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
  counter = ObjectCounter(num_classes, multilabel=multilabel)
  counter.add(prediction, label)
  return counter.counts()


class ObjectCounter:
  """Counts the objects of one image that comes slab by slab, along z; arguments: `count_objects`.

  Kept are the size of every object so far and the last plane: objects that touch the next slab's
  first plane go on there.
  """

  def __init__(self, num_classes: int, *, multilabel: bool = False):
    self._multilabel = multilabel
    self._classes = {k: _Objects() for k in range(0 if multilabel else 1, num_classes)}
    self._num_classes = num_classes

  def add(self, prediction: np.ndarray, label: np.ndarray) -> None:
    """Goes on with the slab behind the last one, [Z, Y, X]; a section [Y, X] comes alone.

    Raises:
      ValueError: the shapes differ.
    """
    if prediction.shape != label.shape:
      raise ValueError(f'prediction {prediction.shape} does not fit label {label.shape}')
    for k, objects in self._classes.items():
      if self._multilabel:
        truth = (label != IGNORED) & (label >> k & 1 == 1)
        hit = prediction >> k & 1 == 1
      else:
        truth, hit = label == k, prediction == k
      objects.add(truth, hit)

  def counts(self) -> np.ndarray:
    """[K, OCTAVES, 2] int64, as `count_objects` returns."""
    counts = np.zeros((self._num_classes, OCTAVES, 2), np.int64)
    for k, objects in self._classes.items():
      sizes, hits = objects.sizes()
      octave = np.frexp(sizes)[1] - 1  # frexp: size = m 2^e, m in [1/2, 1)
      for column, counted in enumerate((sizes > 0, 2 * hits > sizes)):
        counts[k, :, column] = np.bincount(octave[counted], minlength=OCTAVES)
    return counts


class _Objects:
  """Pieces of objects of one class: (sizes, hits) of each, and which pieces are one object."""

  def __init__(self) -> None:
    self._pieces: list[np.ndarray] = []  # [2, pieces] int64 of each slab
    self._joints: list[np.ndarray] = []  # [2, pairs] numbers of pieces that touch
    self._number = 0
    self._last: np.ndarray | None = None  # pieces of the last plane + 1, 0 outside of objects

  def add(self, truth: np.ndarray, hit: np.ndarray) -> None:
    pieces, number = ndimage.label(truth)  # joined where they share a face
    of = pieces[truth]
    self._pieces.append(
      np.stack([np.bincount(p, minlength=number + 1)[1:] for p in (of, of[hit[truth]])])
    )
    if truth.ndim == 3:
      first = pieces[0]
      if self._last is not None:
        touching = (self._last > 0) & (first > 0)
        pairs = np.stack([self._last[touching] - 1, first[touching] + (self._number - 1)])
        self._joints.append(np.unique(pairs, axis=1))
      self._last = np.where(pieces[-1] > 0, pieces[-1] + np.int64(self._number), 0)
    self._number += number

  def sizes(self) -> tuple[np.ndarray, np.ndarray]:
    """Voxels, and those predicted, of every object."""
    pieces = np.concatenate(self._pieces, axis=1)
    if not self._joints:
      return tuple(pieces)
    a, b = np.concatenate(self._joints, axis=1)
    graph = sparse.coo_array((np.ones(len(a), bool), (a, b)), shape=(self._number,) * 2)
    number, of = sparse.csgraph.connected_components(graph, directed=False)
    return tuple(np.bincount(of, row, minlength=number).astype(np.int64) for row in pieces)


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
