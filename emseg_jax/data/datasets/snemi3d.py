"""SNEMI3D: neurites of mouse cortex as instances."""

from typing import ClassVar

from emseg_jax.data.datasets.builder import SourceBuilder
from emseg_jax.data.datasets.published import Download, Part, Published

__all__ = ['Snemi3d']


def _part(sections: slice, count: int) -> Part:
  return Part(
    images=('train-input.tif',),
    labels={'label': ('train-labels.tif',)},
    sections=sections,
    count=count,
    shape=(1024, 1024),
  )


class Snemi3d(SourceBuilder):
  """100 labelled sections, the first 80 to train; labels are instances, 0 is no neurite."""

  name = 'snemi3d'
  VARIANTS: ClassVar = {
    '': Published(
      description='Serial sections of mouse cortex with every neurite as an instance. The labels '
      "of the challenge's test sections are not public: the last 20 of the 100 labelled sections "
      'validate.',
      homepage='https://snemi3d.grand-challenge.org',
      citation='Arganda-Carreras, Seung, Vishwanathan, Berger: 3D segmentation of neurites in EM '
      'images, challenge of ISBI 2013, doi 10.5281/zenodo.7142003. Kasthuri et al.: Saturated '
      'Reconstruction of a Volume of Neocortex. Cell 162, 2015.',
      licence='CC BY 4.0',
      downloads=(
        Download(
          'https://zenodo.org/records/7142003/files/snemi.zip?download=1',
          'md5:3d25a7025f66698f33c7850ace885939',
          unpack=True,
        ),
      ),
      manual='Get snemi.zip of Zenodo record 7142003 and unpack it.',
      splits={
        'train': _part(slice(0, 80), 80),
        'validation': _part(slice(80, None), 20),
      },
      label_dtype='uint16',
      volume=True,
      voxel_size_zyx=(30.0, 6.0, 6.0),
    )
  }
