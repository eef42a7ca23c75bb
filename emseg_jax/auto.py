"""A complete configuration for a folder of images and labels: `--config=auto:FOLDER`.

Recognised by name, at most two folders deep: {images, labels}; {train, val, test} with them inside,
or they with these inside; two volumes such as train-volume.tif and train-labels.tif, raw.zarr and
labels.h5. Only headers and up to 64 labels are read; `check` reads everything.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from emseg_jax import config as config_lib
from emseg_jax.check import MOST_CLASSES
from emseg_jax.check.survey import count_labels, open_sections
from emseg_jax.config import Config, Source
from emseg_jax.data import pairs, recognise, volumes
from emseg_jax.errors import ConfigError, DataError

__all__ = ['explain', 'suggest']

IMAGE_WORDS = {'images', 'image', 'imgs', 'img', 'raw', 'volume', 'em', 'x'}
LABEL_WORDS = {'labels', 'label', 'masks', 'mask', 'gt', 'groundtruth', 'truth', 'seg', 'y'} | {
  'segmentation',
  'annotations',
  'instances',
}
SPLIT_WORDS = {
  'train': 'train',
  'training': 'train',
  'val': 'validation',
  'valid': 'validation',
  'validation': 'validation',
  'test': 'test',
  'testing': 'test',
}
SPLITS = ('train', 'validation', 'test')
STORES = ('.zarr', '.n5')  # folders that are one volume
UNLABELLED = {'unlabelled', 'unlabeled'}
DEPTH = 2  # folders below the given one that are looked into
HELD_OUT = 0.2  # share of the sections that validate where no folder says so
MOST_LABELS_READ = 64
PATCHES = (128, 64)  # what a CPU still trains in reasonable time


@dataclasses.dataclass(frozen=True)
class _Candidate:
  path: Path
  split: str | None
  is_label: bool


def suggest(folder: str | Path) -> Config:
  """Looks at a folder and proposes how to train on it.

  Raises:
    ConfigError: the folder is missing, its layout is not recognised or ambiguous, there is a single
      section, or the label values are no classes.
    DataError: none of the images or labels can be read.
  """
  root = Path(folder).expanduser()  # no shell does it behind "auto:"
  if not root.is_dir():
    raise ConfigError(f'auto:{folder}: is not a folder; name the one that holds images and labels')
  sources = _find_sources(root)
  sections = {split: _open(source) for split, source in sources.items()}
  everything = [section for group in sections.values() for section in group]
  values = _read_label_values(everything, root)
  if 'validation' not in sources:
    sources['train'], sources['validation'], sections['train'] = _hold_out(
      sources['train'], sections['train'], root
    )
  consecutive = values == list(range(len(values)))
  two = len(values) == 2
  classes = ('background', 'foreground') if two else tuple(f'class_{v}' for v in values)
  side = min(min(section.shape) for section in sections['train'])
  patch = next((p for p in PATCHES if 2 * p <= side), PATCHES[-1])
  return Config(
    task=config_lib.Task(classes=classes),
    data=config_lib.Data(
      train=(sources['train'],),
      validation=(sources['validation'],),
      test=(sources['test'],) if 'test' in sources else (),
      label_mapping=None if consecutive else {v: i for i, v in enumerate(values)},
      normalisation=_choose_normalisation(everything),
      patch=(patch, patch),
    ),
    augment=config_lib.Augment(
      resize=(0.8, 1.25), brightness=0.2, contrast=0.2, gamma=0.3, noise=0.1
    ),
    model=config_lib.Model(name='unet', options={'width': 0.375, 'norm': 'batch'}),
    optim=config_lib.Optim(optimizer='adamw', learning_rate=1e-3, weight_decay=1e-4),
    train=config_lib.Train(steps=2000, batch_size=8, eval_every=250, checkpoint_every=250),
  )


def _find_sources(root: Path) -> dict[str, Source]:
  try:
    found = list(_list_candidates(root, root, DEPTH))
  except OSError as error:
    raise ConfigError(f'auto:{root}: cannot be listed: {error}') from error
  groups = {s: [c for c in found if c.split == s] for s in (None, *SPLITS)}
  if not _complete(groups['train']):
    groups['train'] = groups[None] if _complete(groups[None]) else groups['train'] + groups[None]
  if not _complete(groups['train']):
    raise ConfigError(_describe_missing(root, groups['train']))
  return {s: _choose(root, s, groups[s]) for s in SPLITS if _complete(groups[s])}


def _list_candidates(folder: Path, root: Path, depth: int) -> Iterator[_Candidate]:
  for entry in sorted(folder.iterdir()):
    if entry.name.startswith('.'):
      continue
    name = entry.relative_to(root) if entry.is_dir() else entry.relative_to(root).with_suffix('')
    words = re.findall('[a-z]+', str(name).lower())
    split = next((SPLIT_WORDS[w] for w in words if w in SPLIT_WORDS), None)
    is_label = not LABEL_WORDS.isdisjoint(words)
    named = is_label or not IMAGE_WORDS.isdisjoint(words)
    files = _list_images(entry)
    if files and named and UNLABELLED.isdisjoint(words):
      yield _Candidate(entry if len(files) > 1 else files[0], split, is_label)
    elif entry.is_dir() and depth > 1:
      yield from _list_candidates(entry, root, depth - 1)


def _list_images(path: Path) -> list[Path]:
  """The images in a folder, or the volume that the path is."""
  if not path.is_dir():
    return [path] if recognise.suffix(str(path)) in recognise.FORMATS else []
  if path.suffix.lower() in STORES:
    return [path]
  files = (f for f in sorted(path.iterdir()) if not f.name.startswith('.'))
  return [f for f in files if f.suffix.lower() in volumes.OPENERS]


def _complete(group: Sequence[_Candidate]) -> bool:
  return {c.is_label for c in group} == {True, False}


def _choose(root: Path, split: str, group: Sequence[_Candidate]) -> Source:
  images = [str(c.path) for c in group if not c.is_label]
  labels = [str(c.path) for c in group if c.is_label]
  for what, paths in (('images', images), ('labels', labels)):
    if len(paths) > 1:
      raise ConfigError(
        f'auto:{root}: {_shorten(paths)} could all be the {what} of {split}; '
        f'{_by_hand(images[0], labels[0])}'
      )
  return Source(images=images[0], labels=labels[0])


def _describe_missing(root: Path, group: Sequence[_Candidate]) -> str:
  images = [str(c.path) for c in group if not c.is_label]
  labels = [str(c.path) for c in group if c.is_label]
  missing, words = ('labels', LABEL_WORDS) if images else ('images', IMAGE_WORDS)
  there = [e.name for e in sorted(root.iterdir()) if not e.name.startswith('.')]
  by_hand = _by_hand((images or [f'{root}/IMAGES'])[0], (labels or [f'{root}/LABELS'])[0])
  return (
    f'auto:{root}: finds no {missing} for training; it looks for a folder or volume (readable: '
    f'{recognise.READABLE}) with one of these words in its name: {", ".join(sorted(words))}; there '
    f'are {_shorten(there) or "no files"}; rename, or {by_hand}'
  )


def _by_hand(images: str, labels: str) -> str:
  source = {'images': images, 'labels': labels}
  data = {
    'train': [{**source, 'slices': ':-4'}],
    'validation': [{**source, 'slices': '-4:'}],
  }
  return f'say which: write {json.dumps({"data": data})} to my.json and give --config=my.json'


def _shorten(names: Sequence[str], limit: int = 8) -> str:
  rest = f' and {len(names) - limit} more' if len(names) > limit else ''
  return ', '.join(names[:limit]) + rest


def _open(source: Source) -> list[pairs.Section]:
  """What can be opened; `check` reports the rest."""
  sections, findings = open_sections(source)
  if not sections:
    raise DataError(findings[0][1])
  return sections


def _read_label_values(sections: Sequence[pairs.Section], root: Path) -> list[int]:
  """The label values of at most 64 sections, rising; `check` reports labels that are unreadable."""
  labelled = [s for s in sections if s.label_volume]
  if not labelled:
    raise ConfigError(f'auto:{root}: no image has a label of its name and size; see --mode=check')
  values: set[int] = set()
  error: DataError | None = None
  for index in np.unique(np.linspace(0, len(labelled) - 1, MOST_LABELS_READ).astype(int)):
    try:
      values |= count_labels(labelled[index]).keys()
    except DataError as refused:
      error = error or refused
  if not values:
    raise error
  path = labelled[0].label_volume.path
  if len(values) > MOST_CLASSES:
    raise ConfigError(
      f'{path}: has {len(values)} label values from {min(values)} to {max(values)}; up to '
      f'{MOST_CLASSES} are taken for classes, so many look like instance ids or an anti-aliased '
      'mask: save class numbers instead; for instances start from --config=affinities'
    )
  if len(values) == 1:
    raise ConfigError(f'{path}: all labels are {min(values)}; at least two classes are needed')
  return sorted(values)


def _hold_out(
  source: Source, sections: Sequence[pairs.Section], root: Path
) -> tuple[Source, Source, list[pairs.Section]]:
  """Training source, validation source, and the sections left for training."""
  if len(sections) < 2:
    raise ConfigError(
      f'auto:{root}: there is a single section, but two are needed: one to train, one to validate; '
      'add a validation folder, or cut the image in two'
    )
  left = len(sections) - max(1, round(HELD_OUT * len(sections)))
  parts = (source.model_copy(update={'slices': s}) for s in (f':{left}', f'{left}:'))
  return *parts, list(sections[:left])


def _choose_normalisation(sections: Sequence[pairs.Section]) -> Literal['dataset', 'per_volume']:
  dtypes = {s.image_volume.dtype for s in sections}
  stacks = {s.image_volume.path for s in sections if s.image_volume.kind == 'stack'}
  return 'per_volume' if len(dtypes) > 1 or len(stacks) > 1 else 'dataset'


def explain(config: Config) -> str:
  """What was found, in sentences, then the fields that differ from the defaults as JSON.

  The JSON, saved to a file, is a configuration.
  """
  data, names = config.data, config.task.values
  lines = [_explain_source(split, s) for split in SPLITS for s in getattr(data, split)]
  if {s.images for s in data.train} & {s.images for s in data.validation}:
    lines.append('There is no validation folder: the last sections validate.')
  mapping = data.label_mapping or dict(enumerate(range(len(names))))
  lines.append(f'Label values: {", ".join(f"{v} is {names[i]}" for v, i in mapping.items())}.')
  values = sorted(mapping)
  if len(values) > 2 and values == [*range(len(values) - 1), 255]:
    lines.append(
      'If 255 marks pixels that are not to be scored, set task.ignore_value=255 and take it out of '
      'task.classes and data.label_mapping.'
    )
  unused = _list_unused(config)
  if unused:
    lines.append(f'Not used: {_shorten(unused)}.')
  lines.append(
    f'Patches of {" x ".join(map(str, data.patch))} voxels, {config.train.steps} steps of '
    f'{config.model.name}. Any field can be changed: --config.SECTION.FIELD=VALUE. This, saved as '
    'FILE.json, is the configuration:'
  )
  text = json.dumps(config.model_dump(mode='json', exclude_defaults=True), indent=2)
  text = re.sub(r'\[\n\s+([^][{}]*?)\n\s+\]', _on_one_line, text)
  return '\n'.join([*lines, text])


def _on_one_line(match: re.Match) -> str:
  return '[' + re.sub(r'\n\s+', ' ', match[1]) + ']'


def _explain_source(split: str, source: Source) -> str:
  if source.phantom:
    return f'{split}: {source.phantom.count} synthetic sections.'
  count = len(open_sections(source)[0])
  sections = '1 section' if count == 1 else f'{count} sections'
  return f'{split}: {sections} of {source.images} with the labels {source.labels}.'


def _list_unused(config: Config) -> list[str]:
  """Folders and stacks with images beside those of the training source."""
  sources = [s for split in SPLITS for s in getattr(config.data, split) if s.images]
  used = {Path(p) for s in sources for p in (s.images, s.labels) if p}
  folders = {path.parent for path in used if path.parent.is_dir()}
  beside = sorted({sibling for folder in folders for sibling in folder.iterdir()} - used)
  return [str(p) for p in beside if _list_images(p) and not any(p in u.parents for u in used)]
