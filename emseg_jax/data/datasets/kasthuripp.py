"""Kasthuri++: mouse neocortex with the mitochondria relabelled by experts."""

from typing import ClassVar

from emseg_jax.data.datasets.builder import SourceBuilder
from emseg_jax.data.datasets.published import Download, Part, Published

__all__ = ['Kasthuripp']


class Kasthuripp(SourceBuilder):
  """85 sections to train and 75 to test; 255 mitochondrion, 2 outside of what was annotated."""

  name = 'kasthuripp'
  VARIANTS: ClassVar = {
    '': Published(
      description='Serial sections of mouse neocortex with mitochondria (Kasthuri++); value 2 is '
      'where nothing was annotated.',
      homepage='https://casser.io/connectomics',
      citation='Casser, Kang, Pfister, Haehn: Fast Mitochondria Detection for Connectomics. MIDL '
      '2020, arXiv 1812.06024. Kasthuri et al.: Saturated Reconstruction of a Volume of Neocortex. '
      'Cell 162, 2015.',
      licence='Not stated; ask the authors.',
      downloads=(
        Download(
          'http://www.casser.io/files/kasthuri_pp.zip',
          'sha256:bbb78fd205ec9b57feb8f93ebbdf1666261cbc3e0305e7f11583ab5157a3d792',
          unpack=True,
        ),
      ),
      manual='Get kasthuri_pp.zip and unpack it.',
      splits={
        'train': Part(
          images=('Train_In', 'train/images'),
          labels={'label': ('Train_Out', 'train/labels')},
          count=85,
          shape=(1463, 1613),
        ),
        'test': Part(
          images=('Test_In', 'test/images'),
          labels={'label': ('Test_Out', 'test/labels')},
          count=75,
          shape=(1334, 1553),
        ),
      },
      classes=('background', 'mitochondrion'),
      values={0: 0, 255: 1},
      ignore=2,
      volume=True,
      voxel_size_zyx=(30.0, 3.0, 3.0),
    )
  }
