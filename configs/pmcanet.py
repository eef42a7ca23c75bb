"""PmcaNet as its paper trains it (architectures and settings: section 4 of the paper).

    python -m emseg_jax.main --config=pmcanet:root=DIR --workdir=runs/pmcanet_isbi2012

SGD 0.9, poly 0.9, CE + 3 Dice, random resize 0.5-2.0, crop, horizontal flip, ImageNet statistics on
three equal channels. `cpu` (as in `pmcanet:root=DIR,cpu`) makes the network a quarter as wide, for
a look on a CPU. The official test labels of ISBI 2012 are not public, so the labelled sections are
split: 0-17 train, 18-23 validate; the paper's own split is not known.
"""

from emseg_jax.config import (
  Augment,
  Config,
  Data,
  Loss,
  LossTerm,
  Model,
  Optim,
  Source,
  Task,
  Train,
  parse_arg,
)


def get_config(arg: str = '') -> Config:
  """`root=DIR` says where train-volume.tif and train-labels.tif are; `cpu` narrows the network."""
  options = parse_arg(arg, root='data/isbi2012', cpu=False)
  root = options['root']

  def source(slices: str) -> Source:
    return Source(
      images=f'{root}/train-volume.tif', labels=f'{root}/train-labels.tif', slices=slices
    )

  return Config(
    task=Task(classes=('membrane', 'interior')),
    data=Data(
      train=(source('0:18'),),
      validation=(source('18:24'),),
      label_mapping={0: 0, 255: 1},
      normalisation='imagenet',
      channels=3,
      patch=(128, 128),
    ),
    augment=Augment(resize=(0.5, 2.0), flip='x', rotate90=False),
    model=Model(name='pmcanet', options={'width': 0.25} if options['cpu'] else {}),
    loss=Loss(terms={'ce': LossTerm(weight=1.0), 'dice': LossTerm(weight=3.0)}, aux_weight=0.4),
    optim=Optim(optimizer='sgd', learning_rate=0.01, momentum=0.9, weight_decay=5e-4),
    train=Train(
      steps=40_000, batch_size=16, log_every=50, eval_every=2_000, checkpoint_every=2_000
    ),
  )
