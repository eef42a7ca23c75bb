"""Block-wise prediction here and MONAI's sliding windows, with one U-Net: speed, memory, agreement.

python tests/monai_benchmark.py [--case=2D] [--small]

Not a test: it takes minutes, wants a quiet machine, and needs `pip install monai` beside the parity
extra. Each program runs in a process of its own, first on a corner of the image, which does not
count, so that compiling the network does not. Ours reads a Zarr store and writes labels to one;
MONAI has the image and its result in memory, as it is used. Tiles, overlap, weights and batch are
the same.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CASES = {
  '2D, 4096², 16 features': {'name': 'unet', 'width': 0.25, 'shape': (1, 4096, 4096), 'tile': 256},
  '3D, 256³, 8 features': {'name': 'unet3d', 'width': 0.25, 'shape': (256, 256, 256), 'tile': 64},
}
SMALL = 4  # times smaller along each axis of more than one voxel
BATCH, OVERLAP = 4, 0.25


def configuration(case):
  """Of the network; weights come from `seed`, so all processes have the same ones."""
  from emseg_jax.config import Config

  axes = 3 if case['name'] == 'unet3d' else 2
  tile = (case['tile'],) * axes
  return Config.model_validate(
    {
      'model': {'name': case['name'], 'options': {'width': case['width']}},
      'data': {'patch': tile, 'normalisation': 'scale'},
      'task': {'classes': ['background', 'object']},
      'mesh': {'data': 1},
      'predict': {'tile': tile, 'overlap': OVERLAP, 'batch_size': BATCH},
    }
  )


def loaded_predictor(case):
  from emseg_jax import experiment, predict, train_state
  from emseg_jax.data import normalise

  config = configuration(case)
  setup = experiment.set_up(config)
  predictor = predict.Predictor(setup, normalise.Normalisation('scale', 1, 0.0, 1.0, 'uint8'))
  shape = (1, *config.data.patch, 1)
  state = train_state.create(setup.model, setup.optimizer, seed=0, shape=shape, ema=False)
  predictor.load(state)
  return predictor, state


def run_ours(case, folder):
  from emseg_jax import volume_prediction

  predictor, _ = loaded_predictor(case)
  for name in ('corner', 'in'):
    began = time.perf_counter()
    volume_prediction.predict_volume(
      predictor, folder / f'{name}.zarr', folder / f'{name}_out.zarr'
    )
  return time.perf_counter() - began


def run_monai(case, folder):
  import torch
  from monai.inferers import sliding_window_inference

  axes = 3 if case['name'] == 'unet3d' else 2
  weights = {k: torch.from_numpy(v) for k, v in np.load(folder / 'weights.npz').items()}
  image = torch.from_numpy(np.load(folder / 'in.npy')).float().div_(255)
  batch = image[None, None] if axes == 3 else image[:, None]
  with torch.inference_mode():
    for values in (batch[(..., *corner(case)[-axes:])], batch):
      began = time.perf_counter()
      found = sliding_window_inference(
        values,
        (case['tile'],) * axes,
        BATCH,
        lambda x: torch.softmax(torch_unet(weights, x, axes), 1),
        overlap=OVERLAP,
        mode='gaussian',
      )
      labels = found.argmax(1).to(torch.uint8)
      seconds = time.perf_counter() - began
  np.save(folder / 'monai.npy', labels.numpy().reshape(image.shape))
  return seconds


def torch_unet(weights, x, axes):
  """The U-Nets of `emseg_jax.models` from their parameters, by name."""
  import torch
  from torch.nn import functional

  conv = functional.conv3d if axes == 3 else functional.conv2d
  transposed = functional.conv_transpose3d if axes == 3 else functional.conv_transpose2d
  pool = functional.max_pool3d if axes == 3 else functional.max_pool2d
  levels = sum(name.startswith('upconv') and name.endswith('bias') for name in weights)

  def double(x, stage):
    name = f'{stage}_{{}}' if axes == 3 else f'{stage}/block{{}}'
    for i in (1, 2):
      w = f'{name.format(i)}/conv/'
      x = conv(x, weights[f'{w}kernel'], weights[f'{w}bias'], padding=1)
      if (scale := weights.get(f'{name.format(i)}/norm/scale')) is not None:
        shift = weights[f'{name.format(i)}/norm/bias']
        shape = (1, -1, *(1,) * axes)  # running mean 0 and variance 1, as at the start
        x = x * (scale / (1 + 1e-5) ** 0.5).view(shape) + shift.view(shape)
      x = functional.relu(x)
    return x

  skips = []
  for level in range(1, levels + 1):
    x = double(x, f'down{level}')
    skips.append(x)
    x = pool(x, 2)
  x = double(x, 'bridge')
  for level in range(levels, 0, -1):
    w = f'upconv{level}/'
    x = transposed(x, weights[f'{w}kernel'], weights[f'{w}bias'], stride=2)
    x = double(torch.cat([skips[level - 1], x], 1), f'up{level}')
  return conv(x, weights['head/kernel'], weights['head/bias'])


def corner(case):
  """As large as a tile."""
  return tuple(slice(min(n, case['tile'])) for n in case['shape'])


def save_inputs(case, folder):
  """A synthetic image, and the parameters in PyTorch's order of axes."""
  import jax

  from emseg_jax.data import array_writers, phantom

  shape = case['shape']
  if shape[0] == 1:
    image = phantom.make_sections(count=1, size=shape[1:], seed=0)[0]
  else:
    image = phantom.make_volume(shape=shape, seed=0)[0]
  for name, values in (('in', image), ('corner', image[corner(case)])):
    about = array_writers.About(labels=False)
    place = folder / f'{name}.zarr'
    writer = array_writers.WRITERS['zarr'](place, values.shape, values.dtype, about)
    for z in range(0, len(values), writer.depth):
      writer.put(z, values[z : z + writer.depth])
  np.save(folder / 'in.npy', image)
  _, state = loaded_predictor(case)
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
    name, value = '/'.join(key.key for key in path), np.asarray(leaf)
    spatial = tuple(range(value.ndim - 2))
    if 'upconv' in name and value.ndim > 1:
      # Our first output voxel of a cell sees the last tap; PyTorch's axes are in, out, taps.
      value = np.flip(value, spatial).transpose(value.ndim - 2, value.ndim - 1, *spatial)
    elif value.ndim > 1:
      value = value.transpose(value.ndim - 1, value.ndim - 2, *spatial)
    found[name] = np.ascontiguousarray(value)
  np.savez(folder / 'weights.npz', **found)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--small', action='store_true')
  parser.add_argument('--case', choices=['2D', '3D'], help='one of them; both without')
  parser.add_argument('--run', nargs=3, metavar=('PROGRAM', 'CASE', 'FOLDER'))
  options = parser.parse_args()
  if options.run:
    program, case, folder = options.run[0], json.loads(options.run[1]), Path(options.run[2])
    seconds = {'ours': run_ours, 'monai': run_monai, 'inputs': save_inputs}[program](case, folder)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({'seconds': seconds, 'memory': memory}))
    return
  print('| case | program | Mvoxel/s | peak memory of the process | labels alike |')
  print('|---|---|---|---|---|')
  for title, case in CASES.items():
    if options.case not in (None, title[:2]):
      continue
    if options.small:
      case['shape'] = [n if n == 1 else n // SMALL for n in case['shape']]
    with tempfile.TemporaryDirectory() as folder:
      compare(title, case, Path(folder))


def compare(title, case, folder):
  from emseg_jax.data import volumes

  found = {}
  for program in ('inputs', 'ours', 'monai'):
    command = [sys.executable, __file__, '--run', program, json.dumps(case), str(folder)]
    found[program] = json.loads(subprocess.check_output(command).splitlines()[-1])
  ours = volumes.open_volume(folder / 'in_out.zarr')[:]
  alike = np.mean(ours == np.load(folder / 'monai.npy'))
  for program in ('ours', 'monai'):
    speed = np.prod(case['shape']) / found[program]['seconds'] / 1e6
    memory = found[program]['memory'] / 1e9
    print(f'| {title} | {program} | {speed:.3f} | {memory:.2f} GB | {alike:.4%} |', flush=True)


if __name__ == '__main__':
  main()
