"""Instances from affinities, block by block.

An object is what strong links hold together (`links`). With instances=components, these are links
above `threshold`, one half by default, and objects of fewer than `min_voxels` vanish. With
instances=watershed, such objects are only where instances may be: links above `marker_threshold`
make the markers, those of fewer than `marker_voxels` do not count, and they grow over the rest,
first where the links of a voxel are strong in the mean (`flood`). A voxel without any link above
the threshold is background. Only offsets to nearest voxels count; longer ones help to learn.
"""

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emseg_jax.config.affinities import check_steps
from emseg_jax.config.postprocess import Postprocess
from emseg_jax.data import recognise
from emseg_jax.data.volume import VoxelSize
from emseg_jax.errors import ConfigError
from emseg_jax.postprocess import components, flood
from emseg_jax.postprocess.components import Components
from emseg_jax.postprocess.grid import Box, Grid, Place, Read, window
from emseg_jax.postprocess.links import Links, Offset, nearest
from emseg_jax.postprocess.relief import HIGHEST, STEPS
from emseg_jax.postprocess.steps import border, smallest
from emseg_jax.postprocess.work import Work, nothing

__all__ = [
  'check_options',
  'instances',
  'map_paths',
  'nearest_of',
  'quantised',
  'segment',
]

LOGGER = logging.getLogger(__name__)
THRESHOLD = 0.5


def check_options(options: Postprocess) -> None:
  """Makes sure that no step is asked for that affinities do not have.

  Raises:
    ConfigError: one is.
  """
  try:
    check_steps(options)
  except ValueError as error:
    raise ConfigError(f'config.{error}') from error


def nearest_of(maps: Mapping[Offset, Any]) -> dict[Offset, Any]:
  """Those that instances are made of."""
  return {offset: value for offset, value in maps.items() if nearest(offset)}


def quantised(maps: Mapping[Offset, np.ndarray]) -> dict[Offset, np.ndarray]:
  """Those of probabilities from 0 to 1, as files hold them, uint8.

  So instances are the same whether the maps went through files or not.
  """
  return {o: np.round(p * 255).astype(np.uint8) for o, p in nearest_of(maps).items()}


def map_paths(source: str | Path, maps: Mapping[Offset, str]) -> dict[Offset, str]:
  """The maps that `--mode=predict --output=SOURCE` writes, of which instances are made.

  Args:
    source: 'a.zarr', or 'a.h5:/name'; the map of 'z1' then is 'a_prob_z1.zarr'.
    maps: offset -> its name.
  """
  place, dataset = recognise.split_dataset(str(source))
  known = recognise.suffix(place) in (*recognise.FORMATS, '.zarr', '.n5', '.precomputed')
  stem, extension = os.path.splitext(place) if known else (place, '')
  behind = extension if dataset is None else f'{extension}:{dataset}'
  return {o: f'{stem}_prob_{name}{behind}' for o, name in nearest_of(maps).items()}


def instances(
  options: Postprocess,
  work: Work,
  links: Links,
  *,
  voxel_size: VoxelSize | None,
  dimensions: int,
) -> tuple[Read, int]:
  """The ids of instances, and how many there are.

  Args:
    options: the section of the configuration.
    work: the blocks, and what is done.
    links: between voxels.
    voxel_size: (z, y, x) in nm; None: unknown.
    dimensions: 2: each section by itself.

  Raises:
    ConfigError: as `check_options`, or the smallest volume needs a voxel size.
    Gone, Interrupted: as `Work.tasks`.
  """
  check_options(options)
  if options.min_volume is not None and voxel_size is None:
    raise ConfigError(
      'config.postprocess.min_volume: the voxel size is unknown; set min_voxels instead'
    )
  if dimensions == 2:
    links = links.within_sections()
  threshold = THRESHOLD if options.threshold is None else options.threshold
  edges = border(work.grid.shape, dimensions)
  objects = _find(work, links, threshold, 'objects', edges)
  objects = objects.keep(objects.sizes >= smallest(options, voxel_size, dimensions))
  if options.instances == 'components':
    return objects.ids, len(objects)
  markers = _find(work, links, options.marker_threshold, 'markers', edges, marked=objects.mask)
  markers = markers.keep(markers.marked & (markers.sizes >= options.marker_voxels))
  LOGGER.debug('%d markers', len(markers))
  heights = work.scratch('relief', 'u2')

  def raise_block(box: Box) -> np.ndarray:
    heights.write(box[0], _relief(links, objects.mask(*box), *box))
    return nothing()

  work.blocks('relief', raise_block)
  labels = flood.watershed(work, heights, markers, components.structure(1, dimensions))
  return labels.read, len(markers)


def _find(
  work: Work,
  links: Links,
  threshold: float,
  name: str,
  edges: tuple[int, ...],
  marked: Read | None = None,
) -> Components:
  return components.assemble(
    work,
    lambda box: links.label(*box, threshold),
    lambda box, ids: links.touching(box, work.grid, ids, threshold),
    name,
    border=edges,
    marked=marked,
  )


def _relief(links: Links, mask: np.ndarray, start: Place, stop: Place) -> np.ndarray:
  """The higher the weaker the links of a voxel are in the mean of both ends along each axis."""
  total, ends = np.zeros(mask.shape, np.float64), 0
  for end in links.ends(start, stop, links.along):
    total += end
    ends += 1
  level = np.floor(total / (ends * links.full) * STEPS)
  return np.where(mask, HIGHEST - level, 0).astype(np.uint16)


def segment(
  affinities: Mapping[Offset, np.ndarray],
  options: Postprocess,
  *,
  voxel_size: tuple[float | None, ...] | None = None,
) -> np.ndarray:
  """Instances of a volume in memory, uint32 [Z, Y, X], as block by block.

  Args:
    affinities: offset -> [Z, Y, X], integers of which the largest stands for 1, or floats. Offsets
      of two axes are those of sections, which are segmented one by one.
    options: the section of the configuration.
    voxel_size: (z, y, x) in nm; None: unknown, as a part of it may be.

  Raises:
    ConfigError: as `instances`.
  """
  first = next(iter(affinities.values()))
  dimensions = len(next(iter(affinities)))
  z, y, x = voxel_size or (None,) * 3
  size = (1.0 if dimensions == 2 else z, y, x)
  maps = {offset: _reader(array) for offset, array in affinities.items()}
  links = Links(maps, first.shape, first.dtype)
  with tempfile.TemporaryDirectory() as folder:
    read, _ = instances(
      options,
      Work(Grid(first.shape, first.shape), Path(folder)),
      links,
      voxel_size=None if None in size else size,
      dimensions=dimensions,
    )
    return read((0, 0, 0), first.shape).astype(np.uint32)


def _reader(array: np.ndarray) -> Read:
  return lambda start, stop: array[window(start, stop)]
