"""How well a label fits its image: the correlation ratio, over shifts of the label.

The correlation ratio of a grey value f given a partition of the pixels into groups k is the share
of its variance that the groups explain (Roche et al. 1998, "The correlation ratio as a new
similarity measure for multimodal image registration"):

    eta^2 = 1 - sum_k N_k var_k(f) / (N var(f)) = (sum_k S_k^2 / N_k - S^2 / N) / (N var(f))

with S_k the sum of f - mean(f) over the N_k pixels of group k. Nothing is assumed about which class
is dark. Groups are the boundary pixels of the label and the rest of each class, or of all
instances; f is the smoothed image, then its gradient magnitude, and the score is the mean of both
ratios: 0 for a label that knows nothing of the image, rarely above 0.5 for one that fits. N_k and
S_k for all shifts at once are cross-correlations, computed by FFT. Arrays are [Y, X].
"""

from collections.abc import Sequence

import numpy as np

__all__ = ['REACH', 'busiest_window', 'find_boundary', 'pool', 'score_shifts']

WINDOW = 512  # side of what is looked at, pixels
REACH = 32  # largest shift, pixels; less in small images
SMALLEST = 64  # side of an image below which nothing is concluded, pixels
SHORTEST = 64  # boundary pixels of a label below which nothing is concluded
SIGMA = 1.5  # of the Gaussian, pixels: removes the noise of single pixels
MOST_VALUES = 8  # labels with more values are taken for instances, of which 0 is the outside
STEP = 32  # of the search for the window, pixels


def find_boundary(label: np.ndarray) -> np.ndarray:
  """True where a pixel differs from one of its four neighbours."""
  boundary = np.zeros(label.shape, bool)
  for a, b in (np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1]):
    differs = label[a] != label[b]
    boundary[a] |= differs
    boundary[b] |= differs
  return boundary


def busiest_window(label: np.ndarray, *, size: int = WINDOW) -> tuple[slice, slice]:
  """The window of at most `size` x `size` pixels with most boundary, on a grid of 32 pixels."""
  boundary = find_boundary(label)
  height, width = (min(size, side) for side in label.shape)
  rows, columns = (range(0, side, STEP) for side in label.shape)
  counts = np.add.reduceat(np.add.reduceat(boundary, rows, axis=0, dtype=np.int64), columns, axis=1)
  sums = np.pad(counts.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
  tall, wide = max(1, height // STEP), max(1, width // STEP)
  inside = sums[tall:, wide:] - sums[:-tall, wide:] - sums[tall:, :-wide] + sums[:-tall, :-wide]
  y, x = (int(n) * STEP for n in np.unravel_index(inside.argmax(), inside.shape))
  y, x = min(y, label.shape[0] - height), min(x, label.shape[1] - width)
  return slice(y, y + height), slice(x, x + width)


def score_shifts(
  image: np.ndarray, label: np.ndarray, *, ignored: np.ndarray | None = None
) -> np.ndarray | None:
  """The score for every shift of the label by up to 32 pixels, or an eighth of the smaller side.

  Args:
    image: [Y, X] or [Y, X, 3], any real type.
    label: [Y, X] integers.
    ignored: [Y, X] bool, label pixels that belong to no group.

  Returns:
    f32 [2 r + 1, 2 r + 1]; element (r + dy, r + dx) is the score once the label is moved by dy rows
    down and dx columns to the right. None if the image is too small or flat, or the label has too
    few boundary pixels.
  """
  from scipy import fft

  reach = min(REACH, min(label.shape) // 8)
  groups = _group(label, ignored)
  features = _standardise(image, reach) if min(label.shape) >= SMALLEST and len(groups) > 1 else []
  if not features:
    return None
  shape = [fft.next_fast_len(side, real=True) for side in label.shape]
  inner = np.zeros(label.shape, np.float32)
  inner[reach:-reach, reach:-reach] = 1.0
  window, *spectra = (fft.rfft2(a, shape) for a in (inner, *features))
  total, explained, sums = 0.0, 0.0, 0.0
  for group in groups:
    spectrum = np.conj(fft.rfft2(group.astype(np.float32), shape))
    # Element (dy, dx): sum over x of feature(x) group(x - (dy, dx)). None wraps around, because
    # features are 0 within `reach` of the border.
    number, *parts = (_near(fft.irfft2(spectrum * s, shape), reach) for s in (window, *spectra))
    number, parts = np.round(number), np.stack(parts)
    explained = explained + np.where(number > 0, parts**2 / np.maximum(number, 1.0), 0.0)
    total, sums = total + number, sums + parts
  total = np.maximum(total, 1.0)
  return ((explained - sums**2 / total) / total).mean(axis=0).astype(np.float32)


def _group(label: np.ndarray, ignored: np.ndarray | None) -> list[np.ndarray]:
  """Boundary, and the rest of each class; without pixels that are not scored."""
  boundary = find_boundary(label)
  used = np.ones(label.shape, bool) if ignored is None else ~ignored
  if np.count_nonzero(boundary & used) < SHORTEST:
    return []
  values = np.unique(label[used])
  if len(values) > MOST_VALUES:
    label, values = label != 0, (False, True)
  return [boundary & used, *(~boundary & used & (label == v) for v in values)]


def _standardise(image: np.ndarray, reach: int) -> list[np.ndarray]:
  """Smoothed image and gradient: mean 0, variance 1 inside, 0 within `reach` of the border."""
  from scipy import ndimage

  grey = image.astype(np.float32)
  smooth = ndimage.gaussian_filter(grey.mean(-1) if grey.ndim == 3 else grey, SIGMA)
  gradient = np.hypot(ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1))
  features = []
  for feature in smooth, gradient:
    inner = feature[reach:-reach, reach:-reach]
    spread = float(inner.std())
    if spread <= 1e-6 * max(1e-30, float(np.abs(inner).max())):
      return []
    features.append(np.zeros(feature.shape, np.float32))
    features[-1][reach:-reach, reach:-reach] = (inner - inner.mean()) / spread
  return features


def _near(correlation: np.ndarray, reach: int) -> np.ndarray:
  """Shifts of -reach to reach out of a cyclic correlation."""
  shifted = np.roll(correlation, (reach, reach), axis=(0, 1))
  return shifted[: 2 * reach + 1, : 2 * reach + 1].astype(np.float64)


def pool(scores: Sequence[np.ndarray]) -> np.ndarray | None:
  """The mean over sections, for the shifts that all of them have; None without any."""
  if not scores:
    return None
  reach = min(len(s) for s in scores) // 2
  return np.mean([_middle(s, reach) for s in scores], axis=0)


def _middle(score: np.ndarray, reach: int) -> np.ndarray:
  centre = len(score) // 2
  return score[centre - reach : centre + reach + 1, centre - reach : centre + reach + 1]
