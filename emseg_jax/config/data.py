"""Sections on what is segmented and what is learnt from: task, data, augmentation."""

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from emseg_jax.config.base import (
  BelowOne,
  Colour,
  NonNegative,
  Positive,
  Range,
  Section,
  Size,
  SizeYX,
)

__all__ = ['Augment', 'Data', 'Phantom', 'Source', 'Task']


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
  normalisation: Literal['dataset', 'per_volume', 'percentile', 'imagenet', 'caffe', 'scale'] = (
    Field(
      'dataset',
      description='dataset: mean/std of the training images; per_volume: of each file; percentile: '
      '1 % to 99 % of each file to 0..1; imagenet: torchvision mean/std on 0..255; '
      'caffe: mean only, as Keras VGG weights expect; scale: to 0..1',
    )
  )
  channels: Literal[1, 3] = Field(
    1, description='channels fed to the network; grey is repeated for 3, RGB averaged for 1'
  )
  patch: Size = Field(
    (128, 128), description='size (y, x), or (z, y, x), of what the network trains on'
  )
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
