"""Data sets in the form of TFDS, array_record files, as volumes: one section is read at a time.

    tfds://NAME[/CONFIG]?split=train[&dir=DIR][&label=FEATURE]

names the split of a data set below DIR (default `DEFAULT_DIR`), as `--mode=prepare` or any TFDS
builder of this package wrote it. Splits can be joined: split=train+validation. Opening reads
JSON only; TFDS is imported with the first section.
"""

import dataclasses
import json
import re
import threading
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np

from emseg_jax.data.volumes import Volume
from emseg_jax.errors import DataError

__all__ = ['DEFAULT_DIR', 'SCHEME', 'Address', 'TfdsVolume', 'open_dataset', 'parse']

SCHEME = 'tfds://'
DEFAULT_DIR = 'data/tfds'
PARAMETERS = ('split', 'dir', 'label')


@dataclasses.dataclass(frozen=True)
class Address:
  """What a URI names.

  Attributes:
    name, variant: of the data set, and of its configuration if it has several.
    split: one, or several joined by '+'.
    folder: of all data sets.
    label: which of the labels; None: the only one, or the one called 'label'.
  """

  name: str
  variant: str | None
  split: str
  folder: Path
  label: str | None

  @property
  def base(self) -> Path:
    """Holds a folder per version."""
    return self.folder / self.name / (self.variant or '')


def parse(uri: str) -> Address:
  """Takes a URI apart. Raises DataError if it is not of the form above."""
  place, _, parameters = uri.removeprefix(SCHEME).partition('?')
  name, _, variant = place.strip('/').partition('/')
  # Not parse_qsl, to which a '+' is a space.
  pairs = [text.partition('=') for text in parameters.split('&') if text]
  query = {key: urllib.parse.unquote(value) for key, _, value in pairs}
  unknown = sorted(set(query) - set(PARAMETERS))
  if not uri.startswith(SCHEME) or not name or '/' in variant or unknown:
    what = f' ({unknown[0]} is unknown)' if unknown else ''
    raise DataError(
      f'{uri}: is not of the form {SCHEME}NAME[/CONFIG]?split=SPLIT[&dir=DIR][&label=NAME]{what}'
    )
  if 'split' not in query:
    raise DataError(f'{uri}: names no split, add ?split=train')
  folder = Path(query.get('dir', DEFAULT_DIR))
  return Address(name, variant or None, query['split'], folder, query.get('label'))


def open_dataset(uri: str) -> tuple['TfdsVolume', 'TfdsVolume | None']:
  """Images and labels of a split; the labels are None if the data set has none.

  Raises:
    DataError: not of that form, not prepared yet, no such split or label.
  """
  address = parse(uri)
  folder = built_folder(address)
  about = _read_json(folder / 'metadata.json')
  for split in address.split.split('+'):
    if split not in about['splits']:
      raise DataError(f'{uri}: {folder} has no split {split}, only {", ".join(about["splits"])}')
  labels = about['labels']
  label = address.label or ('label' if 'label' in labels or not labels else None)
  if label not in labels and (labels or address.label):
    raise DataError(f'{uri}: {folder} has several labels, add &label= one of {", ".join(labels)}')
  images = TfdsVolume(folder, address.split, 'image', about)
  return images, TfdsVolume(folder, address.split, label, about) if labels else None


def built_folder(address: Address) -> Path:
  """The folder of the newest version. Raises DataError if there is none."""
  versions = {
    tuple(map(int, path.parent.name.split('.'))): path.parent
    for path in address.base.glob('*/dataset_info.json')
    if re.fullmatch(r'\d+\.\d+\.\d+', path.parent.name)
  }
  if not versions:
    variants = sorted({p.parent.parent.name for p in address.base.glob('*/*/dataset_info.json')})
    if variants and not address.variant:
      raise DataError(
        f'{address.base}: has several configurations, add one of them behind the name: '
        f'{SCHEME}{address.name}/{" or /".join(variants)}'
      )
    raise DataError(
      f'{address.base}: holds no data set; make it with --mode=prepare and this configuration'
    )
  return versions[max(versions)]


class TfdsVolume(Volume):
  """One feature of a split, [Y, X] or [Y, X, 3] per example. Thread-safe, can be pickled."""

  def __init__(self, folder: Path, split: str, feature: str, about: dict[str, Any]) -> None:
    parts = [about['splits'][name] for name in split.split('+')]
    places = [place for part in parts for place in part['places']]
    colour = feature == 'image' and about['channels'] == 3
    self.path, self.kind = f'{folder}:{split}/{feature}', 'stack'
    self.axes = ('ZYX' if _neighbours(places) else 'NYX') + 'C' * colour
    self.dtype = np.dtype(about['image_dtype'] if feature == 'image' else about['labels'][feature])
    self.channels = 3 if colour else 1
    size = about['voxel_size_zyx']
    self.voxel_size_zyx = tuple(size) if size and any(size) else None
    self.names = tuple(name for part in parts for name in part['names'])
    self.files = tuple(
      str(file) for name in split.split('+') for file in sorted(folder.glob(f'*-{name}.array_*'))
    )
    self._shapes = [tuple(shape) for part in parts for shape in part['shapes']]
    self._folder, self._split, self._feature = folder, split, feature
    self._lock, self._opened = threading.Lock(), None

  def section_shape(self, index: int) -> tuple[int, int]:
    return self._shapes[index]

  def _read(self, index: int) -> np.ndarray:
    records, features = self._open()
    return features.deserialize_example_np(records[index])[self._feature]

  def _open(self) -> tuple[Any, Any]:
    with self._lock:
      if self._opened is None:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(self._folder)
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        records = builder.as_data_source(self._split, deserialize_method=raw)
        # Of this feature only: decoding the others would take as long again.
        feature = {self._feature: builder.info.features[self._feature]}
        self._opened = records, tfds.features.FeaturesDict(feature)
      return self._opened

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_lock': None, '_opened': None}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._lock = threading.Lock()


def _neighbours(places: list[tuple[int | None, int]]) -> bool:
  """Whether all are sections of one volume, none left out."""
  volume, first = places[0]
  return volume is not None and all(
    place == [volume, first + i] for i, place in enumerate(map(list, places))
  )


def _read_json(path: Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise DataError(f'{path}: cannot be read ({error}); prepare the data set again') from error
