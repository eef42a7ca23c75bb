"""PmcaNet and the networks that its paper compares it with, as the paper trains them (section 4).

    python -m emseg_jax.main --config=pmcanet:isbi2012,root=DIR --workdir=runs/pmcanet_isbi2012

DATA, the first word of the argument, and what DIR holds:
  isbi2012      train-volume.tif, train-labels.tif. The official test labels are not public, so the
                labelled sections are split: 0-17 train, 18-23 validate, 24-29 test; the paper's own
                split is not known. `sections=24` if only 24 are at hand, `fold=0/5` for k-fold.
  cardiac       train, val and test with images and labels: cardiac SEM of Glancy 2015, which the
                paper calls Kathuri; 96, 32 and 32 images of 1334 x 1334.
  sem_material  the same folders: 1248, 416 and 416 tiles of 2048 x 2048, three classes.
  superalloy    the same folders: NASA's Ni superalloy, a stand-in for sem_material.
  cdeep3m       training and validation: CDeep3M's mitochondria, a stand-in for cardiac.

Then, separated by commas: `network=` deeplabv3plus, emnet_khadangi, segmenter, segvit, pidnet
(default pmcanet); the ablations of tables 2 to 5: `attention=` none, se, eca, laca; `fusion=` add,
multiply, maf; `pool=` avg, max; `pyramid=` on, off; `ce=` and `dice=`, the two factors of the loss;
`cpu`: a quarter of the width, for a look on a CPU.

SGD 0.9, poly 0.9, weight decay 5e-4, CE + 3 Dice, random resize 0.5-2.0, crop, horizontal flip,
ImageNet statistics on three equal channels. The vision transformers diverge with that and keep
their own optimisers. Full size on one GPU; not yet run. At a quarter of the width on two CPU cores:
docs/results.md.
"""

from emseg_jax.config import (
  Augment,
  Config,
  Loss,
  LossTerm,
  Model,
  Optim,
  Predict,
  Run,
  Sampling,
  Train,
  parse_arg,
  pick,
)
from emseg_jax.config.published import Published, fold, folders, stacks
from emseg_jax.errors import ConfigError

# Accuracy and mean IoU of table 1: isbi2012, cardiac, sem_material.
PUBLISHED = {
  'pmcanet': ((0.8785, 0.7311), (0.9897, 0.8399), (0.9966, 0.6839)),
  'deeplabv3plus': ((0.7062, 0.4139), (0.9847, 0.7501), (0.9951, 0.4212)),
  'emnet_khadangi': ((0.8630, 0.6969), (0.9830, 0.7891), (0.9961, 0.5246)),
  'segmenter': ((0.8641, 0.7070), (0.9836, 0.7459), (0.9953, 0.4301)),
  'segvit': ((0.7688, 0.5891), (0.9846, 0.7482), (0.9962, 0.5668)),
  'pidnet': ((0.7218, 0.5383), (0.9792, 0.7614), (0.9964, 0.6273)),
}
# What tables 2 to 4 vary, the standard first.
WORDS = {
  'attention': ('laca', 'none', 'se', 'eca'),
  'fusion': ('maf', 'add', 'multiply'),
  'pool': ('avg', 'max'),
  'pyramid': ('on', 'off'),
}
# Mean IoU and accuracy of tables 2 to 5, on sem_material; table 5 has no accuracy.
ABLATED = {
  'attention=none': (0.6549, 0.9962),
  'attention=se': (0.6783, 0.9964),
  'attention=eca': (0.6751, 0.9964),
  'fusion=add': (0.6814, 0.9965),
  'fusion=multiply': (0.6794, 0.9965),
  'pool=max': (0.6674, 0.9965),
  'pyramid=off': (0.5585, 0.9961),
  'pool=max,pyramid=off': (0.5332, 0.9948),
  'dice=0': (0.5120,),
  'dice=1': (0.5568,),
  'dice=2': (0.4029,),
  'dice=4': (0.4416,),
  'dice=5': (0.3495,),
}
DATA = ('isbi2012', 'cardiac', 'sem_material', 'superalloy', 'cdeep3m')


def get_config(arg: str = '') -> Config:
  """See the text above for `arg`."""
  standard = {key: words[0] for key, words in WORDS.items()} | {'ce': '1', 'dice': '3'}
  options = parse_arg(
    arg,
    choices=DATA,
    root='',
    network='pmcanet',
    sections='30',
    fold='',
    **standard,
    cpu=False,
  )
  name, network = options['choice'], options['network']
  pick(arg, PUBLISHED, network)
  for key, words in WORDS.items():
    pick(arg, dict.fromkeys(words), options[key])
  ablation = ','.join(f'{k}={options[k]}' for k, v in standard.items() if options[k] != v)
  if ablation and network != 'pmcanet':
    raise ConfigError(f'--config=...:{arg}: {ablation} is for network=pmcanet only')
  if (options['fold'] or options['sections'] != '30') and name != 'isbi2012':
    raise ConfigError(f'--config=...:{arg}: sections and fold are for isbi2012 only')
  data = _data(name, options['root'] or f'data/{name}', options)
  small = name == 'isbi2012'
  patch = (128, 128) if small else (512, 512)
  steps = 20_000 if name in ('cardiac', 'cdeep3m') else 40_000
  return Config(
    task=data.task(),
    data=data.data(
      normalisation='imagenet',
      channels=3,
      patch=patch,
      sampling=Sampling(kind='balanced', tries=10, max_share=0.75),
    ),
    augment=Augment(resize=(0.5, 2.0), flip='x', rotate90=False, fill='ignore'),
    model=_model(network, patch, options),
    loss=_loss(network, options),
    optim=_optim(network, 0.01 if small else 0.005),
    train=Train(
      steps=steps,
      batch_size=16 if small else 8,
      log_every=50,
      eval_every=steps // 20,
      checkpoint_every=steps // 20,
    ),
    # ISBI's sections are predicted whole, larger images by windows of 512 with a stride of 341.
    predict=Predict(tile=(512, 512), overlap=0.25 if small else 1 / 3),
    run=Run(published=_published(name, network, ablation), protocol=_protocol(name)),
  )


def _data(name: str, root: str, options: dict[str, str]) -> Published:
  if name == 'isbi2012':
    images, labels = f'{root}/train-volume.tif', f'{root}/train-labels.tif'
    sections = int(options['sections'])
    train, validation = stacks(images, labels, '0:18'), stacks(images, labels, '18:24')
    test = stacks(images, labels, '24:30') if sections > 24 else ()
    if options['fold']:
      train, validation = fold(images, labels, sections=sections, text=options['fold'])
      test = ()
    return Published(('membrane', 'interior'), {0: 0, 255: 1}, train, validation, test)
  if name == 'cdeep3m':
    parts = folders(root, 'training'), folders(root, 'validation')
    return Published(('background', 'mitochondrion'), {0: 0, 1: 1}, *parts)
  parts = folders(root, 'train'), folders(root, 'val'), folders(root, 'test')
  if name == 'cardiac':
    return Published(('background', 'mitochondrion'), {0: 0, 255: 1}, *parts)
  classes = {
    'sem_material': ('matrix', 'MC', 'M23C6'),
    'superalloy': ('matrix', 'secondary', 'tertiary'),
  }
  return Published(classes[name], {0: 0, 1: 1, 2: 2}, *parts)


def _model(network: str, patch: tuple[int, int], options: dict[str, str]) -> Model:
  fields = {'width': 0.25} if options['cpu'] else {}
  if network in ('segmenter', 'segvit'):
    fields['grid'] = [patch[0] // 16, patch[1] // 16]
  if network == 'pmcanet':
    chosen = {key: options[key] for key in ('attention', 'fusion', 'pool')}
    fields |= {key: value for key, value in chosen.items() if value != WORDS[key][0]}
    fields |= {'bins': [1]} if options['pyramid'] == 'off' else {}
  return Model(name=network, options=fields)


def _loss(network: str, options: dict[str, str]) -> Loss:
  if network == 'pmcanet':
    factors = {'ce': float(options['ce']), 'dice': float(options['dice'])}
    terms = {key: LossTerm(weight=factor) for key, factor in factors.items() if factor}
    return Loss(terms=terms, aux_weight=0.4)
  if network == 'pidnet':
    terms = {
      'ohem_ce': LossTerm(),
      'boundary_bce': LossTerm(weight=20.0),
      'boundary_ce': LossTerm(),
    }
    return Loss(terms=terms, aux_weight=0.4)
  return Loss(terms={'atm' if network == 'segvit' else 'ce': LossTerm()}, aux_weight=0.4)


def _optim(network: str, learning_rate: float) -> Optim:
  if network == 'segmenter':  # mmsegmentation's
    return Optim(learning_rate=1e-3, weight_decay=0.0)
  if network == 'segvit':  # the authors'
    return Optim(
      optimizer='adamw',
      learning_rate=2e-5,
      weight_decay=0.01,
      groups={'^decoder/': 10.0},
      power=1.0,
      warmup_steps=1500,
      clip_norm=35.0,
    )
  return Optim(learning_rate=learning_rate, momentum=0.9, weight_decay=5e-4)


def _published(name: str, network: str, ablation: str) -> dict[str, float]:
  if ablation:
    scores = ABLATED.get(ablation, ()) if name == 'sem_material' else ()
    return dict(zip(('miou', 'accuracy'), scores, strict=False))
  if name not in ('isbi2012', 'cardiac', 'sem_material'):
    return {}
  accuracy, miou = PUBLISHED[network][('isbi2012', 'cardiac', 'sem_material').index(name)]
  return {'accuracy': accuracy, 'miou': miou}


def _protocol(name: str) -> str:
  if name == 'isbi2012':
    return "labelled sections split 18/6/6, the paper's split is unknown"
  return '' if name in ('cardiac', 'sem_material') else "stand-in data, not the paper's"
