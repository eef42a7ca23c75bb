"""Predicts a volume with a network of one convolution and says how much memory that took.

python tests/large_volume.py FOLDER Z Y X

The volume is a Zarr store without chunks, which reads as zeros, so that it takes no room however
large it is. Prints JSON: seconds, and the peak memory of this process in bytes.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import tensorstore

from emseg_jax import experiment, predict, train_state, volume_prediction
from emseg_jax.config import Config
from emseg_jax.data import normalise

TILE = (64, 256, 256)
BLOCK = (128, 512, 512)


class OneConvolution(nn.Module):
  """[B, Z, Y, X, 1] -> {'logits': [B, Z, Y, X, 2]}."""

  divisor: ClassVar[tuple[int, ...]] = (1, 1, 1)
  receptive_field: ClassVar[tuple[int, ...]] = (1, 1, 1)
  dtype = jnp.float32

  @nn.compact
  def __call__(self, image, *, train):
    del train
    return {'logits': nn.Conv(2, (1, 1, 1), name='head')(image)}


def main(folder: Path, shape: tuple[int, ...]) -> None:
  metadata = {'shape': shape, 'chunks': [64] * 3, 'dtype': '|u1', 'fill_value': 0}
  store = {'driver': 'file', 'path': f'{folder}/in.zarr/'}
  tensorstore.open(
    {'driver': 'zarr', 'kvstore': store, 'metadata': metadata, 'create': True}
  ).result()
  config = Config.model_validate(
    {
      'model': {'name': 'unet3d', 'options': {}},
      'data': {'patch': TILE, 'normalisation': 'scale'},
      'task': {'classes': ['background', 'object']},
      'mesh': {'data': 1},
      'predict': {
        'tile': TILE,
        'block': BLOCK,
        'overlap': 0.0,
        'batch_size': 1,
        'reading': {'missing': 'fill'},
      },
    }
  )
  setup = experiment.set_up(config)
  model = OneConvolution()
  setup = experiment.Experiment(config, setup.mesh, model, setup.schedule, setup.optimizer)
  predictor = predict.Predictor(setup, normalise.Normalisation('scale', 1, 0.0, 1.0, 'uint8'))
  state = train_state.create(model, setup.optimizer, seed=0, shape=(1, 8, 8, 8, 1), ema=False)
  predictor.load(state)
  began = time.perf_counter()
  volume_prediction.predict_volume(predictor, folder / 'in.zarr', folder / 'out.zarr')
  seconds = time.perf_counter() - began
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(json.dumps({'seconds': seconds, 'memory': memory}))


if __name__ == '__main__':
  main(Path(sys.argv[1]), tuple(map(int, sys.argv[2:])))
