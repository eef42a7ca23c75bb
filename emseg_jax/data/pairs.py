"""Sections with their labels: the sources of a split opened and matched.

Matching and all checks that need no pixels happen here, when a split is opened; `split` reads.
"""

import copy
from collections.abc import Sequence

from emseg_jax import config as config_lib
from emseg_jax.data import labels as labels_lib
from emseg_jax.data import matching, phantom, resampled, selection, tfds_volume, volumes
from emseg_jax.data.labels import IGNORED
from emseg_jax.data.split import Section, Split
from emseg_jax.data.volume import VoxelSize
from emseg_jax.errors import DataError

__all__ = ['IGNORED', 'Section', 'Split', 'open_source', 'open_split']


def open_split(
  sources: Sequence[config_lib.Source],
  *,
  task: config_lib.Task,
  data: config_lib.Data,
  palette: volumes.Palette = 'colour',
) -> Split:
  """Opens and matches all sources of a split; reads no pixels.

  Args:
    sources: where images and labels are.
    task: classes and ignored value.
    data: label mapping and cache size.
    palette: what a palette image means; labels are always taken by index.

  Raises:
    DataError: a path is missing or empty, images and labels do not match in number, name or size.
  """
  size = data.voxel_size
  sections = [s for source in sources for s in open_source(source, palette, voxel_size=size)]
  return Split(
    sections,
    rules=labels_lib.Rules(task, data),
    cache_bytes=int(data.cache_gb * 1e9),
  )


def open_source(
  source: config_lib.Source,
  palette: volumes.Palette = 'colour',
  *,
  voxel_size: VoxelSize | None = None,
) -> list[Section]:
  """Opens one source and pairs its images with its labels, brought to a voxel size if one is given.

  Raises:
    DataError: as `open_split`.
  """
  sections = []
  for images, labels in _open_volumes(source, palette):
    mask = _open_labels(source.mask, source)
    if voxel_size is not None:
      images, labels, mask = _resample(images, labels, mask, voxel_size)
    label_of, mask_of = _partners(images, labels), _partners(images, mask)
    for i in selection.select(images.names, source, path=images.path):
      section = Section(
        images.names[i], images, i, labels, label_of[i], source.weight, mask, mask_of[i]
      )
      _check_size(section, labels, label_of[i], 'label')
      _check_size(section, mask, mask_of[i], 'mask')
      sections.append(section)
  return sections


def _open_images(source: config_lib.Source, palette: volumes.Palette) -> volumes.Volume:
  return volumes.open_volume(source.images, palette=palette, reading=source.reading)


def _open_labels(path: str | None, source: config_lib.Source) -> volumes.Volume | None:
  if path is None:
    return None
  if path.startswith(tfds_volume.SCHEME):
    return tfds_volume.open_dataset(path)[1]
  return volumes.open_volume(path, palette='index', reading=source.label_reading)


def _resample(
  images: volumes.Volume,
  labels: volumes.Volume | None,
  mask: volumes.Volume | None,
  voxel_size: VoxelSize,
) -> tuple[volumes.Volume, volumes.Volume | None, volumes.Volume | None]:
  others = [
    None if v is None else resampled.resample(_with_size(v, images), voxel_size, labels=True)
    for v in (labels, mask)
  ]
  return resampled.resample(images, voxel_size, labels=False), *others


def _with_size(volume: volumes.Volume, images: volumes.Volume) -> volumes.Volume:
  """Labels that do not say how large their voxels are: as large as those of their image."""
  if volume.voxel_size_zyx is not None:
    return volume
  volume = copy.copy(volume)
  volume.voxel_size_zyx = images.voxel_size_zyx
  return volume


def _partners(images: volumes.Volume, others: volumes.Volume | None) -> dict[int, int]:
  """Index of each image's label or mask."""
  if others is None:
    return {i: i for i in range(len(images))}
  return dict(matching.match(images, others))


def _open_volumes(
  source: config_lib.Source, palette: volumes.Palette
) -> list[tuple[volumes.Volume, volumes.Volume | None]]:
  """Images and labels of every volume of a source: one, or as many as a phantom of volumes has."""
  options = source.phantom
  if options is None:
    if source.images.startswith(tfds_volume.SCHEME):
      images, labels = tfds_volume.open_dataset(source.images)
    else:
      images, labels = _open_images(source, palette), None
    return [(images, _open_labels(source.labels, source) or labels)]
  name = f'phantom-{options.seed}'
  if options.depth is None:
    arrays = phantom.make_sections(count=options.count, size=options.size, seed=options.seed)
    return [tuple(volumes.ArrayVolume(a, name=name, axes='NYX') for a in arrays)]
  shape = (options.depth, *options.size)
  # Volumes of different (seed, number) differ: SeedSequence reads 32 bits at a time.
  made = [
    phantom.make_volume(shape=shape, seed=options.seed * 2**32 + number)
    for number in range(options.count)
  ]
  return [
    tuple(volumes.ArrayVolume(array, name=f'{name}-{number}') for array in arrays)
    for number, arrays in enumerate(made)
  ]


def _check_size(section: Section, others: volumes.Volume | None, index: int, what: str) -> None:
  if others is None:
    return
  shape = others.section_shape(index)
  if section.shape != shape:
    raise DataError(
      f'{others.path}, {others.names[index]}: {what} is {shape[0]} x {shape[1]} (y x), its image '
      f'{section.name} is {section.shape[0]} x {section.shape[1]}; they must be equal'
    )
