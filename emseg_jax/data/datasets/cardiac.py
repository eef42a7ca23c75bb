"""Cardiac SEM with mitochondria, which the PmcaNet paper calls Kathuri."""

from typing import ClassVar

from emseg_jax.data.datasets.builder import SourceBuilder
from emseg_jax.data.datasets.published import Part, Published

__all__ = ['Cardiac']


def _part(folder: str, count: int) -> Part:
  return Part(
    images=(f'{folder}/images',),
    labels={'label': (f'{folder}/labels',)},
    count=count,
    shape=(1334, 1334),
  )


class Cardiac(SourceBuilder):
  """96, 32 and 32 images of 1334 x 1334; labels 0 and 255."""

  name = 'cardiac'
  VARIANTS: ClassVar = {
    '': Published(
      description='SEM of heart muscle with mitochondria. The PmcaNet paper names it Kathuri and '
      'cites Glancy et al. 2015 for it; it is not Kasthuri++.',
      homepage='https://doi.org/10.3233/JIFS-235138',
      citation='Glancy et al.: Mitochondrial reticulum for cellular energy distribution in muscle. '
      'Nature 523, 2015. Gao et al.: PmcaNet: Pyramid multiscale channel attention network for '
      'electron microscopy image segmentation. Journal of Intelligent & Fuzzy Systems 46, 2024.',
      licence='Not stated; ask the authors.',
      manual='No public copy is known: ask the authors of PmcaNet for images and split, and put '
      'them into train, val and test, each with images and labels.',
      splits={
        'train': _part('train', 96),
        'validation': _part('val', 32),
        'test': _part('test', 32),
      },
      classes=('background', 'mitochondrion'),
      values={0: 0, 255: 1},
    )
  }
