"""Random networks with an encoder, and the files that other libraries would make of them."""

import functools

import h5py
import jax
import model_support
import numpy as np
from safetensors.numpy import save_file

from emseg_jax import models, pretrained

NARROW = {'width': 1 / 16}
# A ViT has to have the width of the published ones.
SHALLOW = {'depth': 1, 'grid': (2, 2)}
NETWORKS = {
  'deeplabv3plus': NARROW,
  'fcn8s': NARROW,
  'pmcanet': NARROW,
  'segmenter': SHALLOW | {'decoder_depth': 1},
  'segnet': NARROW,
  'segvit': SHALLOW | {'taps': (0,), 'decoder_layers': 1},
  'unet': NARROW,
  'vgg_unet': NARROW,
}


@functools.cache
def shapes(name, channels=3, **options):
  model = models.create_model(name, 2, **NETWORKS[name] | options)
  return model_support.shapes(model, (1, 32, 32, channels))


def random(name, channels=3, *, seed=0, **options):
  """Variables of a network, whose features keep their size; variances are positive."""
  rng = np.random.default_rng(seed)

  def fill(leaf):
    if leaf.ndim > 1:
      spread = np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))
      return spread * rng.standard_normal(leaf.shape, np.float32)
    return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)

  return jax.tree.map(fill, shapes(name, channels, **options))


def saved(variables, layout, path, *, prefix='', drop=(), add=None):
  """The encoder as the library of that layout writes it, with tensors dropped and added."""
  tensors = pretrained.to_source(variables, layout) | (add or {})
  save_file({prefix + k: v for k, v in tensors.items() if k not in drop}, path)
  return path


def saved_by_keras(variables, layout, path, add=None):
  with h5py.File(path, 'w') as file:
    for name, tensor in (pretrained.to_source(variables, layout) | (add or {})).items():
      file[f'{name}:0'] = tensor
  return path
