"""Sections on how is learnt: network, loss, optimiser, training."""

from typing import Annotated, Any, Literal

from pydantic import Field

from emseg_jax.config.base import BelowOne, NonNegative, Positive, Section

__all__ = ['Loss', 'LossTerm', 'Model', 'Optim', 'Train']


class Model(Section):
  """The network."""

  name: str = Field('unet', description='a name that --help lists')
  options: dict[str, Any] = Field({}, description="the network's own fields, e.g. {'width': 0.5}")
  init_from: str | None = Field(
    None, description='pretrained encoder: .safetensors of torchvision or timm, .h5 of Keras'
  )
  dtype: Literal['auto', 'float32', 'bfloat16'] = Field(
    'auto', description='compute type; auto: bfloat16 on accelerators, float32 on CPU'
  )


class LossTerm(Section):
  """One weighted summand of the loss."""

  weight: NonNegative = Field(1.0, description='factor of this term')
  options: dict[str, Any] = Field({}, description="the loss function's own keyword arguments")


class Loss(Section):
  """The loss: a sum of named, weighted terms. The default is PmcaNet's CE + 3 Dice."""

  terms: dict[Literal['ce', 'dice'], LossTerm] = Field(
    {'ce': LossTerm(weight=1.0), 'dice': LossTerm(weight=3.0)},
    min_length=1,
    description='loss name -> weight and options',
  )
  aux_weight: NonNegative = Field(
    0.4, description='cross-entropy weight of each auxiliary head, for networks that have one'
  )


class Optim(Section):
  """Optimiser and learning-rate schedule."""

  optimizer: Literal['sgd', 'adamw'] = Field('sgd', description='sgd has momentum')
  learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(0.01, description='initial rate')
  momentum: BelowOne = Field(0.9, description='of sgd')
  betas: tuple[BelowOne, BelowOne] = Field((0.9, 0.999), description='of adamw')
  weight_decay: NonNegative = Field(
    5e-4, description='on kernels only; added to the gradient for sgd, decoupled for adamw'
  )
  schedule: Literal['poly', 'constant'] = Field('poly', description='rate over the steps')
  power: Annotated[float, Field(gt=0)] = Field(0.9, description='of poly: (1 - t/T)^power')
  warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description='linear from 0 at the start')
  clip_norm: Annotated[float, Field(gt=0)] | None = Field(
    None, description='largest global gradient norm; None: no clipping'
  )


class Train(Section):
  """How long, how much at once, how often."""

  steps: Positive = Field(1000, description='optimiser updates in all')
  batch_size: Positive = Field(8, description='patches per step over all devices')
  seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description='of everything random')
  log_every: Positive = Field(20, description='steps between log lines')
  eval_every: Positive = Field(250, description='steps between evaluations of validation')
  checkpoint_every: Positive = Field(250, description='steps between checkpoints')
  keep: Positive = Field(2, description='latest checkpoints kept, beside the best')
