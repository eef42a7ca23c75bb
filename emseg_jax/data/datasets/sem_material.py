"""SEM of a superalloy with two kinds of carbides, the materials data of the PmcaNet paper."""

from typing import ClassVar

from emseg_jax.data.datasets.builder import SourceBuilder
from emseg_jax.data.datasets.published import Part, Published

__all__ = ['SemMaterial']


def _part(folder: str, count: int) -> Part:
  return Part(
    images=(f'{folder}/images',),
    labels={'label': (f'{folder}/labels',)},
    count=count,
    shape=(2048, 2048),
  )


class SemMaterial(SourceBuilder):
  """130 images of 8192 x 8192 (78 + 26 + 26), 16 tiles of 2048 x 2048 each."""

  name = 'sem_material'
  VARIANTS: ClassVar = {
    '': Published(
      description='SEM of a superalloy: matrix, MC and M23C6 carbides. 130 images of 8192 x 8192 '
      'become 2080 tiles of 2048 x 2048; images that are such tiles already are taken as they are.',
      homepage='https://doi.org/10.3233/JIFS-235138',
      citation='Gao et al.: PmcaNet: Pyramid multiscale channel attention network for electron '
      'microscopy image segmentation. Journal of Intelligent & Fuzzy Systems 46, 2024.',
      licence='Not stated; ask the authors.',
      manual='No public copy is known: ask the authors of PmcaNet for images and split, and put '
      'them into train, val and test, each with images and labels (values 0, 1, 2).',
      splits={
        'train': _part('train', 1248),
        'validation': _part('val', 416),
        'test': _part('test', 416),
      },
      classes=('matrix', 'MC', 'M23C6'),
      values={0: 0, 1: 1, 2: 2},
      tile=2048,
    )
  }
