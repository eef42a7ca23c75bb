"""What tests of the data doctor share: tiny folders of images with labels."""

import functools

import numpy as np
from PIL import Image

from emseg_jax import check
from emseg_jax.config import Config, Data, Source, Task
from emseg_jax.data import phantom

CLASSES = phantom.CLASSES
SIZE = (16, 20)


def texture(seed, size=SIZE):
  """Values 100..119, so that the mean is near 109.5 and the std near 5.8."""
  return np.random.default_rng(seed).integers(100, 120, size, dtype=np.uint8)


def half(size=SIZE, value=1):
  """`value` in the upper half, 0 below."""
  label = np.zeros(size, np.uint8)
  label[: size[0] // 2] = value
  return label


@functools.cache
def tissue(count, size=(96, 96), seed=0):
  """uint8 images and labels [N, Y, X] of unrelated sections; the labels are exact."""
  return phantom.make_sections(count=count, size=size, seed=seed)


@functools.cache
def volume(shape=(8, 96, 96), seed=0):
  return phantom.make_volume(shape=shape, seed=seed)


def write(folder, images, labels, *, suffix='.png', numbers=None, **options):
  """images/00.png, ... and labels/00.png, ..."""
  for kind, arrays, ending in (('images', images, '.png'), ('labels', labels, suffix)):
    (folder / kind).mkdir(parents=True, exist_ok=True)
    for number, array in zip(numbers or range(len(arrays)), arrays, strict=True):
      name = folder / kind / f'{number:02d}{ending}'
      Image.fromarray(np.ascontiguousarray(array)).save(
        name, **(options if kind == 'labels' else {})
      )


def source(folder, **options):
  return Source(images=str(folder / 'images'), labels=str(folder / 'labels'), **options)


def config(root, *, classes=('background', 'foreground'), ignore_value=None, **data):
  data = {'patch': (16, 16), 'train': (source(root / 'train'),), **data}
  data = {'validation': (source(root / 'val'),), **data}
  return Config(task=Task(classes=classes, ignore_value=ignore_value), data=Data(**data))


def report(train, validation=None, *, classes=CLASSES, ignore_value=None, **data):
  """Checks sources; validation on tissue of its own where nothing else is given."""
  task = Task(classes=classes, ignore_value=ignore_value)
  sources = {'train': (train,), 'validation': (validation,) if validation else ()}
  return check.check(Config(task=task, data=Data(**{'patch': (32, 32), **sources, **data})))


def found(report, *kinds):
  """(severity, split) of the problems of these kinds."""
  return [(p.severity, p.split) for p in report.problems if p.kind in kinds]


def message(report, kind):
  return next(p.message for p in report.problems if p.kind == kind)


def listed(report, severity=None):
  """(severity, split, kind) of all problems, or (split, kind) of those of one severity."""
  if severity:
    return [(p.split, p.kind) for p in report.problems if p.severity == severity]
  return [(p.severity, p.split, p.kind) for p in report.problems]
