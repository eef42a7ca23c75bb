"""What the TFDS builders share: they write array_record files shard by shard, without TensorFlow.

Every example has `image` uint8 [Y, X] or [Y, X, 3], one or several labels [Y, X] with the values of
the published files, `name`, and `index`, the number of its section. Sizes may differ, arrays are
compressed losslessly. Examples keep their order. `metadata.json` holds what a reader needs before
it decodes an image: names, sizes, places in the volume, voxel size, classes, and how often each
label value occurs.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from emseg_jax.data.datasets import download
from emseg_jax.data.datasets.published import Published
from emseg_jax.data.datasets.sections import Example, Reader, open_part
from emseg_jax.errors import DataError, Interrupted

__all__ = ['SectionsBuilder', 'SourceBuilder']

# TFDS keeps the examples of a shard in memory until it is written.
SHARD_BYTES = 256_000_000


class SectionsBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
  """Writes examples; subclasses say which.

  Attributes:
    should_stop: asked before every example.
  """

  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, *, should_stop: Callable[[], bool] = lambda: False, **options: Any) -> None:
    self.should_stop = should_stop
    super().__init__(file_format='array_record', **options)

  def examples(self) -> dict[str, list[Example]]:
    """The examples of every split. Raises DataError."""
    raise NotImplementedError

  def reader(self) -> Reader:
    """Reads them."""
    raise NotImplementedError

  def make_info(
    self,
    *,
    channels: int,
    image_dtype: str,
    labels: Mapping[str, str],
    metadata: Mapping[str, Any],
    **texts: str,
  ) -> tfds.core.DatasetInfo:
    """`labels` maps features to types; `texts` are description, homepage, citation, license."""
    features = {
      'image': _pixels(np.dtype(image_dtype), colour=channels == 3),
      **{name: _pixels(np.dtype(dtype), colour=False) for name, dtype in labels.items()},
      'name': tfds.features.Text(),
      'index': np.int64,
    }
    described = {'channels': channels, 'image_dtype': image_dtype, 'labels': dict(labels)}
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      metadata=tfds.core.MetadataDict({**described, **metadata, 'splits': {}}),
      disable_shuffling=True,
      **texts,
    )

  def _shard_iterators_per_split(
    self, dl_manager: Any
  ) -> dict[str, list[Callable[[], Iterator[tuple[int, dict[str, Any]]]]]]:
    del dl_manager
    examples = self.examples()
    reader = self.reader()
    numbers = {v: i for i, v in enumerate(_volumes(examples))}
    generators = {}
    for split, found in examples.items():
      counts: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
      self.info.metadata['splits'][split] = {
        'names': [e.name for e in found],
        'shapes': [e.shape for e in found],
        'places': [(None if e.volume is None else numbers[e.volume], e.index) for e in found],
        'values': counts,
      }
      generators[split] = [
        self._generator(shard, reader, counts) for shard in _shards(found, self._bytes_per_pixel())
      ]
    return generators

  def _bytes_per_pixel(self) -> int:
    about = self.info.metadata
    label_bytes = sum(np.dtype(d).itemsize for d in about['labels'].values())
    return about['channels'] * np.dtype(about['image_dtype']).itemsize + label_bytes

  def _generator(
    self,
    shard: Sequence[Example],
    reader: Reader,
    counts: dict[str, collections.Counter[int]],
  ) -> Callable[[], Iterator[tuple[int, dict[str, Any]]]]:
    def generate() -> Iterator[tuple[int, dict[str, Any]]]:
      for number, example in enumerate(shard):
        if self.should_stop():
          raise Interrupted(f'{self.name}: interrupted; nothing was written')
        arrays = reader.read(example)
        for feature in self.info.metadata['labels']:
          values, times = np.unique(arrays[feature], return_counts=True)
          counts[feature].update(dict(zip(values.tolist(), times.tolist(), strict=True)))
        yield number, {**arrays, 'name': example.name, 'index': example.index}

    return generate


class SourceBuilder(SectionsBuilder, skip_registration=True):
  """A data set that others published, from a folder with its files; see `VARIANTS`.

  Files that are missing there are downloaded into it where that is possible.

  Args:
    source: the folder.
    partial: allow other numbers and sizes of examples than were published, and missing splits.
  """

  # By the name of the TFDS configuration, or '' if there is only one.
  VARIANTS: ClassVar[Mapping[str, Published]]

  def __init__(self, *, source: str | Path, partial: bool = False, **options: Any) -> None:
    self.source, self.partial = Path(source), partial
    super().__init__(**options)

  @property
  def published(self) -> Published:
    return self.VARIANTS[self.builder_config.name if self.builder_config else '']

  def _info(self) -> tfds.core.DatasetInfo:
    published = self.published
    return self.make_info(
      channels=published.channels,
      image_dtype='uint8',
      labels=self._label_dtypes(),
      metadata={
        'voxel_size_zyx': published.voxel_size_zyx,
        'classes': published.classes,
        'label_values': {str(k): v for k, v in published.values.items()},
        'ignore_value': published.ignore,
        'partial': self.partial,
      },
      description=published.description,
      homepage=published.homepage,
      citation=published.citation,
      license=published.licence,
    )

  def _label_dtypes(self) -> dict[str, str]:
    first = next(iter(self.published.splits.values()))
    return dict.fromkeys(first.labels, self.published.label_dtype)

  def reader(self) -> Reader:
    published = self.published
    return Reader(
      channels=published.channels,
      image_dtype='uint8',
      label_dtypes=self._label_dtypes(),
      binary=published.binary,
    )

  def examples(self) -> dict[str, list[Example]]:
    self._get_files()
    missing = self.published.missing(self.source)
    parts = {name: part for name, part in self.published.splits.items() if name not in missing}
    found = {name: open_part(self.published, part, self.source) for name, part in parts.items()}
    if not self.partial:
      self._check(found)
    found = {name: examples for name, examples in found.items() if examples}
    if not found:
      raise DataError(f'{self.source}: the files of {self.name} hold no section of any split')
    return found

  def _get_files(self) -> None:
    """Downloads what can be. Raises DataError that says what belongs where."""
    if self._lacking() and self.published.downloads:
      try:
        for item in self.published.downloads:
          file = download.fetch(item, self.source)
          if item.unpack:
            download.unpack(file, self.source)
      except DataError as error:
        raise DataError(f'{error}. Otherwise: {self._instructions()}') from error
    if lacking := self._lacking():
      absent = '; '.join(f'{split}: {", ".join(paths)}' for split, paths in lacking.items())
      raise DataError(f'{self.source}: {self.name} lacks files ({absent}). {self._instructions()}')

  def _lacking(self) -> dict[str, list[str]]:
    """Missing files by split, if they matter: with `partial`, one complete split is enough."""
    missing = self.published.missing(self.source)
    return {} if self.partial and len(missing) < len(self.published.splits) else missing

  def _instructions(self) -> str:
    published = self.published
    return (
      f'{published.manual} Expected in {self.source}, or in one folder in it: '
      f'{", ".join(published.wanted())}. See {published.homepage}'
    )

  def _check(self, found: Mapping[str, Sequence[Example]]) -> None:
    for split, examples in found.items():
      part = self.published.splits[split]
      if len(examples) != part.count:
        raise DataError(
          f'{self.source}: split {split} of {self.name} has {len(examples)} examples, but '
          f'{part.count} were published; --partial (partial=True) takes what is there'
        )
      for example in examples:
        if example.shape != part.shape:
          (y, x), (height, width) = example.shape, part.shape
          raise DataError(
            f'{self.source}: {example.name} in split {split} of {self.name} is {y} x {x} (y x), '
            f'but {height} x {width} was published; --partial (partial=True) takes what is there'
          )


def _pixels(dtype: np.dtype, *, colour: bool) -> tfds.features.Tensor:
  shape = (None, None, 3) if colour else (None, None)
  return tfds.features.Tensor(shape=shape, dtype=dtype, encoding='zlib')


def _volumes(examples: Mapping[str, Sequence[Example]]) -> list[str]:
  found = (e.volume for split in examples.values() for e in split if e.volume is not None)
  return list(dict.fromkeys(found))


def _shards(examples: Sequence[Example], bytes_per_pixel: int) -> list[list[Example]]:
  """Consecutive examples of at most SHARD_BYTES, uncompressed, or a single one."""
  shards: list[list[Example]] = []
  filled = 0
  for example in examples:
    size = example.shape[0] * example.shape[1] * bytes_per_pixel
    if not shards or filled + size > SHARD_BYTES:
      shards.append([])
      filled = 0
    shards[-1].append(example)
    filled += size
  return shards
