"""Predicts or scores a volume with a network of one convolution; says how much memory that took.

python tests/large_volume.py FOLDER Z Y X [evaluate3d | evaluate2d]

The volume, and its labels, are Zarr stores without chunks, which read as zeros, so that they take
no room however large they are. Prints JSON: seconds, and the peak memory of this process in bytes.
"""

import json
import resource
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import tensorstore

from emseg_jax import evaluation, experiment, predict, train_state, volume_prediction
from emseg_jax.config import Config
from emseg_jax.data import normalise, pairs

TILE = (64, 256, 256)
BLOCK = (128, 512, 512)
EVALUATED = (16, 256, 256)  # tile and block of an evaluation

Size = tuple[int, ...]


class OneConvolution(nn.Module):
  """[B, Z, Y, X, 1] -> {'logits': [B, Z, Y, X, 2]}, or without Z."""

  ndim: int = 3
  dtype = jnp.float32

  @property
  def divisor(self) -> tuple[int, ...]:
    return (1,) * self.ndim

  @property
  def receptive_field(self) -> tuple[int, ...]:
    return (1,) * self.ndim

  @nn.compact
  def __call__(self, image, *, train):
    del train
    return {'logits': nn.Conv(2, (1,) * self.ndim, name='head')(image)}


def make_predictor(folder: Path, ndim: int, tile: Size, block: Size) -> predict.Predictor:
  reading = {'missing': 'fill'}
  source = {
    'images': f'{folder}/in.zarr', 'labels': f'{folder}/labels.zarr',
    'reading': reading, 'label_reading': reading,
  }  # fmt: skip
  config = Config.model_validate(
    {
      'model': {'name': 'unet3d' if ndim == 3 else 'unet', 'options': {}},
      'data': {
        'patch': tile[-ndim:],
        'normalisation': 'scale',
        'validation': [source],
        'cache_gb': 0.0,
      },
      'task': {'classes': ['background', 'object']},
      'mesh': {'data': 1},
      'predict': {
        'tile': tile[-ndim:],
        'block': block[-ndim:],
        'overlap': 0.0,
        'batch_size': 1,
        'reading': reading,
      },
    }
  )
  setup = experiment.set_up(config)
  model = OneConvolution(ndim)
  setup = experiment.Experiment(config, setup.mesh, model, setup.schedule, setup.optimizer)
  predictor = predict.Predictor(setup, normalise.Normalisation('scale', 1, 0.0, 1.0, 'uint8'))
  shape = (1, *(8,) * ndim, 1)
  predictor.load(train_state.create(model, setup.optimizer, seed=0, shape=shape, ema=False))
  return predictor


def main(folder: Path, shape: Size, what: str) -> None:
  metadata = {'shape': shape, 'chunks': [64] * 3, 'dtype': '|u1', 'fill_value': 0}
  for name in ('in', 'labels'):
    store = {'driver': 'file', 'path': f'{folder}/{name}.zarr/'}
    tensorstore.open(
      {'driver': 'zarr', 'kvstore': store, 'metadata': metadata, 'create': True}
    ).result()
  sizes = (TILE, BLOCK) if what == 'predict' else (EVALUATED, EVALUATED)
  predictor = make_predictor(folder, 2 if what == 'evaluate2d' else 3, *sizes)
  config = predictor.config
  began = time.perf_counter()
  if what == 'predict':
    volume_prediction.predict_volume(predictor, folder / 'in.zarr', folder / 'out.zarr')
  else:
    split = pairs.open_split(config.data.validation, task=config.task, data=config.data)
    evaluation.evaluate_split(predictor, split, extra_metrics=('soft', 'thresholds'))
  seconds = time.perf_counter() - began
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(json.dumps({'seconds': seconds, 'memory': memory}))


if __name__ == '__main__':
  main(Path(sys.argv[1]), tuple(map(int, sys.argv[2:5])), (*sys.argv[5:], 'predict')[0])
