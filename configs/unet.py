"""A narrow U-Net that a two-core CPU trains in half an hour.

    python -m emseg_jax.main --config=unet:root=DIR --workdir=runs/unet_isbi2012

DIR holds `train-volume.tif` and `train-labels.tif` of the ISBI 2012 challenge, of whose labelled
sections 0-17 train and 18-23 validate. docs/results.md has the measured scores.
"""

from emseg_jax.config import (
  Augment,
  Config,
  Data,
  Model,
  Optim,
  Source,
  Task,
  Train,
  parse_arg,
)


def get_config(arg: str = '') -> Config:
  """`root=DIR` says where the two stacks are; default data/isbi2012."""
  root = parse_arg(arg, root='data/isbi2012')['root']

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
      patch=(128, 128),
    ),
    augment=Augment(resize=(0.8, 1.25), brightness=0.3, contrast=0.3, gamma=0.3, noise=0.1),
    model=Model(name='unet', options={'width': 0.375, 'norm': 'batch'}),
    optim=Optim(optimizer='adamw', learning_rate=2e-3, weight_decay=1e-3),
    train=Train(steps=1000, batch_size=8, eval_every=200, checkpoint_every=200),
  )
