"""The sections of a data set as they lie in its files: found, paired, cut into tiles, read.

An `Example` is what becomes one example: an image [Y, X] or [Y, X, 3] and its labels [Y, X], whole
sections or tiles of them. Opening reads headers only.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from emseg_jax.data import matching, volumes
from emseg_jax.data.datasets.published import Part, Published, find, locate
from emseg_jax.errors import DataError

__all__ = ['Example', 'Reader', 'open_part']


@dataclasses.dataclass(frozen=True)
class Example:
  """One example, not read yet.

  Attributes:
    name: of its section, and where the tile is.
    index: number of the section in its source.
    volume: the volume that it is a section of, the same for its neighbours; None: a single image.
    image: where it is.
    labels: where they are, by feature.
    masks: one per class, instead of a label.
    window: (y, x) of the tile's first pixel; None: the whole section.
    shape: (y, x).
  """

  name: str
  index: int
  volume: str | None
  image: tuple[volumes.Volume, int]
  labels: Mapping[str, tuple[volumes.Volume, int]]
  masks: tuple[tuple[volumes.Volume, int], ...]
  window: tuple[int, int] | None
  shape: tuple[int, int]


def open_part(published: Published, part: Part, source: Path) -> list[Example]:
  """The examples of one split, in the order of their sections.

  Raises:
    DataError: a file is missing, images and labels do not match in number, name or size, or an
      image cannot be cut into tiles.
  """
  images = volumes.open_volume(locate(source, part.images))
  others: dict[str, volumes.Volume] = {}
  masks: dict[str, volumes.Volume] = {}
  for feature, candidates in part.labels.items():
    if part.masks and find(source, candidates) is None:
      masks = {m: volumes.open_volume(locate(source, (m,)), palette='index') for m in part.masks}
    else:
      others[feature] = volumes.open_volume(locate(source, candidates), palette='index')
  partners = {k: dict(matching.match(images, v)) for k, v in (others | masks).items()}
  examples = []
  for i in part.chosen(len(images)):
    _check_shapes(images, i, [(v, partners[k][i]) for k, v in (others | masks).items()])
    example = Example(
      name=images.names[i],
      index=i,
      volume=str(images.path) if published.volume else None,
      image=(images, i),
      labels={feature: (volume, partners[feature][i]) for feature, volume in others.items()},
      masks=tuple((volume, partners[mask][i]) for mask, volume in masks.items()),
      window=None,
      shape=images.section_shape(i),
    )
    examples += _tiles(example, published.tile) if published.tile else [example]
  return examples


def _check_shapes(
  images: volumes.Volume, index: int, others: Sequence[tuple[volumes.Volume, int]]
) -> None:
  shape = images.section_shape(index)
  for volume, i in others:
    found = volume.section_shape(i)
    if found != shape:
      raise DataError(
        f'{volume.path}, {volume.names[i]}: is {found[0]} x {found[1]} (y x), its image '
        f'{images.names[index]} is {shape[0]} x {shape[1]}; they must be equal'
      )


def _tiles(example: Example, side: int) -> Iterator[Example]:
  height, width = example.shape
  if height % side or width % side:
    raise DataError(
      f'{example.image[0].path}, {example.name}: {height} x {width} (y x) is not a multiple of the '
      f'tiles of {side} x {side}'
    )
  for y in range(0, height, side):
    for x in range(0, width, side):
      name = example.name if (height, width) == (side, side) else f'{example.name}_y{y}_x{x}'
      yield dataclasses.replace(example, name=name, window=(y, x), shape=(side, side))


class Reader:
  """Reads examples in order; keeps the last section of each volume, for the tiles to come."""

  def __init__(
    self, *, channels: int, image_dtype: str, label_dtypes: Mapping[str, str], binary: bool = False
  ) -> None:
    self._channels, self._binary = channels, binary
    self._image_dtype, self._label_dtypes = np.dtype(image_dtype), label_dtypes
    self._kept: dict[int, tuple[int, np.ndarray]] = {}

  def read(self, example: Example) -> dict[str, np.ndarray]:
    """The image and the labels, by feature, in the types that were asked for.

    Raises:
      DataError: unreadable pixels, or another type, colour or value than the data set has.
    """
    where = f'{example.image[0].path}, {example.name}'
    arrays = {'image': self._image(self._window(example, *example.image), where)}
    for feature, place in example.labels.items():
      arrays[feature] = self._label(self._window(example, *place), feature, where)
    if example.masks:
      # A pixel belongs to the class whose mask is brightest there, the first of equals.
      masks = [grey(self._window(example, *place), where) for place in example.masks]
      arrays['label'] = np.argmax(np.stack(masks), axis=0).astype(self._label_dtypes['label'])
    return arrays

  def _window(self, example: Example, volume: volumes.Volume, index: int) -> np.ndarray:
    key = id(volume)
    if key not in self._kept or self._kept[key][0] != index:
      self._kept[key] = (index, volume.section(index))
    array = self._kept[key][1]
    if example.window is None:
      return array
    (y, x), (height, width) = example.window, example.shape
    return np.ascontiguousarray(array[y : y + height, x : x + width])

  def _image(self, array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype != self._image_dtype:
      raise DataError(
        f'{where}: its pixels are {array.dtype}, but those of this data set are {self._image_dtype}'
      )
    if self._channels == 1:
      return grey(array, where)
    if array.ndim == 2:
      raise DataError(f'{where}: is a grey image, but those of this data set are RGB')
    return array

  def _label(self, array: np.ndarray, feature: str, where: str) -> np.ndarray:
    label, dtype = grey(array, f'{where}: {feature}'), self._label_dtypes[feature]
    if self._binary:
      return np.where(label != 0, 255, 0).astype(dtype)
    stored = label.astype(dtype)
    if label.dtype != bool and not np.array_equal(stored, label):
      odd = label[stored != label].flat[0]
      raise DataError(f'{where}: {feature}: value {odd} does not fit {dtype}')
    return stored


def grey(array: np.ndarray, where: str) -> np.ndarray:
  """[Y, X]; RGB with three equal channels is grey. Raises DataError for colours."""
  if array.ndim == 2:
    return array
  if (array[..., :1] != array[..., 1:]).any():
    raise DataError(f'{where}: is in colour, but must be grey')
  return np.ascontiguousarray(array[..., 0])
