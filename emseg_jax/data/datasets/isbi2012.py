"""ISBI 2012: membranes in the nerve cord of a fly larva, used for PmcaNet."""

from typing import ClassVar

from emseg_jax.data.datasets.builder import SourceBuilder
from emseg_jax.data.datasets.published import Download, Part, Published

__all__ = ['Isbi2012']


def _part(start: int, stop: int | None, count: int) -> Part:
  return Part(
    images=('train-volume.tif',),
    labels={'label': ('train-labels.tif',)},
    sections=slice(start, stop),
    count=count,
    shape=(512, 512),
  )


class Isbi2012(SourceBuilder):
  """30 sections, 18 + 6 + 6; labels 0 membrane, 255 interior."""

  name = 'isbi2012'
  VARIANTS: ClassVar = {
    '': Published(
      description='Serial sections of the ventral nerve cord of a first-instar Drosophila larva, '
      'transmission EM, with cell interiors and the membranes between them. The labels of the '
      "challenge's test sections are not used: the 30 training sections are split in blocks, 60, "
      '20 and 20 %; the split of the PmcaNet paper is not known.',
      homepage='https://imagej.net/events/isbi-2012-segmentation-challenge',
      citation='Cardona et al.: An Integrated Micro- and Macroarchitectural Analysis of the '
      'Drosophila Brain by Computer-Assisted Serial Section Electron Microscopy. PLoS Biology 8, '
      '2010, doi 10.1371/journal.pbio.1000502. Arganda-Carreras et al.: Crowdsourcing the creation '
      'of image segmentation algorithms for connectomics. Frontiers in Neuroanatomy 9, 2015.',
      licence='Terms of the challenge: research use, cite the publications.',
      downloads=(Download('https://downloads.imagej.net/ISBI-2012-challenge.zip', unpack=True),),
      manual='Get the training data of the ISBI 2012 challenge.',
      splits={
        'train': _part(0, 18, 18),
        'validation': _part(18, 24, 6),
        'test': _part(24, None, 6),
      },
      classes=('membrane', 'interior'),
      values={0: 0, 255: 1},
      volume=True,
      voxel_size_zyx=(50.0, 4.0, 4.0),
    )
  }
