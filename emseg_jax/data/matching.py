"""Which label belongs to which image: folders by name, else by the numbers in the names."""

import re

from emseg_jax.data import volumes
from emseg_jax.errors import DataError

__all__ = ['match']


def match(images: volumes.Volume, labels: volumes.Volume) -> list[tuple[int, int]]:
  """Pairs images with labels: folders by name, else by the numbers in the names; stacks by slice.

  Raises:
    DataError: something is left without a partner.
  """
  if images.kind == labels.kind == 'folder':
    alone = []
    for key in (str.lower, _numbers):
      left, right = [key(n) for n in images.names], [key(n) for n in labels.names]
      if len(set(left)) == len(left) and sorted(left) == sorted(right):
        place = {k: i for i, k in enumerate(right)}
        return [(i, place[k]) for i, k in enumerate(left)]
      both = set(left) & set(right)
      alone.append(
        [
          name
          for name, k in zip(images.names + labels.names, left + right, strict=True)
          if k not in both
        ]
      )
    missing = min(filter(None, alone), key=len, default=labels.names)
    raise DataError(
      f'{labels.path}: {len(labels)} labels do not match the {len(images)} images of {images.path} '
      f'by name or number; without a partner: {", ".join(missing[:3])}'
    )
  if len(images) != len(labels):
    raise DataError(
      f'{labels.path}: has {len(labels)} sections but {images.path} has {len(images)}; '
      'allowed: the same number'
    )
  return [(i, i) for i in range(len(images))]


def _numbers(name: str) -> tuple[int, ...]:
  """('img_t1_007') -> (1, 7): the key that pairs img_007 with label_007."""
  return tuple(int(n) for n in re.findall(r'\d+', name))
