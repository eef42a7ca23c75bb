"""VGG-UNet on the EPFL hippocampus, with the variants of its report.

    python -m emseg_jax.main --config=vgg_unet:epfl,root=DIR --workdir=runs/vgg_unet_epfl

DATA, the first word of the argument, and what DIR holds:
  epfl      training.tif, training_groundtruth.tif, testing.tif, testing_groundtruth.tif
  lucchipp  train and test with images and labels: the Lucchi++ relabelling of the same volume, or
            part of it; `train=0:149` and `validation=149:165` say which training sections

Then `variant=` adam (default), adagrad, dice, l2 and `cpu` (a quarter of the width). Pretrained
Keras weights: --config.model.init_from=FILE.h5 --config.data.normalisation=caffe.

25 epochs of 60 steps; random crops of 256, batch 16, flips and quarter turns are not in the report,
nor is the rate of Adagrad, for which Keras' default stands. The report's 95.13 % accuracy says
little where 94 % of the voxels are background; its 73.74 % IoU is compared with the mean IoU here.
Full size on one GPU; not yet run. Reduced runs on two CPU cores: docs/results.md.
"""

from emseg_jax.config import (
  Augment,
  Config,
  Loss,
  LossTerm,
  Model,
  Optim,
  Run,
  Train,
  parse_arg,
  pick,
)
from emseg_jax.config.published import Published, stacks

CLASSES, MAPPING = ('background', 'mitochondrion'), {0: 0, 255: 1}
DICE = LossTerm(
  options={'exponent': 1, 'smooth': 1.0, 'include_background': False, 'over': 'batch'}
)
# The last two 3x3 convolutions.
L2 = LossTerm(loss='l2', weight=1e-4, options={'pattern': '^up1/.*kernel$'})
LOSSES = {
  'adam': {'bce': LossTerm()},
  'adagrad': {'bce': LossTerm()},
  'dice': {'dice': DICE},
  'l2': {'bce': LossTerm(), 'l2': L2},
}
# Accuracy on the test stack.
PUBLISHED = {
  'adam': {'accuracy': 0.9513, 'miou': 0.7374},
  'adagrad': {'accuracy': 0.9346},
  'dice': {'accuracy': 0.9134},
  'l2': {'accuracy': 0.9424},
}


def get_config(arg: str = '') -> Config:
  """See the text above for `arg`."""
  options = parse_arg(
    arg,
    choices=('epfl', 'lucchipp'),
    root='',
    variant='adam',
    train='0:149',
    validation='149:165',
    cpu=False,
  )
  name, variant = options['choice'], options['variant']
  terms = pick(arg, LOSSES, variant)
  root = options['root'] or f'data/{name}'
  if name == 'epfl':
    train = f'{root}/training.tif', f'{root}/training_groundtruth.tif'
    test = f'{root}/testing.tif', f'{root}/testing_groundtruth.tif'
  else:
    train, test = ((f'{root}/{s}/images', f'{root}/{s}/labels') for s in ('train', 'test'))
  data = Published(
    CLASSES,
    MAPPING,
    train=stacks(*train, options['train']),
    validation=stacks(*train, options['validation']),
    test=stacks(*test),
  )
  adagrad = variant == 'adagrad'
  return Config(
    task=data.task(activation='sigmoid'),
    data=data.data(normalisation='scale', channels=3, patch=(256, 256)),
    augment=Augment(),
    model=Model(name='vgg_unet', options={'width': 0.25} if options['cpu'] else {}),
    loss=Loss(terms=terms),
    optim=Optim(
      optimizer='adagrad' if adagrad else 'adam',
      learning_rate=1e-3 if adagrad else 1e-4,
      epsilon=1e-7,  # Keras'
      weight_decay=0.0,
      schedule='constant',
    ),
    train=Train(steps=1500, batch_size=16, log_every=20, eval_every=300, checkpoint_every=300),
    run=Run(
      published=PUBLISHED[variant],
      protocol='' if name == 'epfl' else 'Lucchi++ labels instead of the original ones',
    ),
  )
