"""A box of a volume, as a volume: what a prediction of a region is written like."""

import numpy as np

from emseg_jax.data.volume import Place, Volume

__all__ = ['Cropped']


class Cropped(Volume):
  """The voxels of `volume` from `start` up to before `stop`, both (z, y, x)."""

  def __init__(self, volume: Volume, start: Place, stop: Place) -> None:
    self._volume, self._start, self._stop = volume, start, stop
    self.path, self.kind, self.axes = volume.path, volume.kind, volume.axes
    self.dtype, self.channels = volume.dtype, volume.channels
    self.voxel_size_zyx, self.cheap_boxes = volume.voxel_size_zyx, volume.cheap_boxes
    self.offset_zyx = tuple(a + b for a, b in zip(volume.offset_zyx, start, strict=True))
    self.names = volume.names[start[0] : stop[0]]
    one_each = len(volume.files) == len(volume) > 1
    self.files = volume.files[start[0] : stop[0]] if one_each else volume.files

  def section_shape(self, index: int) -> tuple[int, int]:
    del index
    return self._stop[1] - self._start[1], self._stop[2] - self._start[2]

  def _read(self, index: int) -> np.ndarray:
    (_, y, x), (_, y_stop, x_stop) = self._start, self._stop
    return self._volume.section(self._start[0] + index)[y:y_stop, x:x_stop]
