"""Tomogram of the immunological synapse of a cytotoxic T lymphocyte, used for SegET."""

from typing import ClassVar

from emseg_jax.data.datasets.builder import SourceBuilder
from emseg_jax.data.datasets.published import Part, Published

__all__ = ['STRUCTURES', 'CtlSynapse']

STRUCTURES = ('synapse', 'mts', 'centriole', 'granules', 'golgi')
EVERY_FIFTH = slice(0, None, 5)  # the only phase that holds out 16 of 76


def _part(sections: slice, without: slice | None, count: int) -> Part:
  return Part(
    images=('image.tif', 'image.mrc', 'image'),
    labels={s: (f'{s}.tif', f'{s}.mrc', s) for s in STRUCTURES},
    sections=sections,
    without=without,
    count=count,
    shape=(2048, 2048),
  )


class CtlSynapse(SourceBuilder):
  """76 slices with five masks, a label each; every fifth slice is held out."""

  name = 'ctl_synapse'
  VARIANTS: ClassVar = {
    '': Published(
      description='Electron tomogram of a cytotoxic T lymphocyte and its target cell, project '
      'P1694 of the Cell Image Library, with masks of synapse, microtubules, centriole, granules '
      'and Golgi. Masks are stored as 0 and 255, whatever they were. The distance of the slices is '
      'not known.',
      homepage='http://www.cellimagelibrary.org',
      citation='SegET: Deep Neural Network with Rich Contextual Features for Cellular Structures '
      'Segmentation in Electron Tomography Image. arXiv 1811.11729, 2018.',
      licence='As stated at the Cell Image Library for P1694.',
      manual='Get the tomogram and the masks of P1694 from the Cell Image Library.',
      splits={
        'train': _part(slice(None), EVERY_FIFTH, 60),
        'validation': _part(EVERY_FIFTH, None, 16),
      },
      classes=('background', 'structure'),
      values={0: 0, 255: 1},
      binary=True,
      volume=True,
      voxel_size_zyx=(None, 2.255, 2.255),
    )
  }
