"""SegET on electron tomograms: one binary network per structure, and the networks it is compared
with.

    python -m emseg_jax.main --config=seget:synapse,root=DIR --workdir=runs/seget_synapse

STRUCTURE, the first word of the argument: synapse, mts, centriole, granules, golgi. DIR holds
image.tif (76 slices of 2048 x 2048, 8 bit) and a mask STRUCTURE.tif of the same size, 0 and not 0
written as 0 and 255. Every fifth slice validates and is, as in the paper, also what is scored: the
number is optimistic. Five runs become one map of all structures by --mode=fuse.

Stand-ins that are public: mitochondria (DIR: training and validation with images and labels, as in
CDeep3M) and vnc (DIR: images and mitochondria of the Drosophila ventral nerve cord, sections 0-11
and 12-15).

Then `network=` deeplabv3plus_vgg, unet, fcn8s, segnet (default seget; their widths are not stated
in the paper, half is taken) and `cpu` (half of the width).

BCE with adaptive foreground weights + Jaccard distance + 1e-5 of the squared kernels; Adam with
Keras' time decay; patches of 512 every 256 voxels, those with foreground repeated for centriole and
Golgi; the rate is halved and training ends when the validation mIoU stalls. An epoch is 245 steps.
Full size on one GPU; not yet run. Reduced runs on two CPU cores: docs/results.md.
"""

import dataclasses

from emseg_jax.config import (
  Augment,
  Config,
  Loss,
  LossTerm,
  Model,
  Optim,
  Run,
  Sampling,
  Source,
  Train,
  Weighting,
  parse_arg,
  pick,
)
from emseg_jax.config.published import Published, folders, stacks

EPOCH = 245  # 60 slices of 7 x 7 patches, batches of 12


@dataclasses.dataclass(frozen=True)
class Structure:
  """One row of the paper's table of settings; `cap` bounds the foreground weight."""

  learning_rate: float
  decay: float
  epochs: int
  stop: int
  plateau: int
  cap: float | None = None
  copies: int = 1


STRUCTURES = {
  'synapse': Structure(1e-4, 1e-6, 38, stop=8, plateau=3),
  'mts': Structure(1e-3, 1e-5, 300, stop=8, plateau=3, cap=2000.0),
  'centriole': Structure(2e-3, 1e-6, 300, stop=10, plateau=3, cap=2000.0, copies=4),
  'granules': Structure(2e-3, 1e-5, 60, stop=5, plateau=2),
  'golgi': Structure(2e-3, 1e-5, 124, stop=5, plateau=2, cap=1000.0, copies=2),
}
STAND_INS = ('mitochondria', 'vnc')  # trained as granules are
# Mean IoU by structure.
PUBLISHED = {
  'seget': (0.9322, 0.7676, 0.8541, 0.9475, 0.8687),
  'deeplabv3plus_vgg': (0.9132, 0.6933, 0.7280, 0.9163, 0.7171),
  'unet': (0.6765, 0.6616, 0.8366, 0.9096, 0.8020),
  'fcn8s': (0.8469, 0.6690, 0.8287, 0.8011, 0.7081),
  'segnet': (0.8164, 0.5817, 0.8060, 0.8576, 0.7535),
}
OPTIONS = {
  'seget': {},
  'deeplabv3plus_vgg': {},
  'unet': {'width': 0.5, 'norm': 'batch'},
  'fcn8s': {'width': 0.5, 'fc_channels': 512, 'fc_kernel': 3, 'norm': 'batch'},
  'segnet': {'width': 0.5},
}


def get_config(arg: str = '') -> Config:
  """See the text above for `arg`."""
  options = parse_arg(arg, choices=(*STRUCTURES, *STAND_INS), root='', network='seget', cpu=False)
  name, network = options['choice'], options['network']
  fields = dict(pick(arg, OPTIONS, network))
  if options['cpu']:
    fields['width'] = 0.5 * fields.get('width', 1.0)
  settings = STRUCTURES.get(name, STRUCTURES['granules'])
  data = _data(name, options['root'] or f'data/{"ctl" if name in STRUCTURES else name}')
  adaptive = Weighting(name='adaptive', options={'cap': settings.cap} if settings.cap else {})
  published = dict(zip(STRUCTURES, PUBLISHED[network], strict=True))
  return Config(
    task=data.task(activation='sigmoid'),
    data=data.data(
      normalisation='scale',
      patch=(512, 512),
      sampling=Sampling(kind='grid', stride=(256, 256), positive_copies=settings.copies),
    ),
    augment=Augment(flip='off', rotate90=False),
    model=Model(name=network, options=fields),
    loss=Loss(
      terms={
        'bce': LossTerm(weighting=adaptive, options={'normalise': 'voxels'}),
        'jaccard': LossTerm(options={'smooth': 1.0, 'over': 'batch'}),
        'l2': LossTerm(weight=1e-5, options={'pattern': 'kernel$'}),
      }
    ),
    optim=Optim(
      optimizer='adam',
      learning_rate=settings.learning_rate,
      epsilon=1e-7,  # Keras'
      weight_decay=0.0,
      schedule='time',
      decay_factor=settings.decay,
      plateau_factor=0.5,
      plateau_patience=settings.plateau,
    ),
    train=Train(
      steps=EPOCH * settings.epochs,
      batch_size=12,
      log_every=49,
      eval_every=EPOCH,
      checkpoint_every=EPOCH,
      early_stop=settings.stop,
    ),
    run=Run(
      published={'miou': published[name]} if name in published else {},
      protocol='scored on the validation slices' if name in published else 'stand-in data',
    ),
  )


def _data(name: str, root: str) -> Published:
  if name == 'mitochondria':
    parts = folders(root, 'training'), folders(root, 'validation')
    return Published(('background', 'mitochondrion'), {0: 0, 1: 1}, *parts)
  if name == 'vnc':
    images, labels = f'{root}/images', f'{root}/mitochondria'
    parts = stacks(images, labels, '0:12'), stacks(images, labels, '12:16')
    return Published(('background', 'mitochondrion'), {0: 0, 255: 1}, *parts)

  def every_fifth(first: int) -> tuple[Source, ...]:
    return stacks(f'{root}/image.tif', f'{root}/{name}.tif', f'{first}::5')

  train = tuple(source for first in (1, 2, 3, 4) for source in every_fifth(first))
  return Published(('background', name), {0: 0, 255: 1}, train, every_fifth(0))
