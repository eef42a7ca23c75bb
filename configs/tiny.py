"""The smallest run that does everything: seconds on one CPU core. For smoke tests.

python -m emseg_jax.main --config=tiny --workdir=runs/tiny
"""

from emseg_jax.config import (
  Augment,
  Config,
  Data,
  Model,
  Optim,
  Phantom,
  Predict,
  Source,
  Task,
  Train,
)


def get_config(arg: str = '') -> Config:
  """`arg` is not used."""
  del arg
  return Config(
    task=Task(classes=('cytoplasm', 'membrane', 'mitochondrion')),
    data=Data(
      train=(Source(phantom=Phantom(count=3, size=(96, 96), seed=1)),),
      validation=(Source(phantom=Phantom(count=2, size=(80, 72), seed=2)),),
      patch=(32, 32),
      threads=1,
    ),
    augment=Augment(resize=(0.8, 1.25), contrast=0.2),
    model=Model(name='unet', options={'width': 0.0625, 'norm': 'batch'}),
    optim=Optim(learning_rate=0.02),
    train=Train(steps=20, batch_size=4, log_every=5, eval_every=10, checkpoint_every=5),
    predict=Predict(tile=(48, 48), batch_size=2),
  )
