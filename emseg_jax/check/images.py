"""Judgements on images: contrast, types and ranges of intensities, size against the patch."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from emseg_jax.check.measure import Measured
from emseg_jax.check.problem import Problem, count
from emseg_jax.check.summary import SplitSummary
from emseg_jax.config import Config

__all__ = ['judge_contrast', 'judge_intensities', 'judge_patch', 'judge_signs']

Splits = Mapping[str, Sequence[Measured]]

FAINT = 0.2  # of the median std of a split: a section below is nearly blank
FEWEST = 4  # sections, for a median


def judge_contrast(splits: Splits) -> Iterator[Problem]:
  """Sections of one value, or with far less contrast than the others."""
  train = splits['train']
  if train and min(m.low for m in train) == max(m.high for m in train):
    message = f'{train[0].image_at}: all training pixels have the same value {train[0].low:g}'
    yield Problem('error', 'train', 'contrast', message, (('train', 0),))
  for name, read in splits.items():
    usual = float(np.median([m.std for m in read])) if len(read) >= FEWEST else 0.0
    for i, m in enumerate(read):
      if m.low == m.high:
        message = f'all pixels are {m.low:g}; leave the section out if it is empty'
      elif m.std < FAINT * usual:
        message = (
          f'is nearly blank: its std is {m.std:.3g}, the median of {name} is {usual:.3g}; leave '
          'the section out if nothing can be seen in it'
        )
      else:
        continue
      yield Problem('warning', name, 'contrast', f'{m.image_at}: {message}', ((name, i),))


def judge_signs(splits: Splits) -> Iterator[Problem]:
  """8-bit signed images: mostly unsigned ones that were mislabelled."""
  for name, read in splits.items():
    signed = [i for i, m in enumerate(read) if m.section.image_volume.dtype == np.int8]
    wrapped = [i for i in signed if read[i].wraps]
    negative = [i for i in signed if read[i].low < 0]
    if wrapped:
      message = (
        f'{read[wrapped[0]].image_at}: is signed 8-bit, and its values run on from 127 to -128, as '
        f'in {len(wrapped)} of {count(len(read), "section")}: unsigned values that are read as '
        'signed; save them as unsigned, or set reading.signed=false of an MRC source'
      )
      yield Problem('warning', name, 'sign', message, ((name, wrapped[0]),))
    elif negative:
      message = (
        f'{read[negative[0]].image_at}: is signed 8-bit, with values from '
        f'{read[negative[0]].low:g}; images to predict must be signed, too'
      )
      yield Problem('note', name, 'sign', message, ((name, negative[0]),))


def judge_patch(config: Config, train: Sequence[Measured]) -> Iterator[Problem]:
  """Training images, or volumes, that are smaller than the patch."""
  y, x = config.data.patch[-2:]
  filling = 'mirrored' if config.augment.fill == 'reflect' else 'padding of weight 0'
  advice = f'the rest of the patch is {filling}; a smaller data.patch wastes less'
  small = [i for i, m in enumerate(train) if m.section.shape[0] < y or m.section.shape[1] < x]
  if small:
    first = train[small[0]]
    size_y, size_x = first.section.shape
    message = (
      f'{first.image_at}: is {size_y} x {size_x} (y x), smaller than data.patch {y} x {x}, as are '
      f'{len(small)} of {len(train)} training images; {advice}'
    )
    yield Problem('warning', 'train', 'patch', message, (('train', small[0]),))
  if len(config.data.patch) == 3:
    for volume in {id(m.section.image_volume): m.section.image_volume for m in train}.values():
      z = config.data.patch[0]
      if len(volume) < z:
        message = (
          f'{volume.path}: has {count(len(volume), "section")}, fewer than data.patch has (z {z}); '
          f'{advice}'
        )
        yield Problem('warning', 'train', 'patch', message)


def judge_intensities(config: Config, summaries: Mapping[str, SplitSummary]) -> Iterator[Problem]:
  """Types and ranges that differ between splits, or hide that values are 8-bit."""
  kind = config.data.normalisation
  if len({dtype for s in summaries.values() for dtype in s.dtypes}) > 1:
    found = ', '.join(f'{name} {" and ".join(s.dtypes)}' for name, s in summaries.items())
    message = f'images differ in type: {found}; convert them to one type'
    yield Problem('warning', 'train', 'type', message)
  train = summaries.get('train')
  for name, summary in summaries.items():
    if 'uint16' in summary.dtypes and summary.high <= 255:
      message = f'16-bit images hold nothing above {summary.high:g}: 8-bit values in 16-bit files'
      severity = 'warning' if kind in ('scale', 'imagenet', 'caffe') else 'note'
      yield Problem(severity, name, 'range', f'{message}; save them as 8 bits')
    if train and abs(summary.mean - train.mean) > 2 * train.std:
      severity = 'note' if kind in ('per_volume', 'percentile') else 'warning'
      message = (
        f'mean intensity is {summary.mean:.4g}, but {train.mean:.4g} ± {train.std:.3g} (std) in '
        'train; are type and contrast the same? data.normalisation=per_volume makes up for it'
      )
      yield Problem(severity, name, 'range', message)
    if 3 in summary.channels and config.data.channels == 1:
      message = 'images are RGB, data.channels is 1: their mean is used'
      yield Problem('note', name, 'colour', message)
