"""What is known of a published data set: its files, splits, labels and terms; plain data.

Paths are relative to the folder with the published files. Each is given with the names that it may
have, and is looked for in that folder and in the folders directly in it, so that an archive can
stay as it was unpacked.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from emseg_jax.errors import DataError

__all__ = ['Download', 'Part', 'Published', 'find', 'locate']


@dataclasses.dataclass(frozen=True)
class Download:
  """A public file.

  Attributes:
    url: http or https.
    checksum: 'sha256:HEX' or 'md5:HEX'; None if it was never published, in which case that of the
      first download is recorded and later ones are held against it.
    unpack: whether it is a zip archive to be unpacked.
  """

  url: str
  checksum: str | None = None
  unpack: bool = False

  @property
  def name(self) -> str:
    return self.url.partition('?')[0].rpartition('/')[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """One split.

  Attributes:
    images: names that the stack or folder of images may have.
    labels: the same for every kind of label, by the name of its feature.
    masks: folders with one mask per class, in class order; taken where the labels are missing.
    sections: which of them, in stack or name order.
    without: sections that are left out again.
    count: number of examples, of tiles if the data set is tiled.
    shape: (y, x) of every example.
  """

  images: tuple[str, ...]
  labels: Mapping[str, tuple[str, ...]]
  masks: tuple[str, ...] = ()
  sections: slice = dataclasses.field(default_factory=lambda: slice(None))
  without: slice | None = None
  count: int
  shape: tuple[int, int]

  def chosen(self, available: int) -> list[int]:
    """Numbers of the sections of this split, of `available` ones."""
    left_out = set(range(available)[self.without]) if self.without else set()
    return [i for i in range(available)[self.sections] if i not in left_out]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
  """A data set.

  Attributes:
    description: what it shows; and how the split came about.
    homepage: where it is described.
    citation: what to cite.
    licence: its terms.
    manual: how to get the files without `downloads`.
    downloads: public files, if there are any.
    splits: in the order train, validation, test.
    classes: names in class order; none for instances.
    values: label value -> class.
    ignore: label value of what is not scored.
    channels: 1, or 3 for RGB.
    label_dtype: of the labels; images are uint8.
    binary: labels are whatever is not 0, and stored as 255.
    volume: the sections are neighbours in one volume.
    voxel_size_zyx: nm, None where unknown.
    tile: larger images are cut into squares of so many pixels.
  """

  description: str
  homepage: str
  citation: str
  licence: str
  manual: str
  downloads: tuple[Download, ...] = ()
  splits: Mapping[str, Part]
  classes: tuple[str, ...] = ()
  values: Mapping[int, int] = dataclasses.field(default_factory=dict)
  ignore: int | None = None
  channels: int = 1
  label_dtype: str = 'uint8'
  binary: bool = False
  volume: bool = False
  voxel_size_zyx: tuple[float | None, float | None, float | None] = (None, None, None)
  tile: int | None = None

  def missing(self, source: Path) -> dict[str, list[str]]:
    """Per split, what is not in the folder; splits that are complete are left out."""
    missing = {}
    for name, part in self.splits.items():
      wanted = [part.images] if find(source, part.images) is None else []
      masks = bool(part.masks) and all(find(source, (mask,)) for mask in part.masks)
      wanted += [c for c in part.labels.values() if not masks and find(source, c) is None]
      if wanted:
        missing[name] = [' or '.join(candidates) for candidates in wanted]
    return missing

  def wanted(self) -> list[str]:
    """Every path that the data set is made of, alternatives joined by 'or'."""
    paths = [p for part in self.splits.values() for p in (part.images, *part.labels.values())]
    return list(dict.fromkeys(' or '.join(candidates) for candidates in paths))


def find(source: Path, candidates: tuple[str, ...]) -> Path | None:
  """The first candidate that exists in the folder, or in exactly one of the folders in it.

  Raises:
    DataError: several of the folders have it.
  """
  if not source.is_dir():
    return None
  folders = [f for f in sorted(source.iterdir()) if f.is_dir() and f.name[0] not in '._']
  for candidate in candidates:
    if (source / candidate).exists():
      return source / candidate
    found = [f / candidate for f in folders if (f / candidate).exists()]
    if len(found) > 1:
      raise DataError(
        f'{source}: has {found[0].relative_to(source)} and {found[1].relative_to(source)}; '
        'give the one folder that is meant'
      )
    if found:
      return found[0]
  return None


def locate(source: Path, candidates: tuple[str, ...]) -> Path:
  """As `find`, for what must be there. Raises DataError."""
  path = find(source, candidates)
  if path is None:
    raise DataError(f'{source}: has no {" or ".join(candidates)}')
  return path
