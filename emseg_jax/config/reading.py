"""Section on how files are understood where their format leaves something open."""

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from emseg_jax.config.base import Section

__all__ = ['Reading']

AXES = 'ZYXCT'

Length = Annotated[float, Field(gt=0)]


class Reading(Section):
  """What a file does not say about itself, or says wrongly."""

  axes: str | None = Field(
    None,
    description="order of the stored axes, as in 'XYZ' or 'CZYX'; letters Z Y X C T; None: as the "
    'file says',
  )
  channel: Annotated[int, Field(ge=0)] | None = Field(
    None, description='which of several channels, from 0; None: there is one, or RGB'
  )
  signed: bool | None = Field(
    None, description='8-bit MRC files only; None: as IMOD marked the file, otherwise signed'
  )
  level: Annotated[int, Field(ge=0)] = Field(
    0, description='resolution level of OME-Zarr, N5 and precomputed volumes; 0: the finest'
  )
  voxel_size: tuple[Length, Length, Length] | None = Field(
    None, description='(z, y, x) in nm; None: as the file says'
  )
  missing: Literal['error', 'fill'] = Field(
    'fill',
    description='missing chunks of Zarr, N5 and precomputed: the fill value, with a warning (many '
    'programs leave out chunks that hold nothing else), or an error',
  )

  @pydantic.model_validator(mode='after')
  def _check(self) -> Self:
    axes = self.axes
    if axes is None:
      return self
    if set(axes) - set(AXES) or len(set(axes)) < len(axes) or not {'Y', 'X'} <= set(axes):
      raise ValueError(
        f"axes={axes!r} must have Y and X, may have Z, C and T, and each once, as in 'ZYX'"
      )
    return self
