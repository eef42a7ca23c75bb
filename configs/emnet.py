"""EM-Net with hierarchical view-ensemble convolutions and its centreline task, and the networks its
paper compares it with, on the EPFL hippocampus.

    python -m emseg_jax.main --config=emnet:epfl,root=DIR --workdir=runs/emnet_epfl

DATA, the first word of the argument, and what DIR holds:
  epfl      training.tif, training_groundtruth.tif, testing.tif, testing_groundtruth.tif
  lucchipp  train and test with images and labels: the Lucchi++ relabelling of the same volume, or
            part of it; `train=0:149` and `validation=149:165` say which training sections

Then `single` (no centreline task), `fraction=0.3` (the first share of the training sections, for
the curve of limited annotation), `network=` unet3d, unet, cheng2d, cheng3d, xiao3d, casser_unet
(default emnet_hvec) and `cpu` (a quarter of the features).

0.7 soft Jaccard of the foreground + 0.3 squared error of the centreline proximity; Adam 1e-4 with
coupled decay 1e-5, x 0.9 every 15 epochs (2880 steps, an epoch being 384 patches of 40 x 136 x 136
in batches of 2); z-scored volumes; a third of the patches random where there is foreground, a third
cut along another axis. The paper trains until stopped by hand; 30,000 steps are taken. The test
stack takes no part in choosing the checkpoint, in the authors' program it does. 2D networks see
single sections, Cheng's, Xiao's and Casser's with their own optimisers. Full size on one GPU; not
yet run. Reduced runs on two CPU cores: docs/results.md.
"""

from typing import Any

from emseg_jax.config import (
  Augment,
  Config,
  Loss,
  LossTerm,
  Model,
  Optim,
  Run,
  Sampling,
  Train,
  parse_arg,
  pick,
)
from emseg_jax.config.published import Published, stacks
from emseg_jax.errors import ConfigError

# Dice and Jaccard of the foreground on the test stack. Casser's network is not in the paper.
PUBLISHED = {
  'emnet_hvec': (0.946, 0.897),
  'single': (0.941, 0.888),
  'xiao3d': (0.947, 0.900),
  'cheng3d': (0.941, 0.889),
  'unet3d': (0.935, 0.878),
  'cheng2d': (0.928, 0.865),
  'unet': (0.915, 0.844),
}
JACCARD = {'smooth': 1e-5, 'over': 'batch'}
PATCHES = {
  'emnet_hvec': (40, 136, 136),
  'unet3d': (40, 136, 136),
  'cheng3d': (96, 128, 128),
  'xiao3d': (20, 256, 256),
  'unet': (256, 256),
  'cheng2d': (256, 256),
  'casser_unet': (512, 512),
}


def get_config(arg: str = '') -> Config:
  """See the text above for `arg`."""
  options = parse_arg(
    arg,
    choices=('epfl', 'lucchipp'),
    root='',
    network='emnet_hvec',
    fraction='1',
    train='0:149',
    validation='149:165',
    single=False,
    cpu=False,
  )
  network = options['network']
  patch = pick(arg, PATCHES, network)
  if options['single'] and network != 'emnet_hvec':
    raise ConfigError(f'--config=...:{arg}: single is for network=emnet_hvec only')
  data = _data(options['choice'], options)
  multi_task = network == 'emnet_hvec' and not options['single']
  batch_size, steps, optim = _schedule(network)
  volume = len(patch) == 3
  return Config(
    task=data.task(),
    data=data.data(
      normalisation='per_volume',
      patch=patch,
      sampling=Sampling(
        kind='tiles', random_share=0.3, min_foreground=1 / 80, planes_share=0.3 if volume else 0.0
      ),
    ),
    augment=Augment(rotate=90.0 if network == 'emnet_hvec' else 0.0, brightness=0.2, contrast=0.2),
    model=Model(name=network, options=_model_options(network, multi_task, options['cpu'])),
    loss=_loss(network, multi_task),
    optim=optim,
    train=Train(
      steps=steps,
      batch_size=batch_size,
      log_every=50,
      eval_every=steps // 25,
      checkpoint_every=steps // 25,
    ),
    run=Run(
      published=_published(network, options['single'], float(options['fraction'])),
      protocol=''
      if options['choice'] == 'epfl'
      else 'Lucchi++ labels instead of the original ones',
    ),
  )


def _data(name: str, options: dict[str, str]) -> Published:
  root = options['root'] or f'data/{name}'
  if name == 'epfl':
    train = f'{root}/training.tif', f'{root}/training_groundtruth.tif'
    test = f'{root}/testing.tif', f'{root}/testing_groundtruth.tif'
  else:
    train, test = ((f'{root}/{s}/images', f'{root}/{s}/labels') for s in ('train', 'test'))
  return Published(
    ('background', 'mitochondrion'),
    {0: 0, 255: 1},
    train=stacks(*train, options['train'], fraction=float(options['fraction'])),
    validation=stacks(*train, options['validation']),
    test=stacks(*test),
  )


def _model_options(network: str, multi_task: bool, cpu: bool) -> dict[str, Any]:
  options: dict[str, Any] = {'width': 0.25} if cpu else {}
  if network == 'emnet_hvec' and not multi_task:
    options['centreline'] = False
  return options


def _loss(network: str, multi_task: bool) -> Loss:
  if network == 'emnet_hvec':
    terms = {'jaccard': LossTerm(weight=0.7 if multi_task else 1.0, options=JACCARD)}
    if multi_task:
      terms['mse'] = LossTerm(weight=0.3)
    return Loss(terms=terms)
  if network == 'xiao3d':
    return Loss(terms={'ce': LossTerm()}, aux_weight={'level1': 0.15, 'level2': 0.3})
  if network == 'cheng2d':
    return Loss(terms={'jaccard': LossTerm(options={'smooth': 1.0, 'over': 'batch'})})
  return Loss(terms={'ce': LossTerm()})


def _schedule(network: str) -> tuple[int, int, Optim]:
  """Batch size, steps and optimiser."""
  if network in ('cheng2d', 'cheng3d'):
    rate, batch, steps, at = (
      (0.05, 24, 4000, (2000, 3000)) if network == 'cheng2d' else (0.1, 3, 5450, (2720, 4080))
    )
    optim = Optim(
      learning_rate=rate, weight_decay=1e-4, schedule='step', decay_at=at, decay_factor=0.1
    )
    return batch, steps, optim
  adam = {'optimizer': 'adam', 'weight_decay': 0.0, 'schedule': 'constant'}
  if network == 'xiao3d':
    return 2, 30_000, Optim(learning_rate=1e-4, **adam)
  if network == 'casser_unet':
    return 4, 100_000, Optim(learning_rate=5e-4, **adam)
  optim = Optim(
    optimizer='adam',
    learning_rate=1e-4,
    weight_decay=1e-5,
    schedule='step',
    decay_every=2880,
    decay_factor=0.9,
  )
  return 2 if network == 'emnet_hvec' or network == 'unet3d' else 16, 30_000, optim


def _published(network: str, single: bool, fraction: float) -> dict[str, float]:
  key = 'single' if single else network
  if fraction == 0.3 and key == 'emnet_hvec':
    return {'iou/mitochondrion': 0.867}
  if fraction != 1 or key not in PUBLISHED:
    return {}
  return dict(zip(('dice/mitochondrion', 'iou/mitochondrion'), PUBLISHED[key], strict=True))
