"""EPFL hippocampus (Lucchi) and its relabelling Lucchi++, used for VGG-UNet and EM-Net."""

from typing import ClassVar

import tensorflow_datasets as tfds

from emseg_jax.data.datasets.builder import SourceBuilder
from emseg_jax.data.datasets.published import Download, Part, Published

__all__ = ['Epfl']

HOMEPAGE = 'https://www.epfl.ch/labs/cvlab/data/data-em/'
FILES = (
  'https://documents.epfl.ch/groups/c/cv/cvlab-unit/www/data/%20ElectronMicroscopy_Hippocampus/'
)
LUCCHI = (
  'Lucchi, Li, Fua: Learning for Structured Prediction Using Approximate Subgradient Descent with '
  'Working Sets. CVPR 2013.'
)
CASSER = (
  'Casser, Kang, Pfister, Haehn: Fast Mitochondria Detection for Connectomics. MIDL 2020, '
  'arXiv 1812.06024.'
)
COMMON = {
  'classes': ('background', 'mitochondrion'),
  'values': {0: 0, 255: 1},
  'volume': True,
  'voxel_size_zyx': (5.0, 5.0, 5.0),
}


def _part(images: tuple[str, ...], labels: tuple[str, ...], sections: slice, count: int) -> Part:
  return Part(
    images=images, labels={'label': labels}, sections=sections, count=count, shape=(768, 1024)
  )


def _splits(
  train: tuple[tuple[str, ...], tuple[str, ...]], test: tuple[tuple[str, ...], tuple[str, ...]]
) -> dict[str, Part]:
  """The last tenth of the training stack validates."""
  return {
    'train': _part(*train, slice(0, 149), 149),
    'validation': _part(*train, slice(149, None), 16),
    'test': _part(*test, slice(None), 165),
  }


class Epfl(SourceBuilder):
  """165 sections for training, the last 16 of them to validate, and 165 to test."""

  name = 'epfl'
  BUILDER_CONFIGS: ClassVar = [
    tfds.core.BuilderConfig(name='lucchi', description='the labels of EPFL'),
    tfds.core.BuilderConfig(name='lucchipp', description='the labels of Casser et al.'),
  ]
  VARIANTS: ClassVar = {
    'lucchi': Published(
      description='CA1 hippocampus of a mouse, focused ion beam SEM, with mitochondria; the two '
      'labelled stacks of 165 x 768 x 1024.',
      homepage=HOMEPAGE,
      citation=LUCCHI,
      licence='EPFL CVLab: research use, cite the publication.',
      downloads=tuple(
        Download(f'{FILES}{name}.tif')
        for name in ('training', 'training_groundtruth', 'testing', 'testing_groundtruth')
      ),
      manual='Get the four stacks of the CVLab.',
      splits=_splits(
        (('training.tif',), ('training_groundtruth.tif',)),
        (('testing.tif',), ('testing_groundtruth.tif',)),
      ),
      **COMMON,
    ),
    'lucchipp': Published(
      description='The EPFL hippocampus with the mitochondria relabelled by experts (Lucchi++).',
      homepage='https://casser.io/connectomics',
      citation=f'{CASSER} {LUCCHI}',
      licence='EPFL CVLab: research use, cite the publications.',
      downloads=(
        Download(
          'http://www.casser.io/files/lucchi_pp.zip',
          'sha256:770ce9e98fc6f29c1b1a250c637e6c5125f2b5f1260e5a7687b55a79e2e8844d',
          unpack=True,
        ),
      ),
      manual='Get lucchi_pp.zip and unpack it.',
      splits=_splits(
        (('Train_In', 'train/images'), ('Train_Out', 'train/labels')),
        (('Test_In', 'test/images'), ('Test_Out', 'test/labels')),
      ),
      **COMMON,
    ),
  }
