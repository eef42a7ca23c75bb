"""Instances by affinities: a U-Net of volumes, or of sections, on files of your own.

    python -m emseg_jax.main --config=affinities:root=DIR --workdir=runs/cells

DIR holds `train-image.tif`, `train-gt.tif`, `test-image.tif` and `test-gt.tif`, as gala's small
volumes do; the labels are instance ids, 0 in the background. `--config.data.train` and others name
other files. `2d` before `root=` takes sections.
"""

from emseg_jax.config import (
  Augment,
  Config,
  Data,
  Loss,
  LossTerm,
  Model,
  Optim,
  Postprocess,
  Source,
  Task,
  Train,
  parse_arg,
)

NEAREST = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
FURTHER = ((2, 0, 0), (0, 5, 0), (0, 0, 5), (0, 9, 0), (0, 0, 9))  # help to learn, link nothing


def get_config(arg: str = '') -> Config:
  """`3d` (default) or `2d`; `root=DIR` says where the files are, default data/cells."""
  options = parse_arg(arg, choices=('3d', '2d'), root='data/cells')
  root, flat = options['root'], options['choice'] == '2d'
  offsets = NEAREST + FURTHER
  if flat:
    offsets = tuple(offset[1:] for offset in offsets if not offset[0])

  def source(name: str) -> Source:
    return Source(images=f'{root}/{name}-image.tif', labels=f'{root}/{name}-gt.tif')

  return Config(
    task=Task(activation='affinities', offsets=offsets),
    data=Data(
      train=(source('train'),),
      validation=(source('test'),),
      patch=(96, 96) if flat else (16, 64, 64),
    ),
    augment=Augment(brightness=0.2, contrast=0.2, noise=0.1),
    loss=Loss(terms={'affinity_bce': LossTerm(), 'dice': LossTerm()}),
    model=Model(name='unet' if flat else 'unet3d', options={'width': 0.375, 'norm': 'batch'}),
    optim=Optim(optimizer='adamw', learning_rate=2e-3, weight_decay=1e-3),
    train=Train(steps=1000, batch_size=8 if flat else 2),
    postprocess=Postprocess(
      threshold=0.5, instances='watershed', marker_threshold=0.9, marker_voxels=50
    ),
  )
