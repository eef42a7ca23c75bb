"""The section on what becomes of predicted labels or probabilities: clean masks and instances."""

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from emseg_jax.config.base import Positive, Section, Size
from emseg_jax.config.reading import Reading

__all__ = ['Postprocess']

Share = Annotated[float, Field(ge=0, lt=1)]
Extent = Annotated[float, Field(gt=0)]
OfProbabilities = ('high', 'marker_threshold')


class Postprocess(Section):
  """Foreground, hysteresis, hole filling, small objects, instances: in this order, all optional."""

  reading: Reading = Field(Reading(), description='what the files of --input do not say')
  dimensions: Literal[2, 3] | None = Field(
    None, description='2: each section by itself; None: 2 for folders of images, 3 for volumes'
  )
  label: Annotated[int, Field(ge=0)] | None = Field(
    None, description='of an input of labels: the value of the foreground; None: all but 0'
  )
  threshold: Share | None = Field(
    None, description='the input are probabilities, and those above this share are foreground'
  )
  high: Share | None = Field(
    None, description='hysteresis: objects without a probability above this vanish; None: off'
  )
  connectivity: Literal[1, 2, 3] = Field(
    1, description='voxels of an object share 1: a face, 2: at least an edge, 3: at least a corner'
  )
  holes: Positive | Literal['all'] | None = Field(
    None, description='enclosed background of at most so many voxels is filled; None: off'
  )
  min_voxels: Positive | None = Field(None, description='smaller objects vanish; None: off')
  min_volume: Extent | None = Field(
    None, description='the same in nm³, in nm² for single sections; needs a voxel size'
  )
  instances: Literal['none', 'components', 'watershed'] = Field(
    'components', description='what gets a number; none: the output is the clean mask, 0 and 1'
  )
  marker_threshold: Share | None = Field(
    None, description='watershed: markers are where the probability is above this'
  )
  marker_distance: Extent | None = Field(
    None,
    description='watershed: markers are further than this from the background, in nm, in voxels '
    'where the voxel size is unknown',
  )
  marker_voxels: Positive = Field(1, description='watershed: smaller markers do not count')
  block: Size = Field(
    (256, 256, 256), description='what is computed at once, voxels, rounded up to chunks'
  )

  @pydantic.model_validator(mode='after')
  def _check(self) -> Self:
    if self.threshold is None:
      for name in OfProbabilities:
        if getattr(self, name) is not None:
          raise ValueError(f'{name} is for probabilities and needs threshold')
    elif self.label is not None:
      raise ValueError('give either label or threshold, for labels or for probabilities')
    for name in OfProbabilities:
      value = getattr(self, name)
      if value is not None and value < self.threshold:
        raise ValueError(f'{name}={value} must not be below threshold={self.threshold}')
    if self.min_voxels is not None and self.min_volume is not None:
      raise ValueError('give either min_voxels or min_volume')
    markers = sum(m is not None for m in (self.marker_threshold, self.marker_distance))
    if markers != (self.instances == 'watershed'):
      raise ValueError(
        'instances=watershed needs either marker_threshold or marker_distance; nothing else does'
      )
    return self
