"""Batches whose voxels know where they are, and the jitted augmentation."""

import jax
import numpy as np

from emseg_jax import augment, config

STILL = {'flip': 'off', 'rotate90': False}
KEY = jax.random.key(7)
CALL = jax.jit(augment.augment, static_argnames=('options', 'patch'))


def ramps(indices, size):
  """Examples whose image holds its own coordinates and whose label the flat voxel number."""
  coordinates = np.stack(np.meshgrid(*map(np.arange, size), indexing='ij'), axis=-1)
  number = np.arange(np.prod(size), dtype=np.int32).reshape(size)
  return {
    'image': np.stack([coordinates.astype(np.float32)] * len(indices)),
    'label': np.stack([number] * len(indices)),
    'weight': np.ones((len(indices), *size), np.float32),
    'index': np.asarray(indices, np.int32),
    'valid': np.tile(np.asarray(size, np.int32), (len(indices), 1)),
  }


def tissue(indices, size, channels=1):
  """Random grey values that depend on the example number only."""
  images = [np.random.default_rng(i).normal(3.0, 2.0, (*size, channels)) for i in indices]
  return {**ramps(indices, size), 'image': np.stack(images).astype(np.float32)}


def located(indices, size):
  """Channels: the coordinates, then random grey values."""
  batch, grey = ramps(indices, size), tissue(indices, size)['image']
  return {**batch, 'image': np.concatenate([batch['image'], grey], axis=-1)}


def run(batch, options, patch, key=KEY):
  out = CALL(batch, key, options=options, patch=patch)
  return {name: np.asarray(value) for name, value in out.items()}


def still(**changes):
  """These changes and no others."""
  return config.Augment(**STILL, **changes)
