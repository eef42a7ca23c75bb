"""The shipped recipes: every argument they take, their data in small, and options that make a run
short.

`SPECS` holds each choice, network and option of each file at least once. `write_data` writes what a
recipe finds in its `root`: the files, sections and label values of the published data, but small
and synthetic (`emseg_jax.data.phantom`).
"""

from pathlib import Path

import data_support
import numpy as np

from emseg_jax import config_io
from emseg_jax.config import Config
from emseg_jax.data import phantom

# One per file that `make test` trains; it trains `tiny` in other tests.
FIRST = (
  'pmcanet:isbi2012',
  'vgg_unet:epfl',
  'seget:synapse',
  'emnet:epfl',
  'rescrnet:rat_liver',
  'unet',
  'phantom',
)
PMCANET_RIVALS = ('deeplabv3plus', 'emnet_khadangi', 'segmenter', 'segvit', 'pidnet')
SPECS = (
  *FIRST,
  *('tiny', 'pmcanet', 'vgg_unet', 'seget', 'emnet', 'rescrnet'),
  # pmcanet: data, networks for two and three classes, ablations, splits.
  *(f'pmcanet:{data}' for data in ('cardiac', 'sem_material', 'superalloy', 'cdeep3m')),
  *(f'pmcanet:isbi2012,network={network}' for network in PMCANET_RIVALS),
  *(f'pmcanet:sem_material,network={network}' for network in PMCANET_RIVALS),
  *(f'pmcanet:sem_material,attention={word}' for word in ('none', 'se', 'eca')),
  *(f'pmcanet:sem_material,fusion={word}' for word in ('add', 'multiply')),
  *(f'pmcanet:sem_material,{words}' for words in ('pool=max', 'pyramid=off')),
  'pmcanet:sem_material,pool=max,pyramid=off',
  *(f'pmcanet:sem_material,ce=1,dice={factor}' for factor in (0, 1, 2, 4, 5)),
  *('pmcanet:isbi2012,attention=none', 'pmcanet:isbi2012,fusion=add', 'pmcanet:isbi2012,cpu'),
  *('pmcanet:isbi2012,sections=24', 'pmcanet:isbi2012,fold=0/5', 'pmcanet:isbi2012,fold=4/5'),
  # vgg_unet
  *(f'vgg_unet:epfl,variant={variant}' for variant in ('adam', 'adagrad', 'dice', 'l2')),
  *('vgg_unet:epfl,cpu', 'vgg_unet:lucchipp', 'vgg_unet:lucchipp,train=0:8,validation=8:12'),
  # seget
  *(f'seget:{data}' for data in ('mts', 'centriole', 'granules', 'golgi', 'mitochondria', 'vnc')),
  *(f'seget:synapse,network={n}' for n in ('deeplabv3plus_vgg', 'unet', 'fcn8s', 'segnet')),
  'seget:synapse,cpu',
  # emnet
  *('emnet:epfl,single', 'emnet:epfl,fraction=0.3', 'emnet:epfl,cpu', 'emnet:lucchipp'),
  'emnet:lucchipp,train=0:24,validation=24:32',
  *(f'emnet:epfl,network={n}' for n in ('unet3d', 'unet', 'cheng2d', 'cheng3d', 'xiao3d')),
  'emnet:epfl,network=casser_unet',
  # rescrnet
  *('rescrnet:muscle', 'rescrnet:superalloy', 'rescrnet:rat_liver,filters=8,blocks=3,lstm=2'),
  *('rescrnet:rat_liver,network=resunet', 'rescrnet:muscle,network=resunet'),
)

SIZE = (40, 48)  # of sections; patches of 32 fit
# What the folders of a recipe are called, and the values of their labels.
FOLDERS = {
  'pmcanet:cardiac': (('train', 'val', 'test'), (0, 255)),
  'pmcanet:sem_material': (('train', 'val', 'test'), (0, 1, 2)),
  'pmcanet:superalloy': (('train', 'val', 'test'), (0, 1, 2)),
  'pmcanet:cdeep3m': (('training', 'validation'), (0, 1)),
  'seget:mitochondria': (('training', 'validation'), (0, 1)),
  'rescrnet:rat_liver': (('train', 'validation'), (0, 1, 2)),
  'rescrnet:muscle': (('train', 'validation'), (0, 1, 2, 3)),
  'rescrnet:superalloy': (('train', 'val', 'test'), (0, 1, 2)),
}
STRUCTURES = ('synapse', 'mts', 'centriole', 'granules', 'golgi')


def layout(spec: str) -> str | None:
  """Which data the spec reads, as 'FILE:DATA'; None for those that need no files."""
  name, _, arg = spec.partition(':')
  if name in ('tiny', 'phantom'):
    return None
  if name == 'unet':
    return 'pmcanet:isbi2012'
  word = arg.partition(',')[0]
  found = f'{name}:{word}' if word else next(s for s in FIRST if s.startswith(f'{name}:'))
  shared = {'vgg_unet:epfl': 'epfl', 'emnet:epfl': 'epfl'}
  shared |= {'vgg_unet:lucchipp': 'lucchipp', 'emnet:lucchipp': 'lucchipp'}
  shared |= {f'seget:{structure}': 'ctl' for structure in STRUCTURES}
  return shared.get(found, found)


def load(spec: str, root: Path) -> tuple[str, Config]:
  """The spec with its `root`, and the configuration."""
  if layout(spec) is None:
    return spec, config_io.load(spec)
  full = f'{spec},root={root}' if ':' in spec else f'{spec}:root={root}'
  return full, config_io.load(full)


def write_data(which: str, root: Path) -> None:
  """Writes the data of `layout`."""
  if which == 'pmcanet:isbi2012':
    image, label = phantom.make_volume(shape=(30, *SIZE), seed=0)
    data_support.write_stack(root / 'train-volume.tif', image)
    data_support.write_stack(root / 'train-labels.tif', _values(label != 1, (0, 255)))
  elif which == 'epfl':
    for name, sections in (('training', 165), ('testing', 8)):
      image, label = phantom.make_volume(shape=(sections, *SIZE), seed=sections)
      data_support.write_stack(root / f'{name}.tif', image)
      data_support.write_stack(root / f'{name}_groundtruth.tif', _values(label > 0, (0, 255)))
  elif which == 'lucchipp':
    for name, sections in (('train', 165), ('test', 8)):
      _write_folders(root / name, sections, (0, 255))
  elif which == 'ctl':
    image, label = phantom.make_volume(shape=(10, *SIZE), seed=0)
    data_support.write_stack(root / 'image.tif', image)
    for structure in STRUCTURES:
      data_support.write_stack(root / f'{structure}.tif', _values(label > 0, (0, 255)))
  elif which == 'seget:vnc':
    _write_folders(root, 16, (0, 255), labels='mitochondria')
  else:
    folders, values = FOLDERS[which]
    for name in folders:
      _write_folders(root / name, 3, values, colour=which == 'rescrnet:muscle')


def _values(label: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
  """Class indices as the published files write them; two classes are 0 and all others."""
  indices = np.minimum(label, len(values) - 1).astype(np.uint8)
  if len(values) == 4:  # the phantom has three classes
    indices[:, : SIZE[0] // 4] = 3
  return np.array(values, np.uint8)[indices]


def _write_folders(
  root: Path,
  sections: int,
  values: tuple[int, ...],
  *,
  labels: str = 'labels',
  colour: bool = False,
) -> None:
  """Images and labels, PNG for PNG; other tissue in every folder."""
  image, label = phantom.make_volume(shape=(sections, *SIZE), seed=sum(map(ord, root.name)))
  image = np.stack([image, 255 - image, image], axis=-1) if colour else image
  for name, array in (('images', image), (labels, _values(label, values))):
    data_support.write_folder(root / name, {f'{i:03d}': a for i, a in enumerate(array)})


# Options that leave every part of a network in place but make it small.
NARROW = {
  'segmenter': {'depth': 2, 'grid': (2, 2)},
  'segvit': {'depth': 2, 'taps': (0, 1), 'decoder_layers': 1, 'grid': (2, 2)},
  'rescrnet': {'conv_blocks': 2, 'kernel_sizes': (3, 3, 3)},
}


def short_run(config: Config, cache: Path) -> list[str]:
  """Overrides: a narrow network, small patches, two steps, one evaluation."""
  name = config.model.name
  volume = len(config.data.patch) == 3
  side = 64 if name == 'pidnet' else 32  # its stride
  patch = (16, 16, 16) if volume else (side, side)
  options = {'width': 1 / 16} | NARROW.get(name, {})
  overrides = {f'model.options.{k}': v for k, v in options.items()}
  overrides |= {'data.patch': patch, 'predict.tile': patch, 'data.threads': 1}
  overrides |= {'train.steps': 2, 'train.batch_size': 2, 'train.log_every': 1}
  overrides |= {'train.eval_every': 2, 'train.checkpoint_every': 2}
  overrides |= {'run.report': 'false', 'run.tensorboard': 'false', 'run.target_cache': cache}
  if config.data.sampling.stride:
    overrides |= {'data.sampling.stride': (16, 16)}
  for split in ('train', 'validation', 'test'):
    if any(source.phantom for source in getattr(config.data, split)):
      overrides[f'data.{split}'] = '[{"phantom":{"count":2,"size":[64,64]}}]'
  return [f'--config.{key}={value}' for key, value in overrides.items()]
