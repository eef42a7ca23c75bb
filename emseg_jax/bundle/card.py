"""The model card: a bundle's README.md, made from its model.json alone."""

from collections.abc import Mapping
from typing import Any

from emseg_jax import zoo
from emseg_jax.bundle import reduced
from emseg_jax.bundle.schema import Record

__all__ = ['model_card']


def model_card(record: Record) -> str:
  """Markdown for people who are given the folder."""
  network = record.network
  source = next((e.source for e in zoo.ENTRIES if e.name == network.name), network.name)
  parts = [
    f'# {record.title}',
    f'A `{network.name}` network ({source}; {network.parameters:,} parameters) that segments '
    f'electron-microscopy {"images" if len(record.input.axes) == 4 else "volumes"} into '
    f'{", ".join(record.classes)}. Trained with emseg_jax '
    f'{record.training.versions.get("emseg_jax", "")}, exported {record.created[:10]}.',
    f'Licence: {record.licence or "not stated; ask whoever gave you the model"}.',
    '## Use',
    _use(record),
    '## What it takes and gives',
    _input(record),
    _labels(record),
    '## How good it is',
    _scores(record),
    *_reduced(record),
    'Images of another tissue, preparation, microscope or voxel size may be segmented much worse: '
    'look at results before relying on them.',
    '## How it was trained',
    _training(record),
  ]
  return '\n\n'.join(parts) + '\n'


def _use(record: Record) -> str:
  text = (
    'With the package:\n\n'
    '```python\n'
    'import emseg_jax\n'
    'segmenter = emseg_jax.load("this/folder")\n'
    'labels = segmenter.predict(image)\n'
    '```'
  )
  if 'stablehlo' in record.forms:
    form = record.forms['stablehlo']
    text += (
      '\n\nWith JAX (and flatbuffers) alone, '
      f'on {", ".join(form["platforms"])}:\n\n'
      '```python\n'
      'import jax, jax.export, numpy as np\n'
      f'exported = jax.export.deserialize(open("{form["file"]}", "rb").read())\n'
      f'image = np.load("{record.sample.input}")  # float32 {_shape(record, "C")}\n'
      f'probabilities = jax.jit(exported.call)(image)  # float32 {_shape(record, "K")}\n'
      '```\n\n'
      f'{form["sizes"]}'
    )
  return text


def _shape(record: Record, last: str) -> str:
  sizes = [*record.input.axes[:-1], last]
  return f'[{", ".join(sizes)}]'


def _input(record: Record) -> str:
  given = record.input
  size = given.voxel_size_zyx
  known = 'not known' if size is None else ' x '.join('?' if n is None else f'{n:g}' for n in size)
  lines = [
    f'- Input of exported functions: float32 {_shape(record, "C")}, C = {given.channels}'
    + (f' ({given.planes} neighbouring sections)' if given.planes > 1 else ''),
    f'- Pixels: `{given.normalisation.dtype}` in training. '
    + ('As they are stored; the function computes ' if given.normalisation.inside else 'Given as ')
    + f'`{given.normalisation.formula}`',
    f'- Voxel size in training (z, y, x), nm: {known}',
    f'- Output: float32 {_shape(record, "K")}, K = {len(record.classes)}, '
    + (
      'a probability for each class by itself'
      if record.activation == 'multilabel'
      else 'for each offset whether a voxel and the one there belong to one object'
      if record.activation == 'affinities'
      else 'probabilities that add up to 1'
    ),
  ]
  field = record.network.receptive_field
  if field is None:
    lines.append('- A voxel of the output depends on the whole input.')
  else:
    lines.append(f'- A voxel of the output depends on {" x ".join(map(str, field))} voxels.')
  return '\n'.join(lines)


def _labels(record: Record) -> str:
  if record.activation == 'affinities':
    offsets = record.training.config['task']['offsets']
    named = zip(record.classes, offsets, strict=True)
    rows = [f'| {name} | {", ".join(map(str, offset))} |' for name, offset in named]
    return '\n'.join(['| affinity | offset, voxels |', '| --- | --- |', *rows])
  what = 'mask of classes' if record.activation == 'multilabel' else 'class'
  lines = [f'| label | {what} | value in files | colour |', '| --- | --- | --- | --- |']
  lines += [
    f'| {index} | {label.name} | {label.file_value} | {label.colour} |'
    for index, label in enumerate(record.labels)
  ]
  return '\n'.join(lines)


def _scores(record: Record) -> str:
  if not record.scores:
    return 'No evaluation was made.'
  return '\n\n'.join(_split(name, found['scores']) for name, found in record.scores.items())


def _split(name: str, scores: Mapping[str, Any]) -> str:
  """Whole-set scores, then a row per class."""
  totals = ', '.join(f'{key} {value:.4f}' for key, value in scores.items() if _is_number(value))
  per_class = scores.get('per_class', {})
  columns = list(next(iter(per_class.values()), {}))
  lines = [f'On the {name} images: {totals}.', '']
  lines += [f'| class | {" | ".join(columns)} |', '| --- |' + ' --- |' * len(columns)]
  for label, row in per_class.items():
    lines.append(f'| {label} | {" | ".join(_number(row[c]) for c in columns)} |')
  return '\n'.join(lines)


def _reduced(record: Record) -> list[str]:
  """Parameters in fewer bits: their files, sizes and scores; nothing if there are none."""
  forms = {name: record.forms[name] for name in reduced.KINDS if name in record.forms}
  if not forms:
    return []
  lines = [
    '| parameters | file | bytes | split | mIoU | mIoU of float32 |',
    '| --- |' + ' --- |' * 5,
  ]
  for name, form in forms.items():
    loss = form['loss']
    scores = [loss['split'], *map(_number, loss['miou'])] if loss else ['-', 'not measured', '-']
    lines.append(f'| {name} | `{form["file"]}` | {form["bytes"]:,} | {" | ".join(scores)} |')
  return [
    'The same parameters in fewer bits; both mIoU are of the same images and evaluation. '
    f'`emseg_jax.load("this/folder", params="{next(iter(forms))}")` uses them, and needs no other '
    'parameters in the folder.\n\n' + '\n'.join(lines)
  ]


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float)


def _number(value: Any) -> str:
  return f'{value:.4f}' if _is_number(value) else '-'


def _training(record: Record) -> str:
  training, data = record.training, record.training.config['data']
  lines = [f'- {training.step} steps, seed {training.config["train"]["seed"]}']
  for split in ('train', 'validation', 'test'):
    sources = [s['images'] or 'synthetic phantom' for s in data[split]]
    if sources:
      lines.append(f'- {split} images: {", ".join(f"`{source}`" for source in sources)}')
  versions = ', '.join(f'{name} {version}' for name, version in training.versions.items())
  lines += [
    f'- fingerprint of the training images: `{training.data}`',
    f'- {versions}',
    '- all options: `training.config` in `model.json`',
  ]
  return '\n'.join(lines)
