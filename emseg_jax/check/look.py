"""What a section looks like, in few numbers: to find copies and neighbours among thousands.

Two vectors of length 1, whose scalar product is a correlation: `thumbnail` of the whole section,
which sections of one volume share, and `detail` of its centre at full resolution. Detail is
band-passed, so that it follows what changes from one section to the next, and is about the same
after JPEG compression, another brightness or contrast; of a flipped section it is the flipped one.
"""

import numpy as np

__all__ = ['DETAIL', 'SIDE', 'detail', 'thumbnail']

SIDE = 32  # of a thumbnail, pixels
DETAIL = 96  # of a detail, pixels
FINE, COARSE = 1.0, 4.0  # Gaussians whose difference is the band, pixels


def thumbnail(image: np.ndarray) -> np.ndarray:
  """f32 [32, 32] of an image [Y, X]: means of its parts, mean 0, length 1 (0 if flat)."""
  from PIL import Image

  size = (SIDE, SIDE)
  small = Image.fromarray(image.astype(np.float32)).resize(size, Image.Resampling.BOX)
  return _normalise(np.asarray(small), scale=float(np.abs(image).max()))


def detail(image: np.ndarray) -> np.ndarray:
  """f32 [n, m] of the centre of an image [Y, X], n and m at most 96; mean 0, length 1 (0 if flat).

  Where the border leaves an odd number of pixels, neighbours are averaged, which keeps the centre.
  """
  from scipy import ndimage

  scale = float(np.abs(image).max())
  for axis in (0, 1):
    side = image.shape[axis]
    size = min(DETAIL, side)
    margin = int(2 * COARSE)
    odd = (side - size) % 2
    start = max(0, (side - size) // 2 - margin)
    centre = image.swapaxes(0, axis)[start : side - start].astype(np.float32)
    centre = (centre[1:] + centre[:-1]) / 2 if odd else centre
    image = centre.swapaxes(0, axis)
  band = ndimage.gaussian_filter(image, FINE) - ndimage.gaussian_filter(image, COARSE)
  cut = tuple(slice((s - min(s, DETAIL)) // 2, (s + min(s, DETAIL)) // 2) for s in band.shape)
  return _normalise(band[cut], scale=scale)


def _normalise(array: np.ndarray, *, scale: float) -> np.ndarray:
  """Mean 0, length 1; zeros if it varies by no more than the rounding of values near `scale`."""
  centred = array - array.mean()
  length = float(np.sqrt(np.square(centred, dtype=np.float64).sum()))
  if length <= 1e-5 * scale * array.size**0.5:
    return np.zeros(array.shape, np.float32)
  return (centred / length).astype(np.float32)
