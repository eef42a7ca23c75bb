"""The numbers taken from one section, read once: of its image, and of its label.

Only numbers and small extracts are kept, no sections. Of a label, what is at its edges is looked at
in the window of 512 x 512 pixels with most of them.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping

import numpy as np

from emseg_jax.check import fit as check_fit
from emseg_jax.check import look
from emseg_jax.check.survey import count_values, locate
from emseg_jax.data import labels as labels_lib
from emseg_jax.data import pairs
from emseg_jax.errors import DataError

__all__ = ['LabelNumbers', 'Measured', 'find_place', 'measure', 'read_label']

PIXELS_AT_ONCE = 1 << 22  # bounds the memory of float64 sums
MOST_COLOURS = 1000  # an RGB label with more is a picture
ENDS = 16  # values at each end of the range of int8, to see whether it runs on beyond it
MOST_EQUAL = 2  # a pixel with at most so many equal ones among its 8 neighbours is stray
MOST_PIECES = 64  # labels with more values are not split into pieces


@dataclasses.dataclass(frozen=True)
class LabelNumbers:
  """What a label holds.

  Attributes:
    at: the file, with its section where it has several.
    values: value -> pixels, as data.label_mapping sees them; empty if that cannot be made of them.
    hidden: the part of these that task.ignore_value and the source's mask leave out.
    colours: '#rrggbb' -> pixels of an RGB label, most frequent first; empty for others.
    stray: values that are mostly stray pixels: at most 2 of 8 neighbours are equal.
    distinct: different values in the window.
    whole: those of them that are one or two connected pieces; 0 if there are more than 64.
    fit: `check_fit.score_shifts` in the window.
  """

  at: str
  values: Mapping[int, int]
  hidden: Mapping[int, int]
  colours: Mapping[str, int]
  stray: frozenset[int]
  distinct: int
  whole: int
  fit: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Measured:
  """The numbers of one section.

  Attributes:
    section: which.
    image_at: the file, with its section where it has several: how messages name it.
    digest: of the pixels.
    low, high, size, total, squares: smallest and largest pixel, their number, sum, sum of squares.
    sample: f32, some of the pixels, evenly spaced.
    wraps: an 8-bit signed image whose values run on from 127 to -128.
    thumbnail, detail: int8, `look` times 127 over the largest.
    label: None without one that can be read.
  """

  section: pairs.Section
  image_at: str
  digest: str
  low: float
  high: float
  size: int
  total: float
  squares: float
  sample: np.ndarray
  wraps: bool
  thumbnail: np.ndarray
  detail: np.ndarray
  label: LabelNumbers | None

  @property
  def std(self) -> float:
    mean = self.total / self.size
    return max(self.squares / self.size - mean * mean, 0.0) ** 0.5


def find_place(section: pairs.Section) -> tuple[str, int] | None:
  """File and number of a section in it; None in memory."""
  volume, index = section.image_volume, section.image_index
  if volume.kind == 'memory':
    return None
  if volume.kind == 'folder':
    return os.path.realpath(volume.files[index]), 0
  return (os.path.realpath(volume.path) if volume.files else volume.path), index


def measure(
  section: pairs.Section, rules: labels_lib.Rules, *, samples: int
) -> tuple[Measured | None, list[str]]:
  """Reads a section and its label.

  Args:
    section: which.
    rules: what labels mean.
    samples: pixels that are kept, about.

  Returns:
    The numbers, None if the image cannot be read; and messages of what training would refuse.
  """
  refused = []
  image, label = None, None
  try:
    image = section.image_volume.section(section.image_index)
  except DataError as error:
    refused.append(str(error))
  if section.label_volume is not None:
    try:
      label = _measure_label(section, image, rules, refused)
    except DataError as error:
      refused.append(str(error))
  if image is None:
    return None, refused
  return _measure_image(section, image, label, samples), refused


def _measure_image(
  section: pairs.Section, image: np.ndarray, label: LabelNumbers | None, samples: int
) -> Measured:
  digest = hashlib.sha256(f'{image.shape}{image.dtype}'.encode())
  digest.update(np.ascontiguousarray(image))
  parts = list(_in_parts(image))
  grey = image.mean(-1, dtype=np.float32) if image.ndim == 3 else image
  return Measured(
    section=section,
    image_at=locate(section.image_volume, section.image_index),
    digest=digest.hexdigest(),
    low=float(image.min()),
    high=float(image.max()),
    size=image.size,
    total=sum(float(part.sum(dtype=np.float64)) for part in parts),
    squares=sum(float(np.square(part, dtype=np.float64).sum()) for part in parts),
    sample=image.ravel()[:: max(1, image.size // samples)].astype(np.float32),
    wraps=image.dtype == np.int8 and _wraps(image),
    thumbnail=_shrink(look.thumbnail(grey)),
    detail=_shrink(look.detail(grey)),
    label=label,
  )


def _in_parts(array: np.ndarray) -> Iterator[np.ndarray]:
  rows = max(1, PIXELS_AT_ONCE // max(1, array[0].size))
  return (array[i : i + rows] for i in range(0, len(array), rows))


def _wraps(image: np.ndarray) -> bool:
  """More pixels at both ends of the range than around 0: unsigned values, read as signed."""
  counts = np.bincount(image.ravel().view(np.uint8), minlength=256)  # value v at v modulo 256
  low, high = counts[128 : 128 + ENDS].sum(), counts[128 - ENDS : 128].sum()
  return bool(min(low, high) > 0 and low + high > counts[:ENDS].sum() + counts[-ENDS:].sum())


def _shrink(unit: np.ndarray) -> np.ndarray:
  return np.rint(unit * (127.0 / max(1e-30, float(np.abs(unit).max())))).astype(np.int8)


def read_label(
  section: pairs.Section, rules: labels_lib.Rules
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
  """A label as it is stored, as integers [Y, X] whatever it means, and where it is not used.

  Raises:
    DataError: label or mask cannot be read.
  """
  raw = section.label_volume.section(section.label_index)
  legend = rules.data.labels.colours
  flat = raw
  if raw.ndim == 3:
    flat = _pack(raw)
    if legend is not None and raw.dtype == np.uint8:
      with contextlib.suppress(DataError):  # reported where values are counted
        flat = labels_lib.decode_colours(raw, legend, name='')
  unused = None
  if rules.task.ignore_value is not None and rules.data.labels.kind == 'values':
    unused = flat == rules.task.ignore_value
  if section.mask_volume is not None:
    masked = section.mask_volume.section(section.mask_index) == 0
    unused = masked if unused is None else unused | masked
  return raw, flat, unused


def _pack(colours: np.ndarray) -> np.ndarray:
  """[Y, X, 3] -> [Y, X]: 0xrrggbb of 8-bit colours; others are told apart, no more."""
  wide = colours.astype(np.int64)
  return (wide[..., 0] << 16) + (wide[..., 1] << 8) + wide[..., 2]


def _measure_label(
  section: pairs.Section,
  image: np.ndarray | None,
  rules: labels_lib.Rules,
  refused: list[str],
) -> LabelNumbers:
  """Values that cannot be decoded are added to `refused`; the rest is looked at all the same."""
  where = locate(section.label_volume, section.label_index)
  raw, flat, unused = read_label(section, rules)
  coloured = raw.ndim == 3 and raw.dtype == np.uint8
  values, hidden = {}, {}
  if not coloured or rules.data.labels.colours is not None:  # else its colours are the problem
    try:
      values, hidden = _count(raw, unused, rules, where)
    except DataError as error:
      refused.append(str(error))
  window = check_fit.busiest_window(flat)
  stray, distinct, whole = _look_at_edges(flat[window])
  fit = None
  if image is not None and image.shape[:2] == flat.shape:
    ignored = None if unused is None else unused[window]
    fit = check_fit.score_shifts(image[window], flat[window], ignored=ignored)
  return LabelNumbers(
    at=where,
    values=values,
    hidden=hidden,
    colours=_count_colours(raw) if coloured else {},
    stray=stray,
    distinct=distinct,
    whole=whole,
    fit=fit,
  )


def _count(
  raw: np.ndarray, unused: np.ndarray | None, rules: labels_lib.Rules, where: str
) -> tuple[dict[int, int], dict[int, int]]:
  """Pixels per value before label_mapping, and how many of these are not used."""
  options = rules.data.labels
  if options.colours is not None:
    raw = labels_lib.decode_colours(raw, options.colours, name=where)
  if options.kind == 'instances':
    raw = labels_lib.part_instances(raw, width=options.boundary_width, name=where)
  counts = count_values(raw, where)
  return counts, {} if unused is None else count_values(raw[unused][None], where)


def _count_colours(raw: np.ndarray) -> dict[str, int]:
  colours, counts = np.unique(_pack(raw), return_counts=True)
  order = np.argsort(-counts, kind='stable')[:MOST_COLOURS]
  return {f'#{colours[i]:06x}': int(counts[i]) for i in order}


def _look_at_edges(label: np.ndarray) -> tuple[frozenset[int], int, int]:
  """Stray values, number of values, and how many of them are one or two connected pieces."""
  from scipy import ndimage

  values, ranks, counts = np.unique(label, return_inverse=True, return_counts=True)
  ranks = ranks.reshape(label.shape)
  height, width = label.shape
  padded = np.pad(ranks, 1, constant_values=-1)
  equal = np.zeros(label.shape, np.uint8)
  for y, x in np.ndindex(3, 3):
    equal += padded[y : y + height, x : x + width] == ranks
  lone = np.bincount(ranks[equal <= MOST_EQUAL + 1], minlength=len(values))  # 1 is itself
  stray = values[2 * lone > counts]
  few = range(len(values)) if len(values) <= MOST_PIECES else ()
  whole = sum(ndimage.label(ranks == rank)[1] <= 2 for rank in few)
  return frozenset(stray.tolist()), len(values), whole
