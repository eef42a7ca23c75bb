"""The builder for images and labels of one's own: the sources of a configuration."""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from emseg_jax import config
from emseg_jax.data import pairs
from emseg_jax.data.datasets.builder import SectionsBuilder
from emseg_jax.data.datasets.sections import Example, Reader
from emseg_jax.errors import ConfigError, DataError

__all__ = ['Folder']

NAME = '[a-z][a-z0-9_]*'


class Folder(SectionsBuilder, skip_registration=True):
  """Writes what the sources of every split name: any folder, image or stack.

  Args:
    name: of the data set.
    sources: by split.
    classes: names, kept with the data set.
    label_values: label value -> class; None: values are classes. Kept, not applied.
    ignore_value: label value of what is not scored; kept, too.
  """

  def __init__(
    self,
    *,
    name: str,
    sources: Mapping[str, Sequence[config.Source]],
    classes: Sequence[str],
    label_values: Mapping[int, int] | None,
    ignore_value: int | None,
    **options: Any,
  ) -> None:
    for split, found in sources.items():
      if any(source.phantom for source in found):
        raise ConfigError(f'data.{split}: a phantom is made on the fly, it cannot be prepared')
    self.name = name
    self._sections = {
      split: [section for source in found for section in pairs.open_source(source)]
      for split, found in sources.items()
      if found
    }
    values = label_values or {k: k for k in range(len(classes))}
    self._about = {
      'classes': tuple(classes),
      'label_values': {str(k): v for k, v in values.items()},
      'ignore_value': ignore_value,
      'partial': False,
    }
    super().__init__(**options)

  def _info(self) -> tfds.core.DatasetInfo:
    every = [section for split in self._sections.values() for section in split]
    images = {s.image_volume for s in every}
    voxel_sizes = {volume.voxel_size_zyx for volume in images}
    dtype, channels = _only({(str(v.dtype), v.channels) for v in images}, 'images')
    labels = {}
    for feature in ('label', 'mask'):
      volumes = {getattr(section, f'{feature}_volume') for section in every}
      if None not in volumes:
        labels[feature] = _only({_label_dtype(str(volume.dtype)) for volume in volumes}, feature)
      elif len(volumes) > 1:
        raise DataError(f'{self.name}: some sources have a {feature} and some have none')
    self._reader = Reader(channels=channels, image_dtype=dtype, label_dtypes=labels)
    return self.make_info(
      channels=channels,
      image_dtype=dtype,
      labels=labels,
      metadata={
        **self._about,
        'voxel_size_zyx': voxel_sizes.pop() if len(voxel_sizes) == 1 else None,
      },
      description='Images and labels of one’s own.',
    )

  def reader(self) -> Reader:
    return self._reader

  def examples(self) -> dict[str, list[Example]]:
    return {
      split: [_example(section) for section in sections]
      for split, sections in self._sections.items()
    }


def _example(section: pairs.Section) -> Example:
  volume, index = section.image_volume, section.image_index
  labels = {
    'label': (section.label_volume, section.label_index),
    'mask': (section.mask_volume, section.mask_index),
  }
  return Example(
    name=section.name,
    index=index,
    volume=str(volume.path) if volume.axes.startswith('Z') else None,
    image=(volume, index),
    labels={feature: place for feature, place in labels.items() if place[0] is not None},
    masks=(),
    window=None,
    shape=section.shape,
  )


def _only(found: set[Any], what: str) -> Any:
  if len(found) > 1:
    raise DataError(f'data: {what} are of different types, {sorted(map(str, found))}')
  return found.pop()


def _label_dtype(dtype: str) -> str:
  return 'uint8' if dtype == 'bool' else dtype
