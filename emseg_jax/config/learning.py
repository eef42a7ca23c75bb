"""Sections on how is learnt: network, loss, optimiser, training."""

from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field

from emseg_jax.config.base import BelowOne, NonNegative, Positive, Section

__all__ = ['Loss', 'LossTerm', 'Model', 'Optim', 'Train', 'Weighting']


class Model(Section):
  """The network."""

  name: str = Field('unet', description='a name that --help lists')
  options: dict[str, Any] = Field({}, description="the network's own fields, e.g. {'width': 0.5}")
  init_from: str | None = Field(
    None,
    description='pretrained encoder: .safetensors of torchvision or timm, .h5 of Keras; or the '
    'folder of an exported model',
  )
  freeze: tuple[str, ...] = Field(
    (),
    description="regular expressions on whole paths of modules, as 'backbone' or 'down[12]', that "
    'init_from fills and training leaves as they are, running statistics included',
  )
  dtype: Literal['auto', 'float32', 'bfloat16'] = Field(
    'auto', description='compute type; auto: bfloat16 on accelerators, float32 on CPU'
  )

  @pydantic.model_validator(mode='after')
  def _check(self) -> Self:
    if self.freeze and self.init_from is None:
      raise ValueError(
        f'freeze={list(self.freeze)} needs init_from: what is frozen would stay as random as it '
        'starts'
      )
    return self


class Weighting(Section):
  """Voxel weights of one loss term, made from the labels of the batch on the device."""

  name: Literal['class', 'adaptive', 'contour', 'volume', 'volume_contour'] = Field(
    'class', description='which rule; see losses/weighting.py'
  )
  options: dict[str, Any] = Field({}, description="the rule's own keyword arguments")


class LossTerm(Section):
  """One weighted summand of the loss."""

  loss: str | None = Field(None, description="which loss; None: the term's own name")
  weight: NonNegative = Field(1.0, description='factor of this term')
  output: str | None = Field(
    None, description='which output of the network; None: the one that the loss is made for'
  )
  weighting: Weighting | None = Field(None, description='voxel weights; None: all alike')
  options: dict[str, Any] = Field({}, description="the loss function's own keyword arguments")


class Loss(Section):
  """The loss: a sum of named, weighted terms. The default is PmcaNet's CE + 3 Dice."""

  terms: dict[str, LossTerm] = Field(
    {'ce': LossTerm(weight=1.0), 'dice': LossTerm(weight=3.0)},
    min_length=1,
    description='name -> loss, weight and options',
  )
  aux_weight: NonNegative | dict[str, NonNegative] = Field(
    0.4, description='cross-entropy weight of auxiliary heads: of all alike, or by name'
  )

  @pydantic.field_validator('terms')
  @classmethod
  def _check_names(cls, terms: dict[str, LossTerm]) -> dict[str, LossTerm]:
    taken = {'loss', 'learning_rate', 'grad_norm'} & terms.keys()
    if taken:
      raise ValueError(f'{taken.pop()!r} is logged already; give the term another name')
    return terms


class Optim(Section):
  """Optimiser and learning-rate schedule; all lengths are in optimiser updates."""

  optimizer: Literal['sgd', 'adam', 'adamw', 'radam', 'adagrad'] = Field(
    'sgd', description='sgd has momentum'
  )
  learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(0.01, description='initial rate')
  momentum: BelowOne = Field(0.9, description='of sgd')
  betas: tuple[BelowOne, BelowOne] = Field((0.9, 0.999), description='of adam, adamw, radam')
  epsilon: Annotated[float, Field(gt=0)] = Field(1e-8, description='of all but sgd')
  weight_decay: NonNegative = Field(5e-4, description='on the parameters that decay_on matches')
  decay: Literal['auto', 'coupled', 'decoupled'] = Field(
    'auto',
    description='coupled: added to the gradient; decoupled: to the update; auto: decoupled for '
    'adamw only',
  )
  decay_on: str = Field('kernel$', description='regular expression on parameter paths a/b/kernel')
  groups: dict[str, NonNegative] = Field(
    {}, description='regular expression on parameter paths -> factor of the learning rate'
  )
  schedule: Literal['poly', 'constant', 'step', 'time', 'cosine'] = Field(
    'poly', description='rate over the updates'
  )
  power: Annotated[float, Field(gt=0)] = Field(0.9, description='of poly: (1 - t/T)^power')
  floor: NonNegative = Field(0.0, description='lowest rate of poly, step, time and cosine')
  decay_every: Positive | None = Field(None, description='of step: updates between two decays')
  decay_at: tuple[Positive, ...] = Field((), description='of step: updates of the decays')
  decay_factor: Annotated[float, Field(gt=0)] = Field(
    0.1, description='of step: factor; of time: rate / (1 + decay_factor t)'
  )
  warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description='linear from 0 at the start')
  plateau_factor: Annotated[float, Field(gt=0, lt=1)] | None = Field(
    None, description='factor when eval.best has not improved; None: off'
  )
  plateau_patience: Positive = Field(3, description='evaluations without improvement until then')
  clip_norm: Annotated[float, Field(gt=0)] | None = Field(
    None, description='largest global gradient norm; None: no clipping'
  )
  accumulate: Positive = Field(1, description='batches whose mean gradient makes one update')
  ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
    None, description='decay of an average of the parameters, used at evaluation; None: off'
  )

  @pydantic.model_validator(mode='after')
  def _check(self) -> Self:
    if self.schedule == 'step' and (self.decay_every is None) == (not self.decay_at):
      raise ValueError('schedule=step needs either decay_every or decay_at')
    return self


class Train(Section):
  """How long, how much at once, how often."""

  steps: Positive = Field(1000, description='batches in all')
  batch_size: Positive = Field(8, description='patches per step over all devices')
  seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description='of everything random')
  log_every: Positive = Field(20, description='steps between log lines')
  eval_every: Positive = Field(250, description='steps between evaluations of validation')
  early_stop: Positive | None = Field(
    None, description='evaluations without improvement of eval.best that end the run; None: off'
  )
  checkpoint_every: Positive = Field(250, description='steps between checkpoints')
  keep: Positive = Field(2, description='latest checkpoints kept, beside the best')
