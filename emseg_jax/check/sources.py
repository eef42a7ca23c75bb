"""Judgements on sources: what is missing, gaps in the numbering, voxel sizes."""

import collections
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from emseg_jax.check.problem import SPLITS, Problem, shorten
from emseg_jax.check.read import SplitRead
from emseg_jax.config import Config
from emseg_jax.data import tfds_volume, volumes

__all__ = ['advise', 'judge_numbering', 'judge_size', 'judge_sources', 'judge_voxels']

USUAL_STEP = 0.8  # share of the steps between numbers, so that another step is a gap
FEWEST = 4  # numbered sections, to tell what is usual
SAME = 0.01  # relative difference of voxel sizes that is rounding
ANISOTROPIC = 1.5  # ratio of z to the plane from which on the axes need different strides
FLAT = 4.0  # ratio of the sides of a patch in nm that draws a warning
POOLINGS = 3  # of the 3D U-Net


def judge_sources(config: Config) -> Iterator[Problem]:
  """No validation data, or no labels."""
  if not config.data.validation:
    yield Problem(
      'warning',
      'validation',
      'missing',
      'data.validation is empty, so that no best checkpoint can be picked; keep some sections for '
      'it, e.g. slices=":-4" in data.train and "-4:" in data.validation',
    )
  for name in SPLITS:
    for number, source in enumerate(getattr(config.data, name)):
      own = (source.images or '').startswith(tfds_volume.SCHEME)  # data sets bring their labels
      if source.images and not source.labels and not own:
        message = f'{source.images}: has no labels; set data.{name}.{number}.labels or remove it'
        severity = 'warning' if name == 'test' else 'error'
        yield Problem(severity, name, 'unlabelled', message)


def judge_size(data: Mapping[str, SplitRead]) -> Iterator[Problem]:
  """Splits of which only some sections were read."""
  for name, split in data.items():
    if split.left_out:
      message = (
        f'{split.left_out} of {len(split.sections)} sections were not read, because there are so '
        'many: sections at equal distances stand for all'
      )
      yield Problem('note', name, 'sampled', message)


def judge_numbering(data: Mapping[str, SplitRead], *, volumetric: bool) -> Iterator[Problem]:
  """Numbers that are missing in the names of a folder: files that were lost?

  Args:
    data: the splits.
    volumetric: whether sections are stacked, so that a gap breaks the volume.
  """
  folders: dict[str, tuple[str, volumes.Volume]] = {}
  for name, split in data.items():
    for volume in {id(s.image_volume): s.image_volume for s in split.sections}.values():
      if volume.kind == 'folder':
        folders.setdefault(volume.path, (name, volume))
  numbers = {path: _numbers_of(volume) for path, (_, volume) in folders.items()}
  elsewhere = collections.Counter(n for found in numbers.values() for n in found)
  for path, (name, volume) in folders.items():
    gaps = _find_gaps(numbers[path])
    missing = [n for n in gaps if volumetric or not elsewhere[n]]
    if missing:
      words = shorten(f'{stem}{number:0{width}d}' for stem, width, number in missing)
      message = (
        f'{path}: {len(missing)} numbers are missing among its {len(volume)} names: {words}; were '
        'files lost?'
      )
      if volumetric:
        message += ' The sections on both sides of a gap are taken for neighbours.'
      yield Problem('warning' if volumetric else 'note', name, 'numbering', message)


def _numbers_of(volume: volumes.Volume) -> list[tuple[str, int, int]]:
  """(text before, digits, number) of the names that end in a number."""
  found = []
  for file in volume.files:
    match = re.fullmatch(r'(.*?)(\d{1,18})', Path(file).stem)
    if match:
      found.append((match[1], len(match[2]) if match[2].startswith('0') else 0, int(match[2])))
  return found


def _find_gaps(found: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
  """What is missing between the numbers that follow each other in the usual step."""
  gaps = []
  for stem in dict.fromkeys(stem for stem, _, _ in found):
    width = max(width for s, width, _ in found if s == stem)
    numbers = sorted({number for s, _, number in found if s == stem})
    steps = [b - a for a, b in itertools.pairwise(numbers)]
    if len(numbers) < FEWEST:
      continue
    usual = max(set(steps), key=steps.count)
    if steps.count(usual) >= USUAL_STEP * len(steps):
      for before, step in zip(numbers, steps, strict=False):
        gaps += [(stem, width, n) for n in range(before + usual, before + step, usual)]
  return gaps


def judge_voxels(config: Config, data: Mapping[str, SplitRead]) -> Iterator[Problem]:
  """Voxel sizes that differ between image and label, or between splits; a patch far from a cube."""
  sizes: dict[volumes.VoxelSize, str] = {}
  for name, split in data.items():
    for section in {id(s.image_volume): s for s in split.sections}.values():
      image, label = section.image_volume, section.label_volume
      size, other = image.voxel_size_zyx, label.voxel_size_zyx if label else None
      if size and other and not _agree(size, other):
        message = (
          f'{label.path}: its voxels are {_describe(other)}, those of its image {image.path} '
          f'{_describe(size)} (z y x); is the label at another resolution?'
        )
        yield Problem('error', name, 'voxel size', message)
      known = next((n for s, n in sizes.items() if size and not _agree(s, size)), None)
      if known:
        first = next(s for s, n in sizes.items() if n == known and not _agree(s, size))
        message = (
          f'{image.path}: its voxels are {_describe(size)}, others in {known} {_describe(first)} '
          '(z y x); a network sees both at the same scale'
        )
        yield Problem('warning', name, 'voxel size', message)
      elif size:
        sizes.setdefault(size, name)
  size, patch = _common_size(data), config.data.patch
  if size and len(patch) == 3:
    sides = [n * s for n, s in zip(patch, size, strict=True)]
    if max(sides) > FLAT * min(sides):
      message = (
        f'data.patch {_times(patch)} of voxels of {_describe(size)} spans {_times(sides)} nm '
        '(z y x); about equal sides show a network more of what it needs'
      )
      yield Problem('warning', 'train', 'patch', message)


def _agree(a: volumes.VoxelSize, b: volumes.VoxelSize) -> bool:
  known = [(s, t) for s, t in zip(a, b, strict=True) if s is not None and t is not None]
  return all(abs(s - t) <= SAME * max(s, t) for s, t in known)


def _describe(size: volumes.VoxelSize) -> str:
  return ' x '.join('?' if s is None else f'{s:g}' for s in size) + ' nm'


def _times(sides: Sequence[float]) -> str:
  return ' x '.join(f'{s:g}' for s in sides)


def _common_size(data: Mapping[str, SplitRead]) -> tuple[float, float, float] | None:
  """Voxel size of the training volumes, if it is the same for all and fully known."""
  found = {s.image_volume.voxel_size_zyx for s in data['train'].sections}
  size = found.pop() if len(found) == 1 else None
  return size if size and None not in size else None


def advise(data: Mapping[str, SplitRead]) -> str:
  """What the voxel size of the training volumes means for the patch and strides of a 3D network."""
  sections = data['train'].sections
  volumes_used = {id(s.image_volume): s.image_volume for s in sections}.values()
  depth = max((len(v) for v in volumes_used if v.axes.startswith('Z')), default=1)
  size = _common_size(data)
  if size is None:
    return (
      'Voxel size: unknown, or not the same everywhere, so that no patch and strides can be '
      'suggested for 3D networks; reading.voxel_size of a source says it.'
    )
  z, plane = size[0], (size[1] * size[2]) ** 0.5
  text = f'Voxel size: {_describe(size)} (z y x); '
  if depth < 2:
    return text + 'there are single sections only.'
  if z / plane < ANISOTROPIC:
    return text + 'about cubes: 3D networks may take patches and strides equal in all axes.'
  ratio = z / plane
  flat = _count_flat_poolings(ratio)
  factor = 2 ** (POOLINGS - flat)
  deep = max(factor, round(128 / ratio / factor) * factor, -(-8 // factor) * factor)
  deep = min(deep, max(factor, depth // factor * factor))
  pool = ', '.join(['[1, 2, 2]'] * flat + ['[2, 2, 2]'] * (POOLINGS - flat))
  return (
    f'{text}z is {ratio:.3g} times coarser: for a 3D network take data.patch=({deep}, 128, 128) '
    'and pool only in the plane until voxels are about cubes, as '
    f'model.options.pool=[{pool}] of unet3d does.'
  )


def _count_flat_poolings(ratio: float) -> int:
  """Poolings by (1, 2, 2) until z is less than 1.5 times coarser than the plane."""
  flat = 0
  while ratio >= ANISOTROPIC and flat < POOLINGS:
    ratio, flat = ratio / 2, flat + 1
  return flat
