"""The two small sets of the Res-CR-Net paper: rat liver EM and muscle fluorescence."""

from typing import ClassVar

from emseg_jax.data.datasets.builder import SourceBuilder
from emseg_jax.data.datasets.published import Part, Published

__all__ = ['MuscleFm', 'RatLiver']

COMMON = {
  'homepage': 'https://github.com/dgattiwsu/Res-CR-Net',
  'citation': 'Abdallah et al.: Res-CR-Net, a residual network with a novel architecture optimized '
  'for the semantic segmentation of microscopy images. Machine Learning: Science and Technology 1, '
  '2020.',
  'licence': 'Not stated; ask the authors.',
}


class RatLiver(SourceBuilder):
  """8 and 4 images of 262 x 400; labels 0 other, 1 nucleus, 2 mitochondrion."""

  name = 'rat_liver'
  VARIANTS: ClassVar = {
    '': Published(
      description='EM of rat liver with nuclei and mitochondria.',
      manual='No public copy is known: ask the authors, and put images and labels (values 0, 1, 2) '
      'into train and validation.',
      splits={
        split: Part(
          images=(f'{split}/images',),
          labels={'label': (f'{split}/labels',)},
          count=count,
          shape=(262, 400),
        )
        for split, count in (('train', 8), ('validation', 4))
      },
      classes=('other', 'nucleus', 'mitochondrion'),
      values={0: 0, 1: 1, 2: 2},
      **COMMON,
    )
  }


def _part(split: str, folder: str, count: int) -> Part:
  return Part(
    images=(f'{split}/images', f'{folder}/images/img'),
    labels={'label': (f'{split}/labels',)},
    masks=tuple(f'{folder}/masks/msk{k}' for k in range(4)),
    count=count,
    shape=(300, 300),
  )


class MuscleFm(SourceBuilder):
  """10 and 6 colour images of 300 x 300; labels 0 to 3, or a mask per class."""

  name = 'muscle_fm'
  VARIANTS: ClassVar = {
    '': Published(
      description='Fluorescence micrographs of muscle in colour: background, nuclei, fibres, '
      'borders.',
      manual="Unpack dataset.zip of the authors' repository, with its folders train_local and "
      'val_local, or put images and labels (values 0 to 3) into train and validation.',
      splits={
        'train': _part('train', 'train_local', 10),
        'validation': _part('validation', 'val_local', 6),
      },
      classes=('background', 'nuclei', 'fibre', 'border'),
      values={k: k for k in range(4)},
      channels=3,
      **COMMON,
    )
  }
