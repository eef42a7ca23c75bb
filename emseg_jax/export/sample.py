"""The sample of a bundle: a piece of an image as exported functions take it."""

import logging

import jax.numpy as jnp
import numpy as np

from emseg_jax import config as config_lib
from emseg_jax import experiment
from emseg_jax.data import blocks, normalise, pairs
from emseg_jax.errors import EmsegError
from emseg_jax.export import inference

__all__ = ['input_of', 'size_of']

LOGGER = logging.getLogger(__name__)

LARGEST = {2: 512, 3: 64}  # side, voxels, by number of axes


def size_of(config: config_lib.Config) -> tuple[int, ...]:
  """Spatial size of the sample: the patch, unless that is very large.

  A multiple of twice the divisor, so that all exported forms take it.
  """
  patch = config.data.patch
  model = experiment.make_model(config, dtype=jnp.dtype('float32'))
  sides = (min(side, LARGEST[len(patch)]) for side in patch)
  return tuple(-(-side // (2 * d)) * 2 * d for side, d in zip(sides, model.divisor, strict=True))


def input_of(
  config: config_lib.Config, normalisation: normalise.Normalisation
) -> tuple[np.ndarray, str]:
  """The middle of the first validation image, else training image.

  Returns:
    float32 [1, *spatial, C]: pixels as they are stored, or normalised where exported functions want
    that; and where it is from. If no image can be read any more, it is noise.
  """
  try:
    return _of_data(config, normalisation)
  except EmsegError as error:
    LOGGER.warning('The sample input is noise, since no image can be read: %s', error)
  offset, scale = (
    np.tile(v, 2 * config.data.neighbours + 1) for v in inference.affine(normalisation)
  )
  noise = np.random.default_rng(0).normal(size=(1, *size_of(config), config.data.input_channels))
  return np.float32(offset + scale * noise), 'noise'


def _of_data(
  config: config_lib.Config, normalisation: normalise.Normalisation
) -> tuple[np.ndarray, str]:
  data = config.data
  split = pairs.open_split(data.validation or data.train, task=config.task, data=data)
  group = blocks.groups(split, len(data.patch))[0]
  section = split.sections[group[0]]
  if inference.normalises_inside(normalisation):
    channels = section.image_volume.channels
    normalisation = normalise.Normalisation('dataset', channels, 0.0, 1.0, normalisation.dtype)
  size = (*(1,) * (3 - len(data.patch)), *size_of(config))
  shape = blocks.shape(split, group)
  origin = [max(0, (there - wanted) // 2) for there, wanted in zip(shape, size, strict=True)]
  box = blocks.read_image(split, normalisation, group, origin, size, neighbours=data.neighbours)
  # One section is an image of a batch of one.
  return box if len(data.patch) == 2 else box[None], section.name
