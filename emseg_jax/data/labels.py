"""What label files mean: from stored values to class indices.

Three steps, the first two by option: colours of a legend become values; instance ids become outside
(0), inside (1) and boundary (2); values become class indices by `data.label_mapping`. Class indices
are uint8, with `IGNORED` (255) where a pixel is not to be scored.

For affinities the values are instance ids and stay that: int32, or int64 where the file has more
than 16 bits, with 0 in the background and `NO_ID` (-1) where a pixel is not to be scored. The type
thus tells which of both a label is, and `ignored` and `foreground` know both.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from emseg_jax import config
from emseg_jax.errors import DataError

__all__ = [
  'IGNORED',
  'NO_ID',
  'Rules',
  'decode_colours',
  'foreground',
  'hide',
  'ignored',
  'instance_ids',
  'map_labels',
  'part_instances',
  'renumbered',
]

IGNORED = 255
NO_ID = -1
OUTSIDE, INSIDE, BOUNDARY = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Rules:
  """How the labels of a data set are read; "class index" means the mask where they overlap."""

  task: config.Task
  data: config.Data

  @property
  def reach(self) -> int:
    """How far around a pixel its class depends on the label file, pixels."""
    return self.data.labels.boundary_width if self.data.labels.kind == 'instances' else 0

  def apply(self, raw: np.ndarray, *, name: str) -> np.ndarray:
    """Turns what a label file holds, [Y, X] or [Y, X, 3], into class indices uint8 [Y, X], or ids.

    Raises:
      DataError: naming `name`, where a colour or value has no meaning.
    """
    options = self.data.labels
    if options.colours is not None:
      raw = decode_colours(raw, options.colours, name=name)
    if self.task.affinities:
      return instance_ids(raw, ignore_value=self.task.ignore_value, name=name)
    if options.kind == 'instances':
      raw = part_instances(raw, width=options.boundary_width, name=name)
    return map_labels(
      raw,
      num_classes=len(self.task.values),
      label_mapping=self.data.label_mapping,
      ignore_value=self.task.ignore_value,
      other=options.other,
      name=name,
    )


def map_labels(
  raw: np.ndarray,
  *,
  num_classes: int,
  label_mapping: Mapping[int, int] | None,
  ignore_value: int | None,
  other: int | None = None,
  name: str,
) -> np.ndarray:
  """Maps stored label values to uint8 class indices; `ignore_value` becomes IGNORED.

  Args:
    raw: [Y, X] whole numbers.
    num_classes: without a mapping, the values 0 to num_classes - 1 are the classes.
    label_mapping: value -> class.
    ignore_value: value that is not scored.
    other: class of all values that are neither mapped nor ignored; None: they are an error.
    name: of the label, for the message.

  Raises:
    DataError: the label is RGB, is not integer-valued, or has a value that is not allowed.
  """
  raw = _whole_numbers(raw, name)
  mapping = dict(label_mapping) if label_mapping else {i: i for i in range(num_classes)}
  if ignore_value is not None:
    mapping[ignore_value] = IGNORED
  if raw.dtype.itemsize == 1:  # by far the most common, and quick
    table = np.full(256, -1, np.int16)
    for value, index in mapping.items():
      if np.iinfo(raw.dtype).min <= value <= np.iinfo(raw.dtype).max:
        table[np.asarray(value).astype(raw.dtype).view(np.uint8)] = index
    if other is not None:
      table[table < 0] = other
    mapped = table[raw.view(np.uint8)]
    if mapped.min(initial=0) >= 0:
      return mapped.astype(np.uint8)
  values = np.unique(raw)
  unknown = [int(v) for v in values if int(v) not in mapping]
  if unknown and other is None:
    shown = ', '.join(str(v) for v in unknown[:5]) + (', ...' if len(unknown) > 5 else '')
    hint = ''
    if set(values.tolist()) in ({255}, {0, 255}) and not label_mapping and num_classes == 2:
      hint = '; for a 0/255 mask set data.label_mapping to {"0": 0, "255": 1}'
    raise DataError(
      f'{name}: label value {shown} is not in data.label_mapping (allowed: {sorted(mapping)}){hint}'
    )
  table_values = np.array([mapping.get(int(v), other) for v in values], np.uint8)
  return table_values[np.searchsorted(values, raw)]


def _whole_numbers(raw: np.ndarray, name: str) -> np.ndarray:
  if raw.ndim != 2:
    raise DataError(
      f'{name}: the label has {raw.shape[-1]} colour channels; allowed: one grey value per class, '
      'or a legend in data.labels.colours'
    )
  if raw.dtype == np.bool_:
    return raw.astype(np.uint8)
  if not np.issubdtype(raw.dtype, np.integer):
    if not np.array_equal(raw, np.round(raw)):
      raise DataError(f'{name}: the label has fractional values; allowed: whole numbers')
    return raw.astype(np.int64)
  return raw


def decode_colours(raw: np.ndarray, legend: Mapping[str, int], *, name: str) -> np.ndarray:
  """Colours to the values of a legend.

  Args:
    raw: uint8 [Y, X, 3].
    legend: '#rrggbb' -> value.
    name: of the label, for the message.

  Returns:
    int64 [Y, X].

  Raises:
    DataError: the label is not 8-bit RGB, or has a colour that is not in the legend.
  """
  if raw.ndim != 3 or raw.dtype != np.uint8:
    raise DataError(
      f'{name}: is {raw.dtype} {"grey" if raw.ndim == 2 else "RGB"}, but data.labels.colours is a '
      'legend of 8-bit RGB labels'
    )
  packed = raw.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
  known = {int(colour[1:], 16): value for colour, value in legend.items()}
  colours, where = np.unique(packed, return_inverse=True)
  unknown = [f'#{c:06x}' for c in colours.tolist() if c not in known]
  if unknown:
    shown = ', '.join(unknown[:5]) + (', ...' if len(unknown) > 5 else '')
    raise DataError(
      f'{name}: {shown} is not in data.labels.colours (allowed: {", ".join(legend)}); blended '
      'colours come from smoothing or JPEG'
    )
  return np.array([known[c] for c in colours.tolist()])[where].reshape(packed.shape)


def part_instances(raw: np.ndarray, *, width: int, name: str) -> np.ndarray:
  """Instance ids to outside (0), inside (1) and boundary (2).

  The boundary are the pixels of an instance that have another value, be it another instance or 0,
  within `width` pixels along y, x or both. Pixels beyond the border of the image are like the
  nearest one inside, so that instances cut by it stay open.

  Args:
    raw: [Y, X] whole numbers, 0 outside all instances.
    width: of the boundary inside of each instance, pixels.
    name: of the label, for the message.

  Raises:
    DataError: the label is not made of whole numbers.
  """
  from scipy import ndimage

  raw = _whole_numbers(raw, name)
  values, ranks = np.unique(raw, return_inverse=True)
  ranks = ranks.reshape(raw.shape).astype(np.int32)  # ids may have 64 bits
  size = 2 * width + 1
  differs = ndimage.maximum_filter(ranks, size, mode='nearest') != ndimage.minimum_filter(
    ranks, size, mode='nearest'
  )
  return np.where(values[ranks] == 0, OUTSIDE, np.where(differs, BOUNDARY, INSIDE)).astype(np.uint8)


def instance_ids(raw: np.ndarray, *, ignore_value: int | None, name: str) -> np.ndarray:
  """Instance ids as they are stored, int32 or int64 [Y, X]; `ignore_value` becomes NO_ID.

  Args:
    raw: [Y, X] whole numbers, 0 in the background.
    ignore_value: value that is not scored.
    name: of the label, for the message.

  Raises:
    DataError: the label is RGB, or has fractional or negative values, or ids of 64 bits.
  """
  raw = _whole_numbers(raw, name)
  if raw.dtype == np.uint64 and raw.max(initial=0) > np.iinfo(np.int64).max:
    raise DataError(f'{name}: instance id {raw.max()} is too large; allowed: 0 to 2^63 - 1')
  ids = raw.astype(np.int32 if raw.dtype.itemsize <= 2 else np.int64)
  if ignore_value is not None:
    ids[raw == ignore_value] = NO_ID
  if ids.min(initial=0) < 0 and (wrong := ids[(ids < 0) & (raw != ignore_value)]).size:
    raise DataError(
      f'{name}: instance id {wrong[0]} is negative; allowed: 0 for the background, and more'
    )
  return ids


def renumbered(ids: np.ndarray) -> np.ndarray:
  """Ids as small numbers, int32: 0 and NO_ID stay, others become 1 to n in their order."""
  values, ranks = np.unique(ids, return_inverse=True)
  first = np.searchsorted(values, 1)  # of the objects
  numbers = np.concatenate([values[:first], np.arange(1, len(values) - first + 1)])
  return numbers.astype(np.int32)[ranks].reshape(ids.shape)


def ignored(label: np.ndarray) -> np.ndarray:
  """Where class indices, or ids, are not to be scored."""
  return label == (IGNORED if label.dtype == np.uint8 else NO_ID)


def foreground(label: np.ndarray) -> np.ndarray:
  """Where there is a class but the first, or an object."""
  return (label > 0) & (label != IGNORED) if label.dtype == np.uint8 else label > 0


def hide(label: np.ndarray, kept: np.ndarray) -> np.ndarray:
  """Class indices, or ids, not to be scored except where `kept` is True."""
  return np.where(kept, label, label.dtype.type(IGNORED if label.dtype == np.uint8 else NO_ID))
