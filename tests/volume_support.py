"""A stand-in for a network for volumes (or sections), quick and without parameters."""

import contextlib

import jax.numpy as jnp
import numpy as np

from emseg_jax import config as config_lib
from emseg_jax import tiling
from emseg_jax.data import blocks, normalise


class Stand:
  """Probabilities follow the grey value, and a little the place in the tile, which boxes must keep.

  Args:
    patch: (z, y, x) or (y, x); tiles have this size.
    classes: names; the brighter a voxel, the higher its class.
    scale, shift: what is seen is scale · grey value + shift.
    predict: further fields of the configuration's section.
  """

  normalisation = normalise.Normalisation('scale', 1, 0.0, 1.0, 'uint8')
  batch_size, channels, meta = 3, 1, None

  def __init__(
    self, patch, classes=('dark', 'grey', 'bright'), *, scale=1.0, shift=0.0, predict=None
  ):
    self.config = config_lib.Config(
      task=config_lib.Task(classes=classes),
      data=config_lib.Data(patch=patch),
      predict=config_lib.Predict(tile=patch, **(predict or {})),
    )
    self._scale, self._shift = scale, shift
    self.seen = []  # shapes of the batches of tiles

  def layout(self, shape):
    tile = self.config.predict.tile
    return tiling.lay_out(shape, tile, overlap=0.3, blend='gaussian')

  def explained(self, block=(), held=0):
    return contextlib.nullcontext()

  def apply(self, tiles):
    self.seen.append(tiles.shape)
    ramp = np.arange(tiles[0].size, dtype=np.float32).reshape(tiles.shape[1:]) / tiles[0].size
    grey = self._scale * np.asarray(tiles) + 0.1 * ramp + self._shift
    centres = np.linspace(0, 1, len(self.config.task.classes), dtype=np.float32)
    likely = np.exp(-8 * (grey - centres) ** 2)
    return jnp.asarray(likely / likely.sum(axis=-1, keepdims=True))

  def group_probabilities(self, split, group, should_stop=None):
    """Of the whole image at once."""
    flat = len(self.config.data.patch) == 2
    size = blocks.shape(split, group)
    image = blocks.read_image(split, self.normalisation, group, (0, 0, 0), size)
    image = image[0] if flat else image
    return tiling.predict_tiled(
      self.apply,
      image,
      self.layout(image.shape[:-1]),
      batch_size=self.batch_size,
      num_classes=len(self.config.task.classes),
      should_stop=should_stop,
    )
