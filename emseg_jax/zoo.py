"""The table of all networks: what each is, how large, and what its paper says.

Counted by tracing, nothing is computed: the whole table takes well under a minute.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from emseg_jax import flops, models

__all__ = ['ENTRIES', 'Entry', 'Row', 'describe', 'format_markdown', 'format_text', 'rows']

SIZES = {2: (512, 512), 3: (40, 136, 136)}
HEADER = (
  'name',
  'options',
  'source',
  'dims',
  'input',
  'classes',
  'parameters',
  'published',
  'GFLOPs',
  'receptive field',
  'divisor',
)


class Entry(NamedTuple):
  """One line of the table: a network under the conditions of a paper's count.

  Attributes:
    name: key of `models.MODELS`.
    source: where the network was published.
    channels: of the input.
    classes: channels of the logits.
    published: number of parameters as printed, with the paper that prints it; '' if none does.
    options: of the network.
  """

  name: str
  source: str
  channels: int
  classes: int
  published: str = ''
  options: Mapping[str, Any] = {}


ENTRIES = (
  Entry('pmcanet', 'PmcaNet', 3, 2, '32.79 M'),
  Entry('vgg_unet', 'VGG-UNet on EPFL', 3, 1),
  Entry('seget', 'SegET', 1, 1),
  Entry('emnet_hvec', 'EM-Net (HVEC)', 1, 2, '3.2 M'),
  Entry('emnet_hvec', 'EM-Net (HVEC), single task', 1, 2, '', {'centreline': False}),
  Entry('rescrnet', 'Res-CR-Net', 1, 3),
  Entry('deeplabv3plus', 'Chen et al. 2018', 3, 2, '43.58 M (PmcaNet)'),
  Entry('deeplabv3plus_vgg', 'Chen et al. 2018, as in SegET', 1, 1),
  Entry('emnet_khadangi', 'Khadangi et al. 2021', 1, 1, '39.06 M (PmcaNet)'),
  Entry('segmenter', 'Strudel et al. 2021', 3, 150, '102.50 M (PmcaNet)'),
  Entry('segvit', 'Zhang et al. 2022', 3, 2, '96.75 M (PmcaNet)'),
  Entry('pidnet', 'Xu et al. 2023', 3, 2, '11.65 M (PmcaNet)'),
  Entry('fcn8s', 'Long et al. 2015', 3, 1),
  Entry('segnet', 'Badrinarayanan et al. 2017', 3, 2),
  Entry('unet', 'Ronneberger et al. 2015', 1, 2, '31 M (EM-Net)'),
  Entry('unet3d', 'Çiçek et al. 2016', 3, 3, '19 M (EM-Net)'),
  Entry('cheng2d', 'Cheng and Varshney 2017', 1, 2),
  Entry('cheng3d', 'Cheng and Varshney 2017', 1, 2),
  Entry('xiao3d', 'Xiao et al. 2018', 1, 2),
  Entry('casser_unet', 'Casser et al. 2020', 1, 1),
  Entry('resunet', 'Zhang et al. 2018, as in Res-CR-Net', 3, 1),
)


@dataclasses.dataclass(frozen=True)
class Row:
  """One network, counted.

  Attributes:
    entry: what was counted.
    size: spatial size of the input.
    parameters: trainable scalars, auxiliary heads included.
    statistics: scalars of running statistics.
    gflops: 10^9 operations of one forward pass in evaluation, of one image or volume.
    receptive_field: per axis, None where it is the whole input.
    divisor: per axis.
  """

  entry: Entry
  size: tuple[int, ...]
  parameters: int
  statistics: int
  gflops: float
  receptive_field: tuple[int, ...] | None
  divisor: tuple[int, ...]

  def to_json(self) -> dict[str, Any]:
    counted = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    return {**counted.pop('entry')._asdict(), **counted}


def describe(entry: Entry, *, size: Sequence[int] | None = None) -> Row:
  """Counts one network.

  Args:
    entry: which, and for how many channels and classes.
    size: spatial size of the input; None: 512² or 40 x 136 x 136.

  Raises:
    ValueError: see `models.create_model`.
  """
  model = models.create_model(entry.name, entry.classes, **entry.options)
  size = tuple(size or SIZES[len(model.divisor)])
  image = jax.ShapeDtypeStruct((1, *size, entry.channels), jnp.float32)
  variables = _variables(model, image)
  operations = flops.count(lambda v, x: model.apply(v, x, train=False), variables, image)

  def total(collection: str) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables.get(collection, {})))

  return Row(
    entry=entry,
    size=size,
    parameters=total('params'),
    statistics=total('batch_stats'),
    gflops=operations / 1e9,
    receptive_field=model.receptive_field,
    divisor=model.divisor,
  )


def _variables(model: nn.Module, image: jax.ShapeDtypeStruct) -> dict[str, Any]:
  keys = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
  return jax.eval_shape(lambda x: model.init(keys, x, train=False), image)


def rows(entries: Iterable[Entry] = ENTRIES) -> list[Row]:
  """Counts all networks."""
  return [describe(entry) for entry in entries]


def format_text(table: Iterable[Row]) -> str:
  """Columns for a terminal."""
  lines = [HEADER, *map(_cells, table)]
  widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
  padded = ['  '.join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
  return '\n'.join(line.rstrip() for line in padded)


def format_markdown(table: Iterable[Row]) -> str:
  """A table for a Markdown file, with a line on how to read it."""
  lines = [HEADER, ('---',) * len(HEADER), *map(_cells, table)]
  note = (
    'Written by `python -m emseg_jax.main --mode=models --output=docs/models.md`. Parameters are '
    'the trainable ones, auxiliary heads included; "+" counts running statistics. GFLOPs are 10⁹ '
    'operations (a multiplication and an addition are two) of one forward pass without auxiliary '
    'heads.'
  )
  body = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
  return f'# The networks\n\n{note}\n\n{body}\n'


def _cells(row: Row) -> tuple[str, ...]:
  entry = row.entry
  statistics = f' + {row.statistics:,}' if row.statistics else ''
  return (
    entry.name,
    ', '.join(f'{name}={value}' for name, value in entry.options.items()) or '-',
    entry.source,
    f'{len(row.size)}D',
    f'{_product(row.size)} x {entry.channels}',
    str(entry.classes),
    f'{row.parameters:,}{statistics}',
    entry.published or '-',
    f'{row.gflops:,.1f}',
    _product(row.receptive_field) if row.receptive_field else 'whole input',
    _product(row.divisor),
  )


def _product(size: Sequence[int]) -> str:
  return ' x '.join(map(str, size))
