"""Every option outside the networks: its type, default, unit and range.

Defaults of a network live in its module's fields (`model.options` overrides them); all other
defaults live here. Sections are frozen and refuse unknown fields. Spatial tuples are (y, x), in
voxels, unless a field says otherwise. `config_io` reads, overrides and writes configurations.
"""

from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field

from emseg_jax.errors import ConfigError

__all__ = [
  'Augment',
  'Config',
  'Data',
  'Eval',
  'Loss',
  'LossTerm',
  'Mesh',
  'Model',
  'Optim',
  'Phantom',
  'Predict',
  'Run',
  'Section',
  'Source',
  'Task',
  'Train',
  'parse_arg',
]

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Colour = Annotated[str, Field(pattern='^#[0-9a-fA-F]{6}$')]
SizeYX = tuple[Positive, Positive]
Range = tuple[float, float]


class Section(pydantic.BaseModel):
  """Base of all sections: frozen, no unknown fields, finite numbers only."""

  model_config = pydantic.ConfigDict(
    extra='forbid', frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True
  )


class Task(Section):
  """What is to be segmented."""

  classes: tuple[str, ...] = Field(
    ('cytoplasm', 'membrane', 'mitochondrion'),  # those of the phantom, the default data
    min_length=2,
    max_length=255,  # 255 stands for "not scored" in uint8 labels
    description='class names; the index is the class',
  )
  colours: tuple[Colour, ...] | None = Field(
    None, description='#rrggbb per class for pictures; None: a colour-blind-safe palette'
  )
  activation: Literal['softmax', 'sigmoid'] = Field(
    'softmax', description='softmax over all classes, or one sigmoid output (two classes only)'
  )
  ignore_value: int | None = Field(
    None, description='label value in the files that is not scored and not trained on'
  )

  @property
  def num_logits(self) -> int:
    return 1 if self.activation == 'sigmoid' else len(self.classes)

  @pydantic.model_validator(mode='after')
  def _check(self) -> Self:
    if len(set(self.classes)) != len(self.classes):
      raise ValueError(f'class names must differ, got {list(self.classes)}')
    if self.activation == 'sigmoid' and len(self.classes) != 2:
      raise ValueError(f'sigmoid needs exactly 2 classes, got {len(self.classes)}')
    if self.colours is not None and len(self.colours) != len(self.classes):
      raise ValueError(f'{len(self.colours)} colours for {len(self.classes)} classes')
    return self


class Phantom(Section):
  """Synthetic electron-microscopy sections, generated on the fly: no files needed."""

  count: Positive = Field(8, description='number of sections')
  size: SizeYX = Field((256, 256), description='section size (y, x) in pixels')
  seed: Annotated[int, Field(ge=0)] = Field(0, description='another seed, other tissue')


class Source(Section):
  """Where images and their labels come from: files, or the synthetic phantom."""

  images: str | None = Field(None, description='image, folder of images, or TIFF stack')
  labels: str | None = Field(None, description='the same for labels; None: images only')
  slices: str | None = Field(
    None,
    pattern='^(-?[0-9]+)?:(-?[0-9]+)?(:[1-9][0-9]*)?$',
    description="sections to use, as 'start:stop[:step]' in name or stack order; None: all",
  )
  phantom: Phantom | None = Field(None, description='use synthetic sections instead of files')

  @pydantic.model_validator(mode='after')
  def _check(self) -> Self:
    if (self.images is None) == (self.phantom is None):
      raise ValueError('give either images (a path) or phantom, one of the two')
    return self


class Data(Section):
  """Images and labels, and how patches are drawn from them."""

  train: tuple[Source, ...] = Field(
    (Source(phantom=Phantom(count=16, seed=1)),), min_length=1, description='training sources'
  )
  validation: tuple[Source, ...] = Field(
    (Source(phantom=Phantom(count=4, seed=2)),), description='sources scored during training'
  )
  test: tuple[Source, ...] = Field((), description='sources scored at the end only')
  label_mapping: dict[int, Annotated[int, Field(ge=0)]] | None = Field(
    None, description='label value in the files -> class index; None: values are class indices'
  )
  normalisation: Literal['dataset', 'per_volume', 'percentile', 'imagenet', 'scale'] = Field(
    'dataset',
    description='dataset: mean/std of the training images; per_volume: of each file; percentile: '
    '1 % to 99 % of each file to 0..1; imagenet: torchvision mean/std on 0..255; scale: to 0..1',
  )
  channels: Literal[1, 3] = Field(
    1, description='channels fed to the network; grey is repeated for 3, RGB averaged for 1'
  )
  patch: SizeYX = Field((128, 128), description='size (y, x) of what the network trains on')
  threads: Annotated[int, Field(ge=0, le=256)] = Field(4, description='reader threads')
  prefetch: Annotated[int, Field(ge=1)] = Field(4, description='batches prepared ahead')
  cache_gb: NonNegative = Field(2.0, description='decoded sections kept in memory, GB per process')


class Augment(Section):
  """Random changes of training patches, made on the device; all off at evaluation."""

  flip: Literal['yx', 'x', 'y', 'off'] = Field('yx', description='axes mirrored, half the time')
  rotate90: bool = Field(True, description='turn by 0, 90, 180 or 270 degrees (square patches)')
  resize: Range = Field((1.0, 1.0), description='zoom range; (0.5, 2.0) in PmcaNet')
  brightness: Annotated[float, Field(ge=0, le=10)] = Field(
    0.0, description='largest shift, in standard deviations of the patch'
  )
  contrast: BelowOne = Field(0.0, description='largest relative change of contrast')
  gamma: BelowOne = Field(0.0, description='largest |log2| of the gamma exponent')
  noise: Annotated[float, Field(ge=0, le=10)] = Field(
    0.0, description='largest sigma of Gaussian noise, in standard deviations of the patch'
  )

  @pydantic.field_validator('resize')
  @classmethod
  def _check_resize(cls, value: Range) -> Range:
    if not 0.1 <= value[0] <= value[1] <= 10:
      raise ValueError('needs 0.1 <= low <= high <= 10')
    return value


class Model(Section):
  """The network."""

  name: str = Field('unet', description='a name that --help lists')
  options: dict[str, Any] = Field({}, description="the network's own fields, e.g. {'width': 0.5}")
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


class Eval(Section):
  """Scoring on whole images."""

  best: Literal['miou', 'accuracy', 'mean_dice'] = Field(
    'miou', description='validation score that picks the best checkpoint'
  )
  checkpoint: Literal['best', 'latest'] = Field(
    'best', description='which checkpoint evaluate and predict use'
  )
  split: Literal['validation', 'test', 'train'] = Field(
    'validation', description='which sources --mode=evaluate scores'
  )


class Predict(Section):
  """Tiles fed to the network at evaluation and prediction, and what is written."""

  tile: SizeYX | None = Field(None, description='tile size (y, x); None: twice the patch')
  overlap: Annotated[float, Field(ge=0, le=0.75)] = Field(
    0.25, description='share of a tile that neighbours overlap'
  )
  blend: Literal['gaussian', 'uniform'] = Field('gaussian', description='weights in overlaps')
  batch_size: Positive = Field(4, description='tiles per device call')
  probabilities: Literal['uint8', 'uint16'] | None = Field(
    None, description='also write one probability map per class, scaled to this type'
  )


class Mesh(Section):
  """How devices share the work: batch over `data`, first spatial axis over `space`."""

  data: Annotated[int, Field(ge=-1)] = Field(-1, description='-1: all devices left by space')
  space: Positive = Field(1, description='devices that share one image')


class Run(Section):
  """Logging, caches, report: nothing here changes what is learnt."""

  tensorboard: bool = Field(True, description='write TensorBoard event files')
  report: bool = Field(True, description='write report.html when training ends')
  report_cases: Positive = Field(4, description='worst and best images shown in the report')
  compile_cache: str | None = Field(
    '~/.cache/emseg_jax/xla', description='folder of compiled programs; None: off'
  )
  deterministic: bool = Field(False, description='bit-reproducible GPU runs, slower; CPUs are')


class Config(Section):
  """One experiment."""

  task: Task = Task()
  data: Data = Data()
  augment: Augment = Augment()
  model: Model = Model()
  loss: Loss = Loss()
  optim: Optim = Optim()
  train: Train = Train()
  eval: Eval = Eval()
  predict: Predict = Predict()
  mesh: Mesh = Mesh()
  run: Run = Run()

  @pydantic.model_validator(mode='after')
  def _check(self) -> Self:
    mapping = self.data.label_mapping or {}
    beyond = {k: v for k, v in mapping.items() if v >= len(self.task.classes)}
    if beyond:
      raise ValueError(
        f'data.label_mapping maps to {sorted(set(beyond.values()))}, but task.classes has indices '
        f'0 to {len(self.task.classes) - 1}'
      )
    if self.task.ignore_value in mapping:
      raise ValueError(f'task.ignore_value={self.task.ignore_value} is in data.label_mapping, too')
    if self.augment.rotate90 and self.data.patch[0] != self.data.patch[1]:
      raise ValueError(
        f'augment.rotate90 needs a square data.patch, got {self.data.patch}; set '
        'augment.rotate90=false or a square patch'
      )
    return self


def parse_arg(arg: str, **defaults: str | bool) -> dict[str, Any]:
  """Parses the part of `--config=FILE:ARG` behind the colon: 'key=value,switch,...'.

  Args:
    arg: the text; empty gives the defaults.
    **defaults: known keys; those with a boolean default are switches, named alone.

  Raises:
    ConfigError: a key is not known.
  """
  found = dict(defaults)
  for part in filter(None, arg.split(',')):
    key, equals, value = part.partition('=')
    if key not in defaults or isinstance(defaults[key], bool) == bool(equals):
      forms = [k if isinstance(v, bool) else f'{k}=...' for k, v in defaults.items()]
      raise ConfigError(f'--config=...:{arg}: {part!r} is not one of: {", ".join(forms)}')
    found[key] = value if equals else True
  return found
