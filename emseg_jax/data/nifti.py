"""NIfTI volumes (.nii, .nii.gz), read with nibabel, an extra.

Axes are X, Y, Z (time, channel); voxels are in the order of the file, so that flips and rotations
of its affine matrix are not applied. Values are scaled by scl_slope and scl_inter, which makes them
float. A packed file is decompressed as a whole when opened.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from emseg_jax.config import Reading
from emseg_jax.data import arrays
from emseg_jax.data.units import to_nanometres
from emseg_jax.data.volume import Volume, VoxelSize, stem
from emseg_jax.errors import DataError

__all__ = ['open_nifti']

LONGEST_HEADER = 540
MICRON = '\N{MICRO SIGN}m'


@dataclasses.dataclass(frozen=True)
class Scaled:
  """Stored numbers times `slope` plus `intercept`."""

  stored: arrays.Stored
  dtype: np.dtype
  slope: float
  intercept: float

  def read(self, index: tuple[slice, ...]) -> np.ndarray:
    values = self.stored.read(index).astype(self.dtype)
    return values * self.dtype.type(self.slope) + self.dtype.type(self.intercept)


def open_nifti(path: str, *, reading: Reading) -> Volume:
  """Reads the header; of a packed file all of it.

  Raises:
    DataError: nibabel is missing, no NIfTI file, one of complex or colour voxels, or fewer voxels
      than the header announces.
  """
  try:
    import nibabel
  except ImportError as error:
    raise DataError(
      f'{path}: NIfTI files are read with nibabel, which is not installed: pip install ".[nifti]"'
    ) from error
  header = _parse(nibabel, path)
  dtype = header.get_data_dtype()
  arrays.check_type(dtype, path)
  count = int(header['dim'][0])
  shape = tuple(int(n) for n in header['dim'][1 : count + 1])
  while len(shape) > 3 and shape[-1] == 1:
    shape = shape[:-1]
  layout = arrays.find_layout('XYZTC'[: len(shape)], shape, reading, path, plain='XYZ')
  stored = arrays.locate(path, dtype, shape, int(header.get_data_offset()), order='F')
  slope, intercept = _scaling(header, path)
  if (slope, intercept) != (1, 0):
    # 16 bits and less fit into float32 with room to spare.
    dtype = np.dtype('f4' if dtype.itemsize <= 2 or dtype == 'f4' else 'f8')
    stored = Scaled(stored, dtype, slope, intercept)
  return arrays.StoredVolume(
    path,
    stored,
    kind='nifti',
    layout=layout,
    dtype=dtype,
    name=stem(path),
    files=(path,),
    voxel_size_zyx=reading.voxel_size or _voxel_size(header),
  )


def _parse(nibabel: Any, path: str) -> Any:
  with arrays.open_packed(path) as file:
    head = file.read(LONGEST_HEADER)
  # The header begins with its own length, 348 in NIfTI-1 and 540 in NIfTI-2.
  second = 540 in (int.from_bytes(head[:4], order) for order in ('little', 'big'))
  kind = nibabel.Nifti2Header if second else nibabel.Nifti1Header
  # Its check would write to stderr what it makes of a damaged header.
  header = kind(head[: kind.template_dtype.itemsize], check=False)
  dims = header['dim']
  if header['magic'].item()[:2] != b'n+' or not 2 <= dims[0] <= 5 or min(dims[1 : dims[0] + 1]) < 1:
    raise DataError(
      f'{path}: is no NIfTI file of one piece with 2 to 5 axes: magic {header["magic"].item()!r}, '
      f'dim {dims.tolist()}'
    )
  return header


def _scaling(header: Any, path: str) -> tuple[float, float]:
  slope, intercept = (float(header[name]) for name in ('scl_slope', 'scl_inter'))
  if slope == 0 or math.isnan(slope):  # not scaled, says the standard
    return 1.0, 0.0
  if not (math.isfinite(slope) and math.isfinite(intercept)):
    raise DataError(f'{path}: scl_slope={slope}, scl_inter={intercept} must be finite')
  return slope, intercept


def _voxel_size(header: Any) -> VoxelSize | None:
  """(z, y, x) in nm; None if the unit is not given."""
  unit = {1: 'm', 2: 'mm', 3: MICRON}.get(int(header['xyzt_units']) & 7)
  if unit is None:
    return None
  scale = to_nanometres(unit)
  x, y, z = (float(f'{scale * float(n):.7g}') for n in header['pixdim'][1:4])
  return (z if header['dim'][0] > 2 else None), y, x
