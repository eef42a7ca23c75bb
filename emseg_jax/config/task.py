"""The section on what is segmented."""

from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field

from emseg_jax.config.base import Colour, Section

__all__ = ['Task']

JOINED = ('apart', 'joined')  # what an affinity says of two voxels
Offset = Annotated[tuple[int, ...], Field(min_length=2, max_length=3)]
MOST_STRUCTURES = 7  # bits of a uint8 mask that never is 255, which stands for "not scored"


class Task(Section):
  """What is to be segmented."""

  classes: tuple[str, ...] = Field(
    ('cytoplasm', 'membrane', 'mitochondrion'),  # those of the phantom, the default data
    min_length=2,
    max_length=255,  # 255 stands for "not scored" in uint8 labels
    description='class names; the index is the class, or the bit of a multilabel mask; of '
    'affinities always apart and joined',
  )
  colours: tuple[Colour, ...] | None = Field(
    None,
    description='#rrggbb per class, or per mask, for pictures; None: a colour-blind-safe palette',
  )
  activation: Literal['softmax', 'sigmoid', 'multilabel', 'affinities'] = Field(
    'softmax',
    description='softmax over all classes; one sigmoid output (two classes only); multilabel: a '
    'sigmoid per class, labels are bit masks of classes that may overlap, none is the background; '
    'affinities: a sigmoid per offset, labels are instance ids, 0 is the background',
  )
  offsets: tuple[Offset, ...] = Field(
    (),
    description='of affinities: (y, x) or (z, y, x) from a voxel to another; the network '
    'says for each whether both belong to one object',
  )
  ignore_value: int | None = Field(
    None, description='label value in the files that is not scored and not trained on'
  )

  @property
  def num_logits(self) -> int:
    return 1 if self.activation == 'sigmoid' else len(self.channels)

  @property
  def affinities(self) -> bool:
    return self.activation == 'affinities'

  @property
  def channels(self) -> tuple[str, ...]:
    """Names of the probabilities: the classes, or the offsets."""
    return self.offset_names or self.classes

  @property
  def offset_names(self) -> tuple[str, ...]:
    """'z1' for (1, 0, 0), 'y-3x3' for (0, -3, 3); none where labels are classes."""
    return tuple(
      ''.join(f'{axis}{n}' for axis, n in zip('zyx'[-len(offset) :], offset, strict=True) if n)
      for offset in self.offsets
    )

  @property
  def independent(self) -> bool:
    """Whether each probability stands for itself; otherwise they add up to one."""
    return self.multilabel or self.affinities

  @property
  def multilabel(self) -> bool:
    return self.activation == 'multilabel'

  @property
  def values(self) -> tuple[str, ...]:
    """Names of what a label pixel can be: the classes, or the masks 'none', 'a', 'b', 'a + b', ...

    Bit k of a mask says whether class k is there.
    """
    if not self.multilabel:
      return self.classes
    masks = range(2 ** len(self.classes))
    there = ([c for k, c in enumerate(self.classes) if mask >> k & 1] for mask in masks)
    return tuple(' + '.join(names) or 'none' for names in there)

  @pydantic.model_validator(mode='before')
  @classmethod
  def _name_affinities(cls, fields: Any) -> Any:
    if isinstance(fields, dict) and fields.get('activation') == 'affinities':
      return {**fields, 'classes': JOINED}
    return fields

  @pydantic.model_validator(mode='after')
  def _check(self) -> Self:
    if self.affinities != bool(self.offsets):
      raise ValueError(
        'activation=affinities and offsets need each other, got activation='
        f'{self.activation} and offsets={self.offsets}; neighbours are [[1,0,0],[0,1,0],[0,0,1]]'
      )
    if not all(any(offset) for offset in self.offsets):
      raise ValueError(f'offsets={self.offsets}: an offset must not be 0 along all axes')
    if len(set(self.offsets)) != len(self.offsets):
      raise ValueError(f'offsets={self.offsets}: an offset must not occur twice')
    if len(set(self.classes)) != len(self.classes):
      raise ValueError(f'class names must differ, got {list(self.classes)}')
    if self.activation == 'sigmoid' and len(self.classes) != 2:
      raise ValueError(f'sigmoid needs exactly 2 classes, got {len(self.classes)}')
    if self.multilabel and len(self.classes) > MOST_STRUCTURES:
      raise ValueError(
        f'multilabel allows at most {MOST_STRUCTURES} classes, got {len(self.classes)}'
      )
    if len(set(self.values)) != len(self.values):
      raise ValueError(f'a class may not be named as a mask is, got {list(self.classes)}')
    if self.colours is not None and len(self.colours) != len(self.values):
      what = 'masks' if self.multilabel else 'classes'
      raise ValueError(f'{len(self.colours)} colours for {len(self.values)} {what}')
    return self
