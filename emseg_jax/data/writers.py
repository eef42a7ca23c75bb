"""Results in the form of the input: image for image, folder for folder, volume for volume.

Labels and probabilities are [Y, X], uint8 or uint16; ids of instances uint32, which neither PNG nor
MRC holds. PNG and JPEG input gives PNG (JPEG would change labels); volumes keep their format, or
get that of the output's extension, and their voxel size. Sections are written as they come, so that
a volume is never in memory as a whole.
"""

import contextlib
import itertools
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from emseg_jax.data import array_writers, recognise, volumes
from emseg_jax.errors import OutputError

__all__ = ['STORES', 'check_target', 'check_type', 'target_of', 'write_like']

# Extensions and kinds of volumes -> names of writers.
FORMS = {
  **{e: f.lower() for e, f in recognise.FORMATS.items() if f in ('MRC', 'HDF5', 'NIfTI')},
  **{kind: kind for kind in ('mrc', 'hdf5', 'zarr', 'n5', 'precomputed', 'nifti')},
  **{f'.{kind}': kind for kind in ('zarr', 'n5', 'precomputed')},
}
USUAL = {'mrc': '.mrc', 'hdf5': '.h5', 'zarr': '.zarr', 'n5': '.n5', 'nifti': '.nii'} | {
  'precomputed': '.precomputed'
}
TYPES = ('u1', 'u2', 'u4')
STORES = ('zarr', 'zarr3', 'n5', 'precomputed')  # folders
# Classic TIFF has 32-bit offsets; some room is left for headers.
CLASSIC_TIFF_BYTES = 2**32 - 2**25


def write_like(
  reference: volumes.Volume,
  path: str | os.PathLike,
  sections: Iterable[np.ndarray],
  *,
  suffix: str = '',
  zarr_format: int | None = None,
) -> Path:
  """Writes one section per section of `reference`, in the same form, and returns the path written.

  A folder gets images under the same names as the reference's, so that they pair up. An existing
  file is replaced only when the new one is complete; an existing folder must be empty. Arrays in
  memory are written as a stack ('ZYX') or as a folder of PNG ('NYX').

  Args:
    reference: what the sections belong to.
    path: of the file or folder; a missing extension is added. A volume may be written as TIFF, MRC,
      HDF5 ('out.h5:/name' names the dataset), '.zarr', '.n5', '.precomputed' or '.nii' whatever
      the format of the reference is. '.ome.tif' asks for OME metadata, other TIFFs get ImageJ's
      unless they need BigTIFF.
    sections: [Y, X] uint8, uint16 or uint32, sizes as in the reference; may be a generator.
    suffix: added to the name, before the extension.
    zarr_format: 2 or 3, of what is written as Zarr; None: that of a reference in Zarr, otherwise 2.

  Raises:
    OutputError: the path is the input, exists as something else, has an extension of another
      format, or of one that cannot hold the type, or cannot be written. Nothing is left behind
      then.
    ValueError: sections of a wrong number, shape or type.
  """
  target, writer = target_of(reference, path, suffix=suffix, zarr_format=zarr_format)
  check_target(reference, target, writer)
  dataset = recognise.split_dataset(os.fspath(path))[1]
  extensions = _extensions(reference)
  temporary = target.with_name(f'.{target.name}.{uuid.uuid4().hex[:8]}.tmp')
  pages = _checked(reference, sections, target, writer)
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    if reference.axes.startswith('N'):
      temporary.mkdir()
      for name, extension, page in zip(reference.names, extensions, pages, strict=False):
        _write(temporary / f'{name}{extension}', extension, iter([page]), 1, reference)
    elif writer is not None:
      _write_array(writer, temporary, pages, reference, dataset, not suffix)
    else:
      _write(temporary, _split(target.name)[1], pages, len(reference), reference)
    for _ in pages:  # raises if there are more than expected
      pass
    if target.is_dir():
      target.rmdir()  # empty, as checked
    os.replace(temporary, target)
  except OSError as error:
    raise OutputError(f'{target}: cannot be written: {error.strerror or error}') from error
  finally:
    if temporary.is_dir():
      shutil.rmtree(temporary)
    elif temporary.exists():
      temporary.unlink()
  return target


def target_of(
  reference: volumes.Volume,
  path: str | os.PathLike,
  *,
  suffix: str = '',
  zarr_format: int | None = None,
) -> tuple[Path, str | None]:
  """Where `write_like` with these arguments would write, and with which of WRITERS (None: images).

  Raises:
    OutputError: the path has an extension of another format.
  """
  folder = reference.axes.startswith('N')
  place = recognise.split_dataset(os.fspath(path))[0]
  writer = None if folder else _array_writer(reference, place, zarr_format)
  extension = _extensions(reference)[0] if writer is None else _array_extension(reference, place)
  return _name_target(Path(place), suffix, None if folder else extension), writer


def _array_writer(
  reference: volumes.Volume, place: str, zarr_format: int | None = None
) -> str | None:
  """Which of `array_writers.WRITERS` the output's extension, else the input's format, asks for."""
  asked = FORMS.get(recognise.suffix(place), FORMS.get(reference.kind))
  if recognise.suffix(place) in volumes.TIFF_SUFFIXES or asked is None:
    return None
  if asked == 'zarr' and (zarr_format or (3 if _is_zarr3(reference) else 2)) == 3:
    return 'zarr3'
  return asked


def _is_zarr3(reference: volumes.Volume) -> bool:
  place = Path(*reference.files[:1])
  return reference.kind == 'zarr' and any(place.rglob('zarr.json'))


def _array_extension(reference: volumes.Volume, place: str) -> str:
  """That of the output, else of the input, else the usual one of the format."""
  for path in (place, *reference.files[:1]):
    if recognise.suffix(path) in FORMS:
      return recognise.suffix(path)
  return USUAL[FORMS[reference.kind]]


def _write_array(
  form: str,
  path: Path,
  pages: Iterator[np.ndarray],
  reference: volumes.Volume,
  dataset: str | None,
  labels: bool,
) -> None:
  first = next(pages)
  about = array_writers.About(
    reference.voxel_size_zyx or (None, None, None), reference.offset_zyx, dataset, labels
  )
  cls = array_writers.WRITERS[form]
  writer = cls(path, (len(reference), *first.shape), first.dtype, about)
  with contextlib.closing(writer):
    rest = itertools.chain([first], pages)
    for z in range(0, len(reference), writer.depth):
      writer.put(z, np.stack(list(itertools.islice(rest, writer.depth))))


def _extensions(reference: volumes.Volume) -> tuple[str, ...]:
  """Extension of every image file: that of a TIFF input, else .tif for volumes, .png for images."""
  usual = '.tif' if reference.axes.startswith('Z') else '.png'
  found = (_split(file)[1] for file in reference.files or [''] * len(reference))
  return tuple(e if e.endswith(volumes.TIFF_SUFFIXES) else usual for e in found)


def _split(name: str) -> tuple[str, str]:
  """'a.b.ome.tif' -> ('a.b', '.ome.tif')."""
  stem, extension = os.path.splitext(name)
  if stem.lower().endswith('.ome') and extension:
    stem, extension = stem[:-4], '.ome' + extension
  return stem, extension.lower()


def _name_target(path: Path, suffix: str, extension: str | None) -> Path:
  """Adds suffix and, where missing, extension; None stands for a folder."""
  if extension is None:
    return path.with_name(path.name + suffix)
  stem, given = _split(path.name)
  same = given == extension or (
    given.endswith(volumes.TIFF_SUFFIXES) and extension.endswith(volumes.TIFF_SUFFIXES)
  )
  if not same and (given in recognise.FORMATS or given in FORMS):
    raise OutputError(
      f'{path}: this result is written as {extension}, as its input asks for, not as {given}; name '
      f'it {stem}{extension}'
    )
  return path.with_name(stem + suffix + given if same else path.name + suffix + extension)


def check_target(reference: volumes.Volume, target: Path, writer: str | None) -> None:
  """Makes sure that what `target_of` said may be written, without writing anything.

  Raises:
    OutputError: it is the input, or exists and would not be replaced.
  """
  folder = reference.axes.startswith('N') or writer in STORES
  if not target.exists():
    return
  for file in (reference.path, *reference.files):
    if os.path.exists(file) and target.samefile(file):
      raise OutputError(f'{target}: is the input; choose another output path')
  if target.is_dir() and not folder:
    raise OutputError(f'{target}: is a folder, but the result is one file; add a file name')
  if folder and not target.is_dir():
    raise OutputError(f'{target}: is a file, but the result is a folder of images')
  if folder and any(target.iterdir()):
    raise OutputError(f'{target}: is not empty; remove it or choose another output folder')


def check_type(
  reference: volumes.Volume, target: Path, writer: str | None, dtype: np.dtype
) -> None:
  """Makes sure that what `target_of` said can hold integers of a type.

  Raises:
    OutputError: it cannot.
  """
  names = _extensions(reference) if reference.axes.startswith('N') else [target.name.lower()]
  images = writer is None and not all(name.endswith(volumes.TIFF_SUFFIXES) for name in names)
  if dtype.itemsize > 2 and (images or writer == 'mrc'):
    raise OutputError(
      f'{target}: {"PNG" if images else "MRC"} cannot hold {dtype}; name the output .zarr, .n5, '
      '.precomputed, .h5, .nii or .tif'
    )


def _checked(
  reference: volumes.Volume, sections: Iterable[np.ndarray], target: Path, writer: str | None
) -> Iterator[np.ndarray]:
  count, dtype = 0, None
  for count, section in enumerate(sections, start=1):
    if count > len(reference):
      break
    shape, dtype = reference.section_shape(count - 1), dtype or section.dtype
    if section.shape != shape or section.dtype != dtype or dtype not in TYPES:
      raise ValueError(
        f'section {count - 1} is {section.shape} {section.dtype}, but {shape} '
        f'{dtype if dtype in TYPES else "uint8, uint16 or uint32"} is needed'
      )
    check_type(reference, target, writer, dtype)
    yield section
  if count != len(reference):
    more = ' or more' if count > len(reference) else ''
    raise ValueError(f'{reference.path}: {len(reference)} sections are needed, got {count}{more}')


def _write(
  path: Path, extension: str, pages: Iterator[np.ndarray], count: int, reference: volumes.Volume
) -> None:
  """Writes `count` pages to one new file in the format of the extension."""
  if extension == '.png':
    from PIL import Image

    with open(path, 'xb') as file:
      Image.fromarray(next(pages)).save(file, format='PNG')
    return
  import tifffile

  first = next(pages)
  big = count * first.nbytes > CLASSIC_TIFF_BYTES
  size = reference.voxel_size_zyx or (None, None, None)
  # ImageJ knows neither BigTIFF, nor uint32, nor a spacing without a pixel size.
  odd = big or first.dtype.itemsize > 2 or (size != (None,) * 3 and None in size[1:])
  ome = odd or extension.startswith('.ome')
  tifffile.imwrite(
    path,
    itertools.chain([first], pages),
    shape=(count, *first.shape),
    dtype=first.dtype,
    photometric='minisblack',
    compression='adobe_deflate',
    maxworkers=1,  # with more, tifffile reads ahead and holds many pages
    bigtiff=big,
    **(_ome_options(size) if ome else _imagej_options(size)),
  )


def _ome_options(size: tuple[float | None, ...]) -> dict[str, Any]:
  metadata: dict[str, Any] = {'axes': 'ZYX'}
  for axis, nanometres in zip('ZYX', size, strict=True):
    if nanometres is not None:
      metadata |= {f'PhysicalSize{axis}': nanometres, f'PhysicalSize{axis}Unit': 'nm'}
  return {'ome': True, 'metadata': metadata}


def _imagej_options(size: tuple[float | None, ...]) -> dict[str, Any]:
  z, y, x = size
  metadata: dict[str, Any] = {'axes': 'ZYX'}
  if y is None or x is None:
    return {'imagej': True, 'metadata': metadata}
  metadata['unit'] = 'nm'
  if z is not None:
    metadata['spacing'] = z
  return {'imagej': True, 'metadata': metadata, 'resolution': (1 / x, 1 / y)}
