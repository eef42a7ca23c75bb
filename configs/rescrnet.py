"""Res-CR-Net on small sets of micrographs, and the residual U-Net that its paper compares it with.

    python -m emseg_jax.main --config=rescrnet:rat_liver,root=DIR --workdir=runs/rescrnet_liver

DATA, the first word of the argument; DIR holds train and validation, each with images and labels:
  rat_liver   EM, 8 and 4 images of 262 x 400: other 0, nucleus 1, mitochondrion 2
  muscle      fluorescence, 10 and 6 images of 300 x 300 in colour; four classes 0-3
  superalloy  a public stand-in: NASA's Ni superalloy, 10 and 4 images of 512 x 512 (train and val)

Then `network=resunet`, `filters=16`, `blocks=6`, `lstm=1`.

Tanimoto with complement under contour weights; Adam 1e-3; all training images in one batch; 90
epochs of 15 steps, ended when the validation does not improve over 60 of them; rotation, shear,
shift, zoom and flips with mirrored borders. The authors choose the checkpoint by the weighted loss
of the validation images, here it is the unweighted Tanimoto coefficient. On one GPU; not yet run.
Reduced runs on two CPU cores: docs/results.md.
"""

from emseg_jax.config import (
  Augment,
  Config,
  Eval,
  Loss,
  LossTerm,
  Model,
  Optim,
  Predict,
  Run,
  Train,
  Weighting,
  parse_arg,
  pick,
)
from emseg_jax.config.published import Published, folders
from emseg_jax.errors import ConfigError

EPOCH = 15
SETS = {
  'rat_liver': (('other', 'nucleus', 'mitochondrion'), (262, 400), 8, 1),
  'muscle': (('background', 'nuclei', 'fibre', 'border'), (300, 300), 10, 3),
  'superalloy': (('matrix', 'secondary', 'tertiary'), (256, 256), 8, 1),
}
STANDARD = {'filters': '16', 'blocks': '6', 'lstm': '1'}
PUBLISHED = {
  'rat_liver': {'soft/dice': 0.899, 'soft/micro/iou': 0.859, 'soft/tanimoto': 0.916},
  'muscle': {'soft/dice': 0.888, 'soft/micro/iou': 0.844, 'soft/tanimoto': 0.907},
}


def get_config(arg: str = '') -> Config:
  """See the text above for `arg`."""
  options = parse_arg(
    arg,
    choices=tuple(SETS),
    root='',
    network='rescrnet',
    **STANDARD,
  )
  name, network = options['choice'], options['network']
  changed = any(options[key] != value for key, value in STANDARD.items())
  if changed and network != 'rescrnet':
    raise ConfigError(f'--config=...:{arg}: {", ".join(STANDARD)} are for network=rescrnet only')
  _, size, batch_size, channels = SETS[name]
  data = _data(name, options['root'] or f'data/{name}')
  fields = pick(
    arg,
    {
      'rescrnet': {
        'filters': int(options['filters']),
        'conv_blocks': int(options['blocks']),
        'lstm_blocks': int(options['lstm']),
      },
      'resunet': {'bridge': 'residual'},
    },
    network,
  )
  return Config(
    task=data.task(),
    data=data.data(normalisation='scale', channels=channels, patch=size),
    augment=Augment(
      flip='yx',
      rotate90=False,
      rotate=90.0,
      shear=15.0,
      shift=0.1,
      resize=(0.9, 1.1),
      fill='reflect',
    ),
    model=Model(name=network, options=fields),
    loss=Loss(terms={'tanimoto': LossTerm(weighting=Weighting(name='contour'))}),
    optim=Optim(
      optimizer='adam', learning_rate=1e-3, epsilon=1e-7, weight_decay=0.0, schedule='constant'
    ),
    train=Train(
      steps=90 * EPOCH,
      batch_size=batch_size,
      log_every=EPOCH,
      eval_every=EPOCH,
      checkpoint_every=EPOCH,
      early_stop=60,
    ),
    eval=Eval(best='soft/tanimoto', metrics=('soft',)),
    predict=Predict(tile=size),
    run=Run(
      published=PUBLISHED.get(name, {}) if network == 'rescrnet' and not changed else {},
      protocol='stand-in data' if name == 'superalloy' else '',
    ),
  )


def _data(name: str, root: str) -> Published:
  classes, stand_in = SETS[name][0], name == 'superalloy'
  return Published(
    classes,
    {k: k for k in range(len(classes))},
    train=folders(root, 'train'),
    validation=folders(root, 'val' if stand_in else 'validation'),
    test=folders(root, 'test') if stand_in else (),
  )
