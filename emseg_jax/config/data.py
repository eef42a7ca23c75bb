"""Sections on what is learnt from: sources, labels, sampling."""

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from emseg_jax.config.base import (
  Colour,
  NonNegative,
  Positive,
  Section,
  Size,
  SizeYX,
)
from emseg_jax.config.reading import Reading

__all__ = ['Data', 'Labels', 'Phantom', 'Proximity', 'Sampling', 'Source']

Length = Annotated[float, Field(gt=0)]


class Phantom(Section):
  """Synthetic electron-microscopy sections or volumes, generated on the fly: no files needed."""

  count: Positive = Field(8, description='number of sections, or of volumes')
  size: SizeYX = Field((256, 256), description='section size (y, x) in pixels')
  depth: Annotated[int, Field(ge=2)] | None = Field(
    None, description='sections per volume; None: unrelated sections'
  )
  seed: Annotated[int, Field(ge=0)] = Field(0, description='another seed, other tissue')


class Source(Section):
  """Where images and their labels come from: files, or the synthetic phantom."""

  images: str | None = Field(
    None,
    description='image or folder of images; TIFF stack, MRC, HDF5 (file.h5:/raw), Zarr, N5, '
    'precomputed, NIfTI, here or at http://, gs://, s3://; tfds://NAME?split=train',
  )
  labels: str | None = Field(None, description='the same for labels; None: images only')
  reading: Reading = Field(Reading(), description='what the image files do not say')
  label_reading: Reading = Field(
    Reading(), description='what the files of labels and mask do not say'
  )
  mask: str | None = Field(
    None, description='the same for what is annotated: where it is 0, the label is not used'
  )
  include: tuple[str, ...] = Field(
    (), description="names of the sections to use, with * and ?: 'cell_*'; empty: all"
  )
  listed: str | None = Field(
    None, description='text file with the names of the sections to use, one per line'
  )
  part: str | None = Field(
    None,
    pattern=r'^(0|1|0?\.[0-9]+):(0|1|0?\.[0-9]+)@[0-9]+$',
    description="random part as 'from:to@seed': '0:0.8@7' and '0.8:1@7' share no section",
  )
  slices: str | None = Field(
    None,
    pattern='^(-?[0-9]+)?:(-?[0-9]+)?(:[1-9][0-9]*)?$',
    description="sections to use, as 'start:stop[:step]' in name or stack order; None: all; of "
    'each volume, if a phantom has several',
  )
  fraction: Annotated[float, Field(gt=0, le=1)] = Field(
    1.0, description='share of these sections that is used, the first ones'
  )
  weight: Annotated[float, Field(gt=0)] = Field(
    1.0, description='how often examples come from here, relative to the number of sections'
  )
  phantom: Phantom | None = Field(None, description='use synthetic sections instead of files')

  @pydantic.model_validator(mode='after')
  def _check(self) -> Self:
    if (self.images is None) == (self.phantom is None):
      raise ValueError('give either images (a path) or phantom, one of the two')
    if self.part is not None:
      start, stop = (float(share) for share in self.part.partition('@')[0].split(':'))
      if start >= stop:
        raise ValueError(f'part={self.part} is empty; the first share must be below the second')
    return self


class Sampling(Section):
  """Which places become training examples."""

  kind: Literal['random', 'foreground', 'balanced', 'grid', 'tiles'] = Field(
    'random',
    description='random: uniform; foreground: random until min_foreground is reached; balanced: '
    'random until no class exceeds max_share; grid: every stride voxels, the last one flush with '
    'the border; tiles: the fewest patches that cover the volume',
  )
  tries: Positive = Field(50, description='draws until foreground or balanced gives up')
  min_foreground: Annotated[float, Field(ge=0, le=1)] = Field(
    1 / 80, description='share of voxels that are not class 0'
  )
  max_share: Annotated[float, Field(gt=0, le=1)] = Field(
    0.75, description='largest share of one class, of at least two'
  )
  stride: Size | None = Field(None, description='of grid; None: half a patch')
  positive_copies: Positive = Field(
    1, description='of grid and tiles: how often a place with foreground occurs per pass'
  )
  random_share: Annotated[float, Field(ge=0, le=1)] = Field(
    0.0, description='of grid and tiles: share of examples drawn as by foreground instead'
  )
  planes_share: Annotated[float, Field(ge=0, le=1)] = Field(
    0.0,
    description='share of examples whose z axis is y or x of the volume, for voxels of equal size',
  )

  @pydantic.model_validator(mode='after')
  def _check(self) -> Self:
    of_a_grid = self.positive_copies > 1 or self.random_share > 0
    if of_a_grid and self.kind not in ('grid', 'tiles'):
      raise ValueError(
        f"positive_copies and random_share need kind grid or tiles, not '{self.kind}'"
      )
    return self


class Proximity(Section):
  """The target of centreline terms: 1 on the centreline of the foreground, less further away.

  The foreground are all classes but the first.
  """

  alpha: Annotated[float, Field(gt=0, le=20)] = Field(3.0, description='steepness of the decrease')
  radius: Annotated[float, Field(gt=0, le=1000)] = Field(
    15.0, description='distance from which on it is 0, voxels in the plane'
  )
  mask: bool = Field(False, description='0 outside the foreground, too')
  max_hole: Annotated[int, Field(ge=0)] = Field(
    500, description='holes of up to so many voxels are filled before the centreline is sought'
  )
  dimensions: Literal[2, 3] | None = Field(
    None, description='2: centrelines of sections; 3: of volumes; None: as many as data.patch has'
  )
  voxel_size: tuple[Length, Length, Length] | None = Field(
    None, description='(z, y, x) in nm; None: as in the files, cubes where they do not say'
  )


class Labels(Section):
  """What the values of label files mean, before label_mapping makes classes of them."""

  kind: Literal['values', 'instances'] = Field(
    'values',
    description='values: what is stored; instances: ids, of which 0 (outside), 1 (inside an '
    'instance) and 2 (its boundary) are made',
  )
  boundary_width: Positive = Field(1, description='of the boundary inside of instances, pixels')
  colours: dict[Colour, int] | None = Field(
    None, description='legend of RGB labels: #rrggbb -> value; None: labels are grey'
  )
  other: Annotated[int, Field(ge=0)] | None = Field(
    None, description='class of all values that label_mapping lacks; None: they are an error'
  )


class Data(Section):
  """Images and labels, and how patches are drawn from them."""

  train: tuple[Source, ...] = Field(
    (Source(phantom=Phantom(count=16, seed=1)),), min_length=1, description='training sources'
  )
  validation: tuple[Source, ...] = Field(
    (Source(phantom=Phantom(count=4, seed=2)),), description='sources scored during training'
  )
  test: tuple[Source, ...] = Field((), description='sources scored at the end only')
  label_mapping: dict[int, Annotated[int, Field(ge=0)]] | None = Field(
    None,
    description='label value in the files -> class index, or mask; None: values are these already',
  )
  labels: Labels = Field(Labels(), description='what the values of label files mean')
  normalisation: Literal['dataset', 'per_volume', 'percentile', 'imagenet', 'caffe', 'scale'] = (
    Field(
      'dataset',
      description='dataset: mean/std of the training images; per_volume: of each file; percentile: '
      '1 % to 99 % of each file to 0..1; imagenet: torchvision mean/std on 0..255; '
      'caffe: mean only, as Keras VGG weights expect; scale: to 0..1',
    )
  )
  channels: Literal[1, 3] = Field(
    1, description='channels fed to the network; grey is repeated for 3, RGB averaged for 1'
  )
  voxel_size: tuple[Length | None, Length, Length] | None = Field(
    None,
    description='(z, y, x) in nm to which all volumes are brought as they are read, also for '
    'prediction; z None: as it is; None: volumes must have one size, as far as it is known',
  )
  neighbours: Annotated[int, Field(ge=0, le=16)] = Field(
    0,
    description='networks of sections also see so many sections before and behind, as channels '
    '(2.5D); the volume is mirrored at its ends',
  )
  patch: Size = Field(
    (128, 128), description='size (y, x), or (z, y, x), of what the network trains on'
  )
  sampling: Sampling = Field(Sampling(), description='which places become training examples')
  proximity: Proximity = Field(Proximity(), description='target of centreline terms')
  threads: Annotated[int, Field(ge=0, le=256)] = Field(
    4, description='reader threads; none where small patches are cut from images in memory'
  )
  workers: Annotated[int, Field(ge=0, le=256)] = Field(
    0, description='reader processes, each with `threads`; 0: threads of this process alone'
  )
  damaged: Literal['stop', 'skip'] = Field(
    'stop',
    description='what a file that cannot be read while training does: stop the run, or be passed '
    'over with a warning',
  )
  prefetch: Annotated[int, Field(ge=1)] = Field(4, description='batches prepared ahead')
  cache_gb: NonNegative = Field(2.0, description='decoded sections kept in memory, GB per process')

  @property
  def input_channels(self) -> int:
    """Channels that the network sees."""
    return self.channels * (2 * self.neighbours + 1)

  @pydantic.model_validator(mode='after')
  def _check(self) -> Self:
    stride = self.sampling.stride
    if self.neighbours and len(self.patch) == 3:
      raise ValueError(f'neighbours={self.neighbours} is for a patch (y, x), not {self.patch}')
    if stride is not None and len(stride) != len(self.patch):
      raise ValueError(f'sampling.stride={stride} needs as many axes as patch={self.patch}')
    return self
