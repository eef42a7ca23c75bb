"""Which region of which section becomes a training example.

The host draws the place of a region and cuts it out; zoom, flips and the final crop happen on the
device (`augment.py`), which is why the region may be larger than the patch. An image smaller than
the region lies at its top left, the rest is padding of weight 0; `valid` tells how much of the
region is image.
"""

import numpy as np

from emseg_jax.data import normalise, pairs

__all__ = ['cut', 'draw_example']

Example = dict[str, np.ndarray]


def draw_example(
  split: pairs.Split,
  section: int,
  rng: np.random.Generator,
  *,
  region: tuple[int, int],
  normalisation: normalise.Normalisation,
) -> Example:
  """Cuts a random region, uniform over all places, out of one section.

  Args:
    split: where the section is.
    section: index of the section in the split.
    rng: the generator of this example; nothing else is random here.
    region: (y, x) size that the device needs, at least the patch.
    normalisation: applied to the region.

  Returns:
    image f32 [y, x, C]; label i32 [y, x]; weight f32 [y, x], 0 where ignored or padded; valid i32
    [2], the (y, x) extent of the image in the region.
  """
  image, label = split.image(section), split.label(section)
  origin = [
    int(rng.integers(0, max(0, n - r) + 1)) for n, r in zip(label.shape, region, strict=True)
  ]
  volume = split.volume_statistics(section) if normalisation.needs_volume else None
  pixels = normalisation.apply(cut(image, origin, region), volume)
  classes = cut(label, origin, region)
  valid = np.array([min(n, r) for n, r in zip(label.shape, region, strict=True)], np.int32)
  weight = (classes != pairs.IGNORED).astype(np.float32)
  weight[valid[0] :] = 0.0
  weight[:, valid[1] :] = 0.0
  return {
    'image': pixels,
    'label': np.where(weight > 0, classes, 0).astype(np.int32),
    'weight': weight,
    'valid': valid,
  }


def cut(array: np.ndarray, origin: list[int], size: tuple[int, int]) -> np.ndarray:
  """Cuts [y, x] (+ channels) at `origin`; what lies beyond the array is mirrored."""
  window = array[origin[0] : origin[0] + size[0], origin[1] : origin[1] + size[1]]
  missing = [(0, s - n) for s, n in zip(size, window.shape, strict=False)]
  if not any(after for _, after in missing):
    return window
  return np.pad(window, missing + [(0, 0)] * (array.ndim - 2), mode='symmetric')
