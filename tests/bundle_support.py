"""Bundles of tiny networks that nobody trained."""

import math

import jax
import jax.numpy as jnp
import model_support
import numpy as np

from emseg_jax import bundle as bundle_lib
from emseg_jax import config as config_lib
from emseg_jax import experiment
from emseg_jax.checkpoint import Meta
from emseg_jax.data import normalise
from emseg_jax.export import describe, inference, sample

NARROW = {'name': 'unet', 'options': {'width': 1 / 64}}
FLAT = {'name': 'unet3d', 'options': {'width': 1 / 64}}
GREY = {'kind': 'dataset', 'mean': 120.0, 'std': 40.0, 'dtype': 'uint8'}


def make_config(*, model=NARROW, patch=(32, 32), activation='softmax', classes=None, **data):
  """A configuration of a network for two classes."""
  phantom = {'count': 1, 'size': (48, 40)} | ({'depth': 4} if len(patch) == 3 else {})
  source = {'phantom': phantom}
  return config_lib.Config(
    task={'classes': classes or ('cell', 'membrane'), 'activation': activation},
    data={'train': (source,), 'validation': (source,), 'patch': patch, 'threads': 0} | data,
    model=model,
    train={'steps': 1, 'batch_size': 1},
    predict={'tile': tuple(min(side, 32) for side in patch), 'batch_size': 2},
    eval={'best': 'accuracy'},
  )


def make_meta(config, **normalisation):
  record = GREY | {'channels': config.data.channels, 'kind': config.data.normalisation}
  return Meta(
    step=7,
    evaluated_step=7,
    best_step=-1,
    best_score=-math.inf,
    normalisation=record | normalisation,
    data='0123abcd',
    config=config.model_dump(mode='json'),
    versions={'jax': '0.10.2', 'emseg_jax': '0.1.0'},
    voxel_size=(None, 4.0, 4.0),
  )


def make_bundle(config=None, *, seed=0, scores=None, **normalisation):
  """A bundle in memory whose norms, biases and running statistics all count."""
  config = config or make_config()
  meta = make_meta(config, **normalisation)
  model = experiment.make_model(config, dtype=jnp.dtype('float32'))
  image = (1, *config.data.patch, config.data.input_channels)
  values = model_support.moved(model_support.start_values(model_support.shapes(model, image), seed))
  variables = {'params': values['params'], 'batch_stats': values.get('batch_stats', {})}
  known = normalise.Normalisation.from_json(meta.normalisation)
  given, source = sample.input_of(config, known)
  record = describe.describe(
    config,
    meta,
    variables,
    channels=given.shape[-1],
    sample=source,
    title='A test',
    scores=scores or {},
  )
  bundle = bundle_lib.Bundle(record, config, known, variables, (given, given))
  output = np.asarray(jax.jit(inference.of_bundle(bundle))(variables, given))
  return bundle_lib.Bundle(record, config, known, variables, (given, output))
