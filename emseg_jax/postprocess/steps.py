"""The steps from a volume to a clean mask and its instances, as chains of block-wise readings.

Each step is a function of boxes that looks up what the last one left on disk; nothing is computed
before its voxels are asked for.
"""

import logging

import numpy as np

from emseg_jax.config.postprocess import Postprocess
from emseg_jax.data.volume import VoxelSize
from emseg_jax.postprocess import components, flood, relief
from emseg_jax.postprocess.components import Components
from emseg_jax.postprocess.grid import Box, Place, Read
from emseg_jax.postprocess.work import Work, nothing

__all__ = ['Steps', 'border', 'smallest']

LOGGER = logging.getLogger(__name__)


class Steps:
  """The steps that a configuration asks for.

  Args:
    options: the configuration.
    work: the blocks, and what is done.
    read: the input, labels or probabilities.
    voxel_size: (z, y, x) in nm; None: unknown.
    dimensions: 2: each section by itself.
  """

  def __init__(
    self,
    options: Postprocess,
    work: Work,
    read: Read,
    *,
    voxel_size: VoxelSize | None,
    dimensions: int,
  ) -> None:
    self._options, self._work, self._read = options, work, read
    self._voxel_size, self._dimensions = voxel_size, dimensions
    self._joined = components.structure(options.connectivity, dimensions)
    self.border = border(work.grid.shape, dimensions)

  def clean(self) -> tuple[Read, Components | None]:
    """The mask after hysteresis, hole filling and removal of small objects.

    Returns:
      The mask, and its components where they are known anyway.

    Raises:
      Gone, Interrupted: as `Work.tasks`.
    """
    options = self._options
    mask, objects = self._foreground, None
    if options.high is not None:
      objects = self._find(mask, 'hysteresis', marked=self._above(options.high))
      objects = objects.keep(objects.marked)
      mask = objects.mask
      LOGGER.info('Hysteresis leaves %d objects', len(objects))
    if options.holes is not None:
      mask, objects = self._filled(mask), None
    least = smallest(options, self._voxel_size, self._dimensions)
    if least > 1:
      objects = objects or self._find(mask, 'objects')
      before, objects = len(objects), objects.keep(objects.sizes >= least)
      mask = objects.mask
      LOGGER.info('%d of %d objects are below %d voxels', before - len(objects), before, least)
    return mask, objects

  def instances(self) -> tuple[Read, int]:
    """The ids of instances, and how many there are: components, or the watershed of markers.

    Raises:
      Gone, Interrupted: as `Work.tasks`.
    """
    mask, objects = self.clean()
    if self._options.instances == 'components':
      objects = objects or self._find(mask, 'instances')
      return objects.ids, len(objects)
    heights, compute = self._work.scratch('relief', 'u2'), self._relief(mask)

    def raise_block(box: Box) -> np.ndarray:
      heights.write(box[0], compute(*box))
      return nothing()

    self._work.blocks('relief', raise_block)
    markers = self._find(lambda start, stop: heights.read(start, stop) == 1, 'markers')
    markers = markers.keep(markers.sizes >= self._options.marker_voxels)
    LOGGER.info('%d markers', len(markers))
    labels = flood.watershed(self._work, heights, markers, self._joined)
    return labels.read, len(markers)

  def _find(self, mask: Read, name: str, *, marked: Read | None = None) -> Components:
    return components.find(self._work, mask, self._joined, name, border=self.border, marked=marked)

  def _foreground(self, start: Place, stop: Place) -> np.ndarray:
    if self._options.threshold is not None:
      return self._above(self._options.threshold)(start, stop)
    labels, wanted = self._read(start, stop), self._options.label
    return labels != 0 if wanted is None else labels == wanted

  def _above(self, share: float) -> Read:
    def read(start: Place, stop: Place) -> np.ndarray:
      values = self._read(start, stop)
      return values > share * relief.full(values.dtype)

    return read

  def _filled(self, mask: Read) -> Read:
    """With the background that is enclosed, as scipy's `binary_fill_holes`: across faces only."""
    faces = components.structure(1, self._dimensions)
    outside = components.find(
      self._work,
      lambda start, stop: ~mask(start, stop),
      faces,
      'holes',
      border=self.border,
    )
    holes = ~outside.at_border
    if self._options.holes != 'all':
      holes &= outside.sizes <= self._options.holes
    LOGGER.info('%d holes are filled', int(holes[1:].sum()))
    holes[0] = True  # the foreground
    table = holes[outside.table]
    return lambda start, stop: table[outside.provisional.read(start, stop)]

  def _relief(self, mask: Read) -> Read:
    options = self._options
    if options.marker_threshold is not None:
      return relief.from_probability(self._read, mask, options.marker_threshold)
    return relief.from_distance(
      self._work.grid,
      mask,
      options.marker_distance,
      self._voxel_size or (1.0, 1.0, 1.0),
      dimensions=self._dimensions,
    )


def border(shape: Place, dimensions: int) -> tuple[int, ...]:
  """Axes at whose ends there is a border: z only where sections are more than one and joined."""
  return (0, 1, 2) if dimensions == 3 and shape[0] > 1 else (1, 2)


def smallest(options: Postprocess, voxel_size: VoxelSize | None, dimensions: int) -> int:
  """Voxels of the smallest object that may stay; min_volume needs the voxel size."""
  if options.min_volume is None:
    return options.min_voxels or 1
  z, y, x = voxel_size
  return int(np.ceil(options.min_volume / (y * x * (z if dimensions == 3 else 1)) - 1e-9))
