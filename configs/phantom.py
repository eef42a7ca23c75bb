"""A narrow U-Net on synthetic electron-microscopy sections: nothing to download.

    python -m emseg_jax.main --config=phantom --workdir=runs/phantom

Three classes (cytoplasm, membrane, mitochondrion). `make demo` runs it; docs/results.md has time
and scores.
"""

from emseg_jax.config import (
  Augment,
  Config,
  Data,
  Model,
  Optim,
  Phantom,
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
      train=(Source(phantom=Phantom(count=24, seed=1)),),
      validation=(Source(phantom=Phantom(count=4, seed=2)),),
      test=(Source(phantom=Phantom(count=4, seed=3)),),
      patch=(96, 96),
    ),
    augment=Augment(contrast=0.2, brightness=0.2, noise=0.1),
    model=Model(name='unet', options={'width': 0.25, 'norm': 'batch'}),
    optim=Optim(optimizer='adamw', learning_rate=2e-3, weight_decay=1e-4),
    train=Train(steps=400, batch_size=8, eval_every=100, checkpoint_every=100),
  )
