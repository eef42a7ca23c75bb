"""Section on random changes of training patches."""

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from emseg_jax.config.base import BelowOne, NonNegative, Positive, Range, Section

__all__ = ['Augment', 'Defects']

Probability = Annotated[float, Field(ge=0, le=1)]


class Defects(Section):
  """What goes wrong in electron microscopy; each is the share of examples that have it."""

  missing_section: Probability = Field(0.0, description='one section of a volume blank')
  misalignment: Probability = Field(0.0, description='all sections behind one shifted')
  slice_shift: Probability = Field(0.0, description='one section of a volume shifted')
  shift: Positive = Field(8, description='largest shift of these two, voxels')
  motion_blur: Probability = Field(0.0, description='a section smeared along one direction')
  cut_out: Probability = Field(0.0, description='a box filled with the mean grey value')
  cut_noise: Probability = Field(0.0, description='a box with strong noise')
  stripes: Probability = Field(0.0, description='curtaining: stripes along y of random strength')
  bands: Probability = Field(0.0, description='a band of a section with other contrast')


class Augment(Section):
  """Random changes of training patches, made on the device; all off at evaluation."""

  flip: Literal['zyx', 'yx', 'x', 'y', 'off'] = Field(
    'yx', description='axes mirrored, half the time; z of volumes only'
  )
  rotate90: bool = Field(True, description='turn by 0, 90, 180 or 270 degrees (square patches)')
  resize: Range = Field((1.0, 1.0), description='zoom range; (0.5, 2.0) in PmcaNet')
  rotate: Annotated[float, Field(ge=0, le=180)] = Field(
    0.0, description='largest free rotation in the plane, degrees'
  )
  shear: Annotated[float, Field(ge=0, le=60)] = Field(0.0, description='largest shear, degrees')
  shift: Annotated[float, Field(ge=0, lt=1)] = Field(
    0.0, description='largest shift, share of the patch; fill comes in where the image ends'
  )
  elastic: NonNegative = Field(
    0.0, description='largest elastic displacement, voxels; at most elastic_spacing / 2'
  )
  elastic_spacing: Positive = Field(32, description='voxels between its control points')
  isotropic: bool = Field(
    False, description='zoom and elastic displacement act along z too, for voxels of equal size'
  )
  fill: Literal['reflect', 'ignore'] = Field(
    'reflect', description='beyond the image: mirrored and trained on, or of weight 0'
  )
  brightness: Annotated[float, Field(ge=0, le=10)] = Field(
    0.0, description='largest shift, in standard deviations of the patch'
  )
  contrast: BelowOne = Field(0.0, description='largest relative change of contrast')
  gamma: BelowOne = Field(0.0, description='largest |log2| of the gamma exponent')
  noise: Annotated[float, Field(ge=0, le=10)] = Field(
    0.0, description='largest sigma of Gaussian noise, in standard deviations of the patch'
  )
  blur: Annotated[float, Field(ge=0, le=5)] = Field(
    0.0, description='largest sigma of Gaussian blur in the plane, voxels'
  )
  defects: Defects = Field(Defects(), description='missing sections, misalignment, stripes, ...')

  @pydantic.field_validator('resize')
  @classmethod
  def _check_resize(cls, value: Range) -> Range:
    if not 0.1 <= value[0] <= value[1] <= 10:
      raise ValueError('needs 0.1 <= low <= high <= 10')
    return value

  @pydantic.model_validator(mode='after')
  def _check(self) -> Self:
    if self.elastic > self.elastic_spacing / 2:
      raise ValueError(
        f'elastic={self.elastic} folds the image with elastic_spacing={self.elastic_spacing}; '
        'allowed is half of that'
      )
    return self
