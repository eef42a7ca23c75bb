"""Pictures of the report as PNG data URIs, and its colours.

Pictures of a case are layers: the image once, and transparent overlays of the same size that the
page stacks on it, because the noise of an EM image is what makes a PNG large. Arrays are [Y, X];
overlays are [Y, X, 4] uint8, red-green-blue-alpha.
"""

import base64
import dataclasses
import io
from collections.abc import Sequence

import numpy as np

from emseg_jax.colours import UNSCORED
from emseg_jax.errors import DataError

__all__ = [
  'ERROR_COLOURS',
  'Case',
  'draw_errors',
  'draw_image',
  'draw_labels',
  'most_common_class',
  'png_uri',
]

# Chosen from the same set so that they also differ in lightness, above the darkened image.
ERROR_COLOURS = {
  'false': '#d55e00',
  'missed': '#56b4e9',
  'wrong': '#f0e442',
  'ignored': UNSCORED,
}
TINT = 0.5


@dataclasses.dataclass(frozen=True)
class Case:
  """One scored image.

  Attributes:
    name: as in the per-image scores.
    accuracy: share of scored pixels that are right, 0..1.
    miou: mean intersection over union, 0..1; None without any class in label and prediction.
    image: [Y, X] or [Y, X, 3], any real type.
    label: [Y, X] class indices; any value where weight is 0.
    weight: [Y, X], 0 where a pixel is not scored.
    prediction: [Y, X] class indices.
    objects: ids of the true and of the predicted objects, each [Y, X], which are drawn instead of
      classes; None where the network segments no instances.

  Raises:
    DataError: the arrays differ in size.
  """

  name: str
  accuracy: float
  miou: float | None
  image: np.ndarray
  label: np.ndarray
  weight: np.ndarray
  prediction: np.ndarray
  objects: tuple[np.ndarray, np.ndarray] | None = None

  def __post_init__(self) -> None:
    shape = self.image.shape
    if not (self.image.ndim == 2 or (self.image.ndim == 3 and shape[2] == 3)):
      raise DataError(f'{self.name}: image has shape {shape}, the report draws [Y, X] or [Y, X, 3]')
    for field in ('label', 'weight', 'prediction'):
      if getattr(self, field).shape != shape[:2]:
        raise DataError(
          f'{self.name}: {field} has shape {getattr(self, field).shape}, the image {shape[:2]}'
        )
    if self.objects and any(ids.shape != shape[:2] for ids in self.objects):
      shapes = [ids.shape for ids in self.objects]
      raise DataError(f'{self.name}: objects have shapes {shapes}, the image {shape[:2]}')


def most_common_class(cases: Sequence[Case], num_classes: int) -> int:
  """The class with most scored pixels over all cases; the first of equals."""
  counts = np.zeros(num_classes, np.int64)
  for case in cases:
    for field, values in (
      ('label', case.label[case.weight != 0]),
      ('prediction', case.prediction.ravel()),
    ):
      if values.size and not 0 <= values.min() <= values.max() < num_classes:
        raise DataError(
          f'{case.name}: {field} holds classes {values.min()} to {values.max()}, but there are '
          f'{num_classes} classes (0 to {num_classes - 1})'
        )
    counts += np.bincount(case.label[case.weight != 0].ravel(), minlength=num_classes)
  return int(counts.argmax())


def draw_image(image: np.ndarray) -> np.ndarray:
  """Image [Y, X] or [Y, X, 3] as uint8: the 0.5 % to 99.5 % range is stretched to 0..255.

  Three equal channels become one. Values that are not finite are drawn black.
  """
  if image.ndim == 3 and (image == image[..., :1]).all():
    image = image[..., 0]
  image = image.astype(np.float32)
  finite = np.isfinite(image)
  low, high = np.percentile(image[finite], (0.5, 99.5)) if finite.any() else (0.0, 0.0)
  if low == high:  # a flat image, or one with a few odd pixels: its true range
    low, high = (image[finite].min(), image[finite].max()) if finite.any() else (0.0, 0.0)
  scaled = (np.where(finite, image, low) - low) / max(high - low, np.finfo(np.float32).tiny)
  return np.rint(np.clip(scaled, 0.0, 1.0) * 255).astype(np.uint8)


def draw_labels(
  classes: np.ndarray, *, colours: Sequence[str], plain: int, weight: np.ndarray | None = None
) -> np.ndarray:
  """Class indices as a translucent tint; class `plain` stays clear, weight 0 becomes grey."""
  table = np.array([_rgba(colour, TINT) for colour in colours], np.uint8)
  table[plain, 3] = 0
  if weight is None:
    return table[classes]
  scored = weight != 0
  tinted = table[np.where(scored, classes, 0)]
  tinted[~scored] = _rgba(ERROR_COLOURS['ignored'], 0.8)
  return tinted


def draw_errors(
  label: np.ndarray, weight: np.ndarray, prediction: np.ndarray, *, common: int
) -> np.ndarray:
  """Opaque colours where the prediction is wrong or not scored, clear where it is right.

  With c = `common`, the most common class: *false* is another class where the label is c, *missed*
  is c where the label is another class, *wrong* is one other class taken for another. With two
  classes these are false positives and negatives of the rarer class, and *wrong* cannot happen.
  """
  scored = weight != 0
  differ = scored & (label != prediction)
  result = np.zeros((*label.shape, 4), np.uint8)
  result[differ] = _rgba(ERROR_COLOURS['wrong'], 1.0)
  result[differ & (label == common)] = _rgba(ERROR_COLOURS['false'], 1.0)
  result[differ & (prediction == common)] = _rgba(ERROR_COLOURS['missed'], 1.0)
  result[~scored] = _rgba(ERROR_COLOURS['ignored'], 1.0)
  return result


def png_uri(pixels: np.ndarray, *, longest: int) -> tuple[str, tuple[int, int]]:
  """uint8 [Y, X], [Y, X, 3] or overlay [Y, X, 4] as a PNG data URI, and its size (y, x).

  Larger pictures are reduced until no side exceeds `longest`; others keep their pixels. Images are
  averaged. Overlays keep one pixel of each neighbourhood, so that they gain no mixed colours and
  the coloured share stays right; they are stored with a palette (at most 256 colours).
  """
  from PIL import Image

  sides = pixels.shape[:2]
  scale = min(1.0, longest / max(sides))
  height, width = (max(1, round(side * scale)) for side in sides)
  buffer = io.BytesIO()
  if pixels.ndim == 3 and pixels.shape[2] == 4:
    rows = ((np.arange(height) + 0.5) * sides[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * sides[1] / width).astype(int)
    packed = np.ascontiguousarray(pixels).view(np.uint32)[..., 0][rows][:, columns]
    table, index = np.unique(packed, return_inverse=True)
    table = table[:, None].view(np.uint8)
    picture = Image.fromarray(index.reshape(height, width).astype(np.uint8))
    picture.putpalette(table[:, :3].tobytes())
    picture.save(buffer, 'PNG', transparency=table[:, 3].tobytes())
  else:
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.HAMMING)
    picture.save(buffer, 'PNG')
  uri = 'data:image/png;base64,' + base64.b64encode(buffer.getvalue()).decode('ascii')
  return uri, (height, width)


def _rgba(colour: str, alpha: float) -> tuple[int, int, int, int]:
  red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
  return red, green, blue, round(alpha * 255)
