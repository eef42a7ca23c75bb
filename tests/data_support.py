"""What the tests of reading data share: folders and stacks in their published forms, splits."""

import numpy as np
import tifffile
from PIL import Image

from emseg_jax.config import Data, Task
from emseg_jax.data import labels, pairs, sampling, volumes


def write_folder(folder, named):
  """Writes {name: array} as PNGs."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, array in named.items():
    Image.fromarray(array).save(folder / f'{name}.png')
  return str(folder)


def plain(value, shape=(6, 8)):
  return np.full(shape, value, np.uint8)


def write_stack(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  tifffile.imwrite(path, array, photometric='minisblack')
  return str(path)


def open_split(
  *sources, classes=('a', 'b'), mapping=None, ignore_value=None, cache_gb=1.0, labels=None
):
  return pairs.open_split(
    sources,
    task=Task(classes=classes, ignore_value=ignore_value),
    data=Data(label_mapping=mapping, cache_gb=cache_gb, labels=labels or {}),
  )


class CountingVolume(volumes.ArrayVolume):
  """Counts how often each section is decoded."""

  def __init__(self, array, **options):
    super().__init__(array, **options)
    self.reads = [0] * len(array)

  def _read(self, index):
    self.reads[index] += 1
    return super()._read(index)


class BoxVolume(volumes.ArrayVolume):
  """Reads boxes, notes which, and never a whole section."""

  cheap_boxes = True

  def __init__(self, array, **options):
    super().__init__(array, **options)
    self.boxes = []

  def _read(self, index):
    raise AssertionError(f'section {index} is read as a whole')

  def box(self, start, stop):
    self._check_box(start, stop)
    self.boxes.append((tuple(start), tuple(stop)))
    return self._array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]


def rules(num_classes, *, ignore_value=None):
  """Labels that are class indices."""
  names = tuple(f'class{i}' for i in range(num_classes))
  return labels.Rules(Task(classes=names, ignore_value=ignore_value), Data())


def volume_split(
  *volumes_, num_classes=2, ignore_value=None, weights=None, cache_bytes=10**8, **options
):
  """A split of pairs (image, label) of arrays [Z, Y, X], each a volume that counts decodings."""
  sections = []
  for number, (image, label) in enumerate(volumes_):
    image, label = CountingVolume(image, **options), CountingVolume(label, **options)
    weight = weights[number] if weights else 1.0
    sections += [
      pairs.Section(name, image, i, label, i, weight) for i, name in enumerate(image.names)
    ]
  return pairs.Split(
    sections,
    rules=rules(num_classes, ignore_value=ignore_value),
    cache_bytes=cache_bytes,
  )


def counting_split(*, sections, cache_bytes, size=(10, 10)):
  """Section i is filled with i, its label with i modulo 2; the split and its two volumes."""
  number = np.arange(sections, dtype=np.uint8)[:, None, None] * np.ones((1, *size), np.uint8)
  split = volume_split((number, number % 2), cache_bytes=cache_bytes)
  first = split.sections[0]
  return split, first.image_volume, first.label_volume


def cut_out(split, region, *, ndim, normalisation, neighbours=0, targets=None):
  """The one example of a region."""
  room = sampling.allocate(
    1,
    region.size[3 - ndim :],
    channels=normalisation.channels * (1 + 2 * neighbours),
    targets=targets or (),
  )
  into = {name: array[0] for name, array in room.items() if name != 'index'}
  options = {'normalisation': normalisation, 'neighbours': neighbours, 'targets': targets}
  sampling.read_example(split, region, into, **options)
  sampling.weigh(room)
  return into
