"""The eight ways in which an image may be flipped or turned."""

from collections.abc import Callable

import numpy as np

__all__ = ['AS_IS', 'POSES']

AS_IS = 'as they are'
POSES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  AS_IS: lambda a: a,
  'flipped top to bottom': lambda a: a[::-1],
  'flipped left to right': lambda a: a[:, ::-1],
  'turned by 180 degrees': lambda a: a[::-1, ::-1],
  'transposed (y and x swapped)': lambda a: a.T,
  'turned by 90 degrees counter-clockwise': lambda a: np.rot90(a),
  'turned by 90 degrees clockwise': lambda a: np.rot90(a, -1),
  'transposed and turned by 180 degrees': lambda a: np.rot90(a, 2).T,
}
