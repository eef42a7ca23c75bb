"""Intensity normalisation: computed once, kept with the model, applied everywhere alike.

`fit` looks at the training images; `Normalisation.apply` maps one section to the float32 that the
network sees. The record is plain numbers, so it travels through JSON into checkpoints and exported
models.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, Literal, Self

import numpy as np

from emseg_jax.errors import DataError

__all__ = ['Normalisation', 'VolumeStatistics', 'fit', 'full_range', 'volume_statistics']

Kind = Literal['dataset', 'per_volume', 'percentile', 'imagenet', 'caffe', 'scale']

# torchvision's statistics of ImageNet on the 0..255 scale.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
# What Keras' VGG was trained with, in the order RGB; nothing is divided.
CAFFE_MEAN = (123.68, 116.779, 103.939)


@functools.cache
def full_range(dtype: np.dtype) -> tuple[float, float]:
  """The (low, high) that an integer type can hold; floats are taken to lie in 0..1."""
  if np.issubdtype(dtype, np.integer):
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
  return 0.0, 1.0


@dataclasses.dataclass(frozen=True)
class VolumeStatistics:
  """What the per-volume normalisations need to know of one image or stack."""

  mean: float
  std: float
  low: float  # 1st percentile
  high: float  # 99th percentile


@dataclasses.dataclass(frozen=True)
class Normalisation:
  """The mapping from file intensities to network input.

  Attributes:
    kind: which of the five normalisations.
    channels: 1 or 3, as fed to the network.
    mean: training mean in file units (`dataset` only).
    std: training standard deviation in file units (`dataset` only).
    dtype: file type of the training images, by its numpy name; compared at prediction because
      another type is a common cause of empty results.
  """

  kind: Kind
  channels: int
  mean: float
  std: float
  dtype: str

  def apply(
    self,
    section: np.ndarray,
    volume: VolumeStatistics | None = None,
    *,
    out: np.ndarray | None = None,
  ) -> np.ndarray:
    """Maps a section [Y, X] or [Y, X, 3] to float32 [Y, X, channels].

    Args:
      section: pixels as the file holds them; `imagenet`, `caffe` and `scale` go by the range
        of its type.
      volume: statistics of the file it belongs to; needed by `per_volume` and `percentile`.
      out: float32 array for the result; None: a new one.
    """
    x = _to_channels(section, self.channels)
    if out is None:
      out = np.empty(x.shape, np.float32)
    if self.kind in ('per_volume', 'percentile') and volume is None:
      raise ValueError(f'{self.kind} needs the statistics of the volume')
    if self.kind == 'dataset':
      return _standardised(x, self.mean, self.std, out)
    if self.kind == 'per_volume':
      return _standardised(x, volume.mean, volume.std, out)
    if self.kind == 'percentile':
      x = _standardised(x, volume.low, volume.high - volume.low, out)
      return np.clip(x, 0.0, 1.0, out=x)
    low, high = full_range(section.dtype)
    x = _standardised(x, low, high - low, out)
    if self.kind == 'scale':
      return x
    if self.kind == 'caffe':
      mean, std = np.float32(CAFFE_MEAN), np.ones(3, np.float32)
    else:
      mean, std = np.float32(IMAGENET_MEAN), np.float32(IMAGENET_STD)
    if self.channels == 1:
      mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
    x *= 255.0
    x -= mean
    x /= std
    return x

  @property
  def needs_volume(self) -> bool:
    """Whether `apply` needs the statistics of the volume that a section belongs to."""
    return self.kind in ('per_volume', 'percentile')

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, record: dict[str, Any]) -> Self:
    return cls(**record)


def _standardised(x: np.ndarray, origin: float, scale: float, out: np.ndarray) -> np.ndarray:
  """(x - origin) / scale of x as float32, in `out`."""
  if origin:
    x = np.subtract(x, np.float32(origin), out=out, dtype=np.float32, casting='same_kind')
  return np.divide(x, np.float32(max(scale, 1e-6)), out=out, dtype=np.float32, casting='same_kind')


def _to_channels(x: np.ndarray, channels: int) -> np.ndarray:
  """Grey -> 3 equal channels; RGB -> mean for 1 channel."""
  if x.ndim == 2:
    x = x[..., None]
  if x.shape[-1] == channels:
    return x
  if channels == 1:
    return x.astype(np.float32).mean(axis=-1, keepdims=True)
  return np.repeat(x, channels, axis=-1)


class _Moments:
  """Running mean and variance of float64 (Chan, Golub and LeVeque 1983).

  Deviations are taken from a pixel of each section: free of the cancellation in Σx² - n·mean², and
  exactly 0 where all pixels are equal.
  """

  def __init__(self) -> None:
    self.count = 0
    self.mean = 0.0
    self._squares = 0.0  # sum of squared deviations from the mean

  @property
  def std(self) -> float:
    return float(np.sqrt(self._squares / self.count))

  def add(self, section: np.ndarray) -> None:
    x = section.astype(np.float64)
    origin = float(x.flat[0])
    x -= origin
    total = self.count + x.size
    delta = origin + float(x.mean()) - self.mean
    self._squares += float(x.var()) * x.size + delta * delta * self.count * x.size / total
    self.mean += delta * x.size / total
    self.count = total


def fit(kind: Kind, channels: int, sections: Iterable[np.ndarray]) -> Normalisation:
  """Looks at the training sections once and returns the normalisation.

  Args:
    kind: which normalisation.
    channels: channels that the network takes.
    sections: training sections, [Y, X] or [Y, X, 3]; only `dataset` reads more than the first.

  Raises:
    DataError: there are no sections, or all pixels are equal.
  """
  moments, dtype = _Moments(), None
  for section in sections:
    dtype = section.dtype if dtype is None else dtype
    if kind != 'dataset':
      break
    moments.add(section)
  if dtype is None:
    raise DataError('data.train: there are no training images to take the normalisation from')
  if kind != 'dataset':
    return Normalisation(kind, channels, 0.0, 1.0, dtype.name)
  if moments.std == 0.0:
    raise DataError(f'data.train: all training pixels have the same value {moments.mean:g}')
  return Normalisation(kind, channels, moments.mean, moments.std, dtype.name)


def volume_statistics(sections: Iterable[np.ndarray]) -> VolumeStatistics:
  """Statistics of one image or stack, section by section.

  The percentiles come from a strided sample of 65,536 pixels a section, so that a stack need not be
  held in memory.
  """
  moments, sample = _Moments(), []
  for section in sections:
    moments.add(section)
    sample.append(section.ravel()[:: max(1, section.size // 65_536)].astype(np.float32))
  low, high = np.percentile(np.concatenate(sample), [1.0, 99.0])
  return VolumeStatistics(moments.mean, moments.std, float(low), float(high))
