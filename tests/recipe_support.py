"""The shipped recipes: every argument they take, their data in small, options that make a run
short, and the numbers of their networks' parameters.

`SPECS` holds each choice, network and option of each file at least once. `write_data` writes what a
recipe finds in its `root`: the files, sections and label values of the published data, but small
and synthetic (`emseg_jax.data.phantom`).
"""

import itertools
from pathlib import Path

import affinity_support
import data_support
import numpy as np

from emseg_jax import config_io
from emseg_jax.config import Config
from emseg_jax.data import phantom

# One per file that `make test` trains; `unet`, `tiny` and `phantom`'s network in other tests.
FIRST = (
  'pmcanet:isbi2012',
  'vgg_unet:epfl',
  'seget:synapse',
  'emnet:epfl',
  'rescrnet:rat_liver',
)
PMCANET_RIVALS = ('deeplabv3plus', 'emnet_khadangi', 'segmenter', 'segvit', 'pidnet')
SPECS = (
  *FIRST,
  *('unet', 'tiny', 'phantom', 'pmcanet', 'vgg_unet', 'seget', 'emnet', 'rescrnet'),
  # pmcanet: data, networks for two and three classes, ablations, splits.
  *(f'pmcanet:{data}' for data in ('cardiac', 'sem_material', 'superalloy', 'cdeep3m')),
  *(f'pmcanet:isbi2012,network={network}' for network in PMCANET_RIVALS),
  *(f'pmcanet:sem_material,network={network}' for network in PMCANET_RIVALS),
  *(f'pmcanet:sem_material,attention={word}' for word in ('none', 'se', 'eca')),
  *(f'pmcanet:sem_material,fusion={word}' for word in ('add', 'multiply')),
  *(f'pmcanet:sem_material,{words}' for words in ('pool=max', 'pyramid=off')),
  'pmcanet:sem_material,pool=max,pyramid=off',
  *(f'pmcanet:sem_material,ce=1,dice={factor}' for factor in (0, 1, 2, 4, 5)),
  *(f'pmcanet:isbi2012,{words}' for words in ('cpu', 'sections=24', 'fold=0/5', 'fold=4/5')),
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
  *('affinities', 'affinities:3d', 'affinities:2d'),
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
  if name == 'affinities':
    return name
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
  elif which == 'affinities':
    for seed, name in enumerate(('train', 'test')):
      image, ids = affinity_support.make_cells((16, *SIZE), seed=seed)
      data_support.write_stack(root / f'{name}-image.tif', image)
      data_support.write_stack(root / f'{name}-gt.tif', ids)
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
  if config.optim.warmup_steps:
    overrides['optim.warmup_steps'] = 1
  if config.data.sampling.stride:
    overrides |= {'data.sampling.stride': (16, 16)}
  for split in ('train', 'validation', 'test'):
    if any(source.phantom for source in getattr(config.data, split)):
      overrides[f'data.{split}'] = '[{"phantom":{"count":2,"size":[64,64]}}]'
  return [f'--config.{key}={value}' for key, value in overrides.items()]


def unet(first: int, classes: int, *, norm: bool = True) -> int:
  """Parameters of a U-Net of f, 2f, 4f, 8f and 16f channels on one, by hand."""
  c = [first * 2**level for level in range(5)]
  down = [(1, c[0]), *itertools.pairwise(c), *((n, n) for n in c)]
  up = [(2 * n, n) for n in c[:4]] + [(n, n) for n in c[:4]]
  convolutions = sum(9 * i * o + o + 2 * o * norm for i, o in down + up)
  return convolutions + sum(4 * 2 * n * n + n for n in c[:4]) + (first + 1) * classes


def unet3d(share: float, classes: int) -> int:
  """Parameters of a 3D U-Net with batch norm and a share of the paper's channels, by hand."""
  wide = [round(share * n) for n in (32, 64, 128, 256, 512)]
  down = [(1, wide[0]), *itertools.pairwise(wide)]
  same = [(n, n) for n in wide[1:4]]  # the first of two convolutions from the second level on
  up = [(n + m, n) for n, m in itertools.pairwise(wide[1:])] + [(n, n) for n in wide[1:4]]
  convolutions = sum(27 * i * o + o + 2 * o for i, o in down + same + up)
  return convolutions + sum(8 * n * n + n for n in wide[2:]) + (wide[1] + 1) * classes


def rescrnet(
  channels: int, classes: int, *, filters: int = 16, blocks: int = 6, lstm: int = 1
) -> int:
  """Parameters of Res-CR-Net with branches of 3x3, 5x5 and 7x7, concatenated, by hand."""
  wide = 3 * filters

  def block(inputs: int) -> int:
    first = 83 * inputs + 3 * (inputs + 1) * filters + 2 * wide
    second = 83 * filters + 3 * (filters + 1) * filters
    return first + second + (inputs + 1) * wide + 2 * wide

  head = (wide + 1) * classes + (lstm - 1) * (classes + 1) * classes
  recurrent = 4 * (2 * 3 * classes * 4 + 4)
  return block(channels) + (blocks - 1) * (block(wide) + 2 * wide) + head + lstm * recurrent


PMCANET, PIDNET, KHADANGI = 32_791_292, 7_716_549, 33_827_209
SEGMENTER, SEGVIT = 102_383_620, 108_622_467 - 2 * 768  # of 512²; the latter without class token
GRID = (32**2 - 8**2) * 768  # positions that a patch of 128² has less
# Parameters of the papers' networks, as the papers or their authors' programs give them or as the
# sum over the layers; what differs with classes and channels is added by hand.
COUNTS = {
  'pmcanet:isbi2012': PMCANET,
  # A class more: 256 + 1 in the auxiliary head and 64 + 1.
  'pmcanet:sem_material': PMCANET + 322,
  # Squeeze and excitation 4·(2·256·16 + 256 + 16), ECA without norms; MAF is 4·(256 + 1).
  'pmcanet:sem_material,attention=se': 32_823_080 + 322,
  'pmcanet:sem_material,attention=eca': 32_789_244 + 322,
  'pmcanet:sem_material,attention=none': 32_788_196 + 322,
  'pmcanet:sem_material,fusion=add': PMCANET - 4 * 257 + 322,
  'pmcanet:sem_material,fusion=multiply': PMCANET - 4 * 257 + 322,
  'pmcanet:sem_material,pool=max': PMCANET + 322,
  'pmcanet:sem_material,pyramid=off': 31_214_570 + 322,
  'pmcanet:sem_material,pool=max,pyramid=off': 31_214_570 + 322,
  'pmcanet:isbi2012,network=deeplabv3plus': 43_576_788,
  'pmcanet:sem_material,network=deeplabv3plus': 43_577_558,
  # Two channels more; a head of 9·32·2c + 2c + 4c + (2c + 1)·c for c classes instead of 585.
  'pmcanet:isbi2012,network=emnet_khadangi': KHADANGI + 9 * 2 * 64 + 1_174 - 585,
  'pmcanet:sem_material,network=emnet_khadangi': KHADANGI + 9 * 2 * 64 + 1_767 - 585,
  'pmcanet:isbi2012,network=segmenter': SEGMENTER - GRID,
  'pmcanet:sem_material,network=segmenter': SEGMENTER + 768 + 2,
  'pmcanet:isbi2012,network=segvit': SEGVIT - GRID,
  'pmcanet:sem_material,network=segvit': SEGVIT + 384 + 385,
  'pmcanet:isbi2012,network=pidnet': PIDNET,
  'pmcanet:sem_material,network=pidnet': PIDNET + 2 * (128 + 1),
  'vgg_unet:epfl': 25_858_497,
  'seget:synapse': 2_960_905,
  'seget:synapse,network=deeplabv3plus_vgg': 12_675_057,
  'seget:synapse,network=unet': unet(32, 1),
  # Half of VGG with norms 3,683,808, fc6 590,592, fc7 66,304, three scores 643, transposed 288.
  'seget:synapse,network=fcn8s': 3_683_808 + 590_592 + 66_304 + 643 + 288,
  # Two channels and one class less than 7,367,718.
  'seget:synapse,network=segnet': 7_367_718 - 9 * 2 * 32 - (9 * 32 + 3),
  'emnet:epfl': 3_173_365,
  'emnet:epfl,single': 2_905_956,
  'emnet:epfl,network=unet3d': 19_073_730,
  'emnet:epfl,network=unet': 31_030_658,
  'emnet:epfl,network=cheng2d': 616_397,
  'emnet:epfl,network=cheng3d': 821_997,
  'emnet:epfl,network=xiao3d': 1_073_007,
  # A head of 9·16·4 + 4 + (4 + 1)·2 for two classes instead of 9·16·2 + 2 + (2 + 1).
  'emnet:epfl,network=casser_unet': 1_958_533 + 590 - 293,
  'rescrnet:rat_liver': 58_662,
  'rescrnet:muscle': 59_165,
  'rescrnet:rat_liver,filters=8,blocks=3,lstm=2': rescrnet(1, 3, filters=8, blocks=3, lstm=2),
  # 4,715,761 and a bridge of 66,304 with 3 channels and one class; 9·16 + 16 per channel.
  'rescrnet:rat_liver,network=resunet': 4_715_761 + 66_304 - 2 * 10 * 16 + 2 * 33,
  'rescrnet:muscle,network=resunet': 4_715_761 + 66_304 + 3 * 33,
  'unet': unet(24, 2),
  'affinities': unet3d(0.375, 8),
  'affinities:2d': unet(24, 6),
  'phantom': unet(16, 3),
  'tiny': unet(4, 3),
}
