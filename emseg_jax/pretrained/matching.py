"""Puts the tensors of a file into the arrays of an encoder, and says what became of each."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from emseg_jax.errors import ConfigError, DataError
from emseg_jax.models.backbones import vit
from emseg_jax.pretrained import names
from emseg_jax.pretrained.names import Entry, Kind, Layout

__all__ = ['Row', 'Status', 'export', 'format_table', 'match']

Shape = tuple[int, ...]
Status = Literal['loaded', 'adapted', 'fresh', 'unused']

# Axes of the file's tensor in our order, and the reverse.
_TO_OURS: Mapping[Kind, Shape] = {'conv': (2, 3, 1, 0), 'dense': (1, 0)}
_TO_SOURCE: Mapping[Kind, Shape] = {'conv': (3, 2, 0, 1), 'dense': (1, 0)}
# What makes an encoder of ours another one of the same family.
_OPTIONS = {
  'ResNet-50 with a 7x7 stem': 'set model.options.stem=v1',
  'ResNet-50 with a V1c stem': 'set model.options.stem=v1c',
  'VGG-16': 'set model.options.depth=16 (vgg_unet) or norm=none (fcn8s)',
  'VGG-19': 'set model.options.depth=19 (vgg_unet)',
  'VGG-16 with batch norm': 'set model.options.norm=batch (fcn8s)',
}


class Row(NamedTuple):
  """What became of a tensor of the file, of an array of ours, or of a whole module.

  Attributes:
    source: name in the file; empty for what is not in it.
    target: path of our array, 'params/backbone/...'; empty for what is not used.
    shape: of our array, or of the unused tensor; empty for a module.
    status: 'fresh' keeps its random start.
    note: what was done, or why it is unused.
    tensors: how many this row stands for.
    values: numbers in them.
  """

  source: str
  target: str
  shape: Shape
  status: Status
  note: str
  tensors: int
  values: int


def match(
  source: Mapping[str, np.ndarray], ours: Mapping[str, Shape], *, file: str, prefix: str
) -> tuple[dict[str, np.ndarray], list[Row]]:
  """Finds and converts a tensor of the file for every array of the encoder.

  Args:
    source: the tensors of the file.
    ours: shapes of the encoder's arrays, by path below the encoder: 'params/...'.
    file: its name, for messages.
    prefix: name of the encoder, for messages and the rows.

  Returns:
    The arrays in float32, by path, and the rows of the table.

  Raises:
    ConfigError: the file is of another kind of network than the encoder, or of another size.
    DataError: the file's kind is not known, or it has too few or too many tensors.
  """
  layout, before = _recognise(source, file)
  _check_kind(layout, ours, file)
  inside = {k.removeprefix(before): v for k, v in source.items() if k.startswith(before)}
  _check_vit(layout, inside, file)
  entries = names.table(layout, {path: len(shape) for path, shape in ours.items()})
  _check_names(entries, inside, ours, file)
  arrays, rows = {}, []
  for entry in entries:
    collection, _, below = entry.path.partition('/')
    target, tensor, shape = f'{collection}/{prefix}/{below}', inside[entry.source], ours[entry.path]
    value, note = _convert(entry, tensor, ours, layout)
    if value is None or value.shape != shape:
      raise ConfigError(
        f'{file}: the tensor {entry.source} {list(tensor.shape)} does not fit {target} '
        f'{list(shape)}; {_misfit(entry, value, shape, layout)}'
      )
    if not np.isfinite(value).all():
      raise DataError(f'{file}: the tensor {entry.source} has values that are not finite numbers')
    arrays[entry.path] = np.ascontiguousarray(value, np.float32)
    status = 'adapted' if note else 'loaded'
    rows.append(Row(before + entry.source, target, shape, status, note, 1, value.size))
  used = {before + entry.source for entry in entries}
  unused = []
  for name in sorted(source.keys() - used):
    note = names.explanation(name.removeprefix(before)) or f'outside {before.removesuffix(".")}'
    unused.append(Row(name, '', source[name].shape, 'unused', note, 1, source[name].size))
  return arrays, rows + sorted(unused, key=lambda row: row.note)


def export(arrays: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
  """The tensors of a file of this layout, from the encoder's arrays by path."""
  tensors: dict[str, np.ndarray] = {}
  for entry in names.table(layout, {path: np.ndim(array) for path, array in arrays.items()}):
    value = np.asarray(arrays[entry.path], np.float32)
    if layout.keras and entry.path == f'params/{layout.first}':
      value = value[:, :, ::-1]
    if entry.kind in _TO_SOURCE:
      value = value.transpose(_TO_SOURCE[entry.kind])
    elif entry.kind == 'grid':
      value = value.reshape(1, -1, value.shape[-1])
    if entry.source in tensors:  # the class token's position goes before the grid
      value = np.concatenate([tensors[entry.source], value], 1)
    tensors[entry.source] = np.ascontiguousarray(value)
  return tensors


def _recognise(source: Mapping[str, np.ndarray], file: str) -> tuple[Layout, str]:
  found = names.recognise(source)
  if found is None:
    first = ', '.join(f'{name} {list(source[name].shape)}' for name in sorted(source)[:3])
    raise DataError(
      f'{file}: holds no network that is known here (its first tensors: {first or "none"}); '
      f'supported are {", ".join(names.LAYOUTS)}'
    )
  key, prefix = found
  return names.LAYOUTS[key], prefix


def _check_kind(layout: Layout, ours: Mapping[str, Shape], file: str) -> None:
  kind = names.encoder_kind(ours)
  if kind == layout.encoder:
    return
  other = f'take a file of a {kind}'
  if kind[:3] == layout.encoder[:3] and layout.encoder in _OPTIONS:  # of one family
    other = f'{_OPTIONS[layout.encoder]}, or {other}'
  raise ConfigError(
    f"{file}: is of a {layout.encoder}, but the network's encoder is a {kind}; {other}"
  )


def _check_names(
  entries: list[Entry], inside: Mapping[str, np.ndarray], ours: Mapping[str, Shape], file: str
) -> None:
  """Raises if the file lacks a tensor or has one that changes what the network computes."""
  if 'layer1.0.downsample.2.weight' in inside:
    raise ConfigError(
      f'{file}: is a ResNet V1d, whose shortcuts average (layer1.0.downsample.2.weight), but '
      'those of the network do not; take a file without the d, as resnet50 or resnet50c of timm'
    )
  for entry in entries:
    if entry.source not in inside:
      raise DataError(
        f'{file}: lacks the tensor {entry.source} for {entry.path} {list(ours[entry.path])} of '
        'the encoder; take a file of the whole network, of the same depth and variant'
      )
  known = {entry.source for entry in entries}
  for name, tensor in inside.items():
    if name not in known and names.explanation(name) is None:
      raise DataError(
        f'{file}: has the tensor {name} {list(tensor.shape)}, for which the encoder has no '
        'place; take a file of the same depth (model.options.depth where the network has it) and '
        'variant'
      )


def _check_vit(layout: Layout, inside: Mapping[str, np.ndarray], file: str) -> None:
  """The number of heads is in no tensor: by convention it is the channels by 64."""
  channels = vit.HEADS * vit.HEAD_CHANNELS
  if layout.encoder == 'ViT' and inside[layout.marks[0]].shape[0] != channels:
    raise ConfigError(
      f'{file}: is a ViT of {inside[layout.marks[0]].shape[0]} channels, and the networks have '
      f'{vit.HEADS} heads of {vit.HEAD_CHANNELS} channels; take a file of ViT-B/16, as '
      'vit_base_patch16_224 of timm'
    )


def _convert(
  entry: Entry, tensor: np.ndarray, ours: Mapping[str, Shape], layout: Layout
) -> tuple[np.ndarray | None, str]:
  """(our array, what was changed besides the order of axes); None if the tensor cannot fit."""
  value, shape = np.asarray(tensor, np.float32), ours[entry.path]
  if entry.kind in ('class position', 'grid'):
    return _positions(value, entry.kind, shape, 'params/cls_pos' in ours)
  axes = _TO_OURS.get(entry.kind, tuple(range(len(shape))))
  if value.ndim != len(axes):
    return None, ''
  value = value.transpose(axes)
  if entry.path == f'params/{layout.first}' and value.shape[2] == 3:
    if shape[2] == 1:
      return value.sum(2, keepdims=True), 'RGB summed to grey'
    if layout.keras:
      return value[:, :, ::-1], 'BGR turned to RGB'
  return value, ''


def _positions(
  value: np.ndarray, kind: Kind, shape: Shape, class_token: bool
) -> tuple[np.ndarray | None, str]:
  """Splits a table of positions [1, (1 +) side², C] and fits the grid to ours."""
  if value.ndim != 3:
    return None, ''
  side = math.isqrt(value.shape[1])
  extra = value.shape[1] - side * side  # 1 where the first position is a class token's
  if extra > 1 or (kind == 'class position' and not extra):
    return None, ''
  if kind == 'class position':
    return value[:, :1], ''
  notes = ['class position left out'] if extra and not class_token else []
  grid = value[:, extra:].reshape(1, side, side, -1)
  if grid.shape[1:3] != shape[1:3]:
    notes.append(f'position grid {side}x{side} -> {shape[1]}x{shape[2]}')
    grid = np.asarray(vit.resize_positions(grid, shape[1:3]))
  return grid, ', '.join(notes)


def _misfit(entry: Entry, value: np.ndarray | None, shape: Shape, layout: Layout) -> str:
  """What to do about a tensor that does not fit."""
  if entry.kind in ('class position', 'grid') and value is None:
    return 'its positions have to be a square grid, with one more only for a class token'
  if value is not None and entry.path == f'params/{layout.first}':
    *kernel, channels, features = value.shape
    if (*kernel, features) == (*shape[:2], shape[3]):
      return f'set data.channels={channels}, or take a file of a network that sees {shape[2]}'
  return 'pretrained weights need model.options.width=1 and an encoder of the same size'


def format_table(rows: Sequence[Row]) -> str:
  """The rows as aligned lines, those of one module with one fate as one, and the totals."""
  lines = [('from', 'to', 'shape', 'status')]
  for _, group in itertools.groupby(rows, _fate):
    lines.append(_line(list(group)))
  widths = [max(len(line[i]) for line in lines) for i in range(4)]
  text = ['  '.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines]
  for status in get_args(Status):
    chosen = [row for row in rows if row.status == status]
    tensors, values = (sum(getattr(row, name) for row in chosen) for name in ('tensors', 'values'))
    text.append(f'{status:8} {_count(tensors)} of {values:,} values')
  return '\n'.join(line.rstrip() for line in text)


def _fate(row: Row) -> tuple[str, ...]:
  """What rows of one line have in common: status, note, and our module or that of the file."""
  if row.status == 'fresh':
    return row.status, row.target
  if row.status == 'unused':
    return row.status, row.note
  return row.status, row.note, *row.target.split('/')[1:3]


def _line(group: list[Row]) -> tuple[str, str, str, str]:
  row = group[0]
  status = f'{row.status}: {row.note}' if row.note else row.status
  tensors = sum(r.tensors for r in group)
  if len(group) == 1 and row.shape:
    return row.source, row.target.partition('/')[2], 'x'.join(map(str, row.shape)), status
  target = '/'.join(row.target.split('/')[1:3])
  return _common([r.source for r in group]), target, _count(tensors), status


def _count(tensors: int) -> str:
  return f'{tensors} tensor{"s" * (tensors != 1)}'


def _common(sources: list[str]) -> str:
  """'layer1.0.*' for the names that begin so, 'first ...' for those with nothing in common."""
  if len(sources) == 1:
    return sources[0]
  columns = zip(*(re.split(r'(?<=[./])', source) for source in sources), strict=False)
  shared = ''.join(c[0] for c in itertools.takewhile(lambda c: len(set(c)) == 1, columns))
  return f'{shared}*' if shared else f'{sources[0]} ...'
