"""Error rate against the distance to the image border, where a network sees less context.

Integer counts that add up over images; an image is a section [Y, X] or a volume [Z, Y, X].
"""

from typing import Any

import numpy as np

from emseg_jax.data.pairs import IGNORED

__all__ = ['BINS', 'border_counts', 'border_scores']

STARTS = (0, 4, 8, 16, 32, 64)
BINS = ('0-3', '4-7', '8-15', '16-31', '32-63', '64-')  # distances in voxels


def border_counts(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
  """Counts wrong and scored voxels by distance to the nearest face of the image.

  The distance is the number of voxels in between, along the nearest axis: 0 for the outermost.

  Args:
    prediction: [*S] class indices.
    label: [*S] class indices, 255 where not scored.

  Returns:
    [6, 2] int64: wrong voxels and all scored voxels of each of `BINS`. Add them over images.

  Raises:
    ValueError: the shapes do not belong together.
  """
  if prediction.shape != label.shape:
    raise ValueError(f'prediction {prediction.shape} does not fit label {label.shape}')
  counted = label != IGNORED
  wrong = counted & (prediction != label)
  # Voxels at least d away fill a box; what one box has more than the next lies in between.
  boxes = [tuple(slice(d, size - d) for size in label.shape) for d in STARTS]
  within = np.array([[mask[box].sum() for mask in (wrong, counted)] for box in boxes], np.int64)
  return within - np.concatenate([within[1:], np.zeros((1, 2), np.int64)])


def border_scores(counts: np.ndarray) -> dict[str, Any]:
  """Share of wrong voxels at each distance.

  Args:
    counts: [6, 2] of `border_counts`, summed over images.

  Returns:
    {'error': {bin: share}, 'voxels': [scored voxels of each bin]}; None where a bin is empty.
  """
  rows = zip(BINS, counts.tolist(), strict=True)
  return {
    'error': {name: wrong / voxels if voxels else None for name, (wrong, voxels) in rows},
    'voxels': counts[:, 1].tolist(),
  }
