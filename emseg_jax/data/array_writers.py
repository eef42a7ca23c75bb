"""Volumes written slab by slab: MRC, HDF5, Zarr (OME), N5, neuroglancer's precomputed, NIfTI.

A slab is [n, Y, X], uint8, uint16 or, but for MRC, uint32; slabs come in order. Voxel sizes are
(z, y, x) in nm; what is unknown is left out, or, in precomputed volumes, which must have one, 1 nm.
"""

import abc
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from emseg_jax.data.volume import VoxelSize

__all__ = ['CHUNK', 'WRITERS', 'About', 'ArrayWriter', 'StoreWriter']

Shape = tuple[int, int, int]
CHUNK = 64  # side of the chunks of stores
SHARD_YX = (1024, 1024)  # where slabs are written
DATASET = '/data'  # of HDF5 files, unless another is asked for


@dataclasses.dataclass(frozen=True)
class About:
  """What is said of a volume that is written.

  Attributes:
    voxel_size_zyx: nm.
    offset_zyx: where its first voxel lies in the volume that it is a part of, voxels. TIFF and
      NIfTI do not hold it.
    dataset: name inside the file or folder; None: the format's usual one.
    labels: whether the values are labels, not intensities.
    box: what is written at once, so that it may be one file: a shard of Zarr 3. None: a slab.
  """

  voxel_size_zyx: VoxelSize = (None, None, None)
  offset_zyx: Shape = (0, 0, 0)
  dataset: str | None = None
  labels: bool = True
  box: Shape | None = None

  @property
  def offset_nm(self) -> tuple[float, ...] | None:
    """None where it is 0, or not known in nm."""
    if None in self.voxel_size_zyx or not any(self.offset_zyx):
      return None
    return tuple(n * size for n, size in zip(self.offset_zyx, self.voxel_size_zyx, strict=True))


class ArrayWriter(abc.ABC):
  """One volume being written.

  Attributes:
    depth: sections per slab; the last may have fewer.
  """

  depth: int = 1

  @abc.abstractmethod
  def __init__(self, path: Path, shape: Shape, dtype: np.dtype, about: About) -> None:
    """Creates the file or folder `path`.

    Args:
      path: does not exist yet, unless it is a folder, see `StoreWriter`.
      shape: (z, y, x).
      dtype: uint8, uint16, or, but for MRC, uint32.
      about: what else to say.
    """

  @abc.abstractmethod
  def put(self, z: int, slab: np.ndarray) -> None:
    """Writes sections z to z + n - 1."""

  @abc.abstractmethod
  def close(self) -> None:
    """Completes what was written."""


class MrcWriter(ArrayWriter):
  """Mode 6, uint16: the 8-bit mode is signed to some readers and unsigned to others."""

  def __init__(self, path, shape, dtype, about):
    import mrcfile

    del dtype
    self._file = mrcfile.new_mmap(path, shape, mrc_mode=6, overwrite=True)
    self._file.set_volume()
    self._file.voxel_size = tuple(10 * (n or 0) for n in reversed(about.voxel_size_zyx))
    self._file.nstart = about.offset_zyx[::-1]

  def put(self, z, slab):
    self._file.data[z : z + len(slab)] = slab

  def close(self):
    self._file.update_header_stats()
    self._file.close()


class Hdf5Writer(ArrayWriter):
  """Chunks, gzip; sizes as in Fiji (`element_size_um`) and CREMI (`resolution`, `offset`, nm)."""

  depth = 16

  def __init__(self, path, shape, dtype, about):
    import h5py

    self._file = h5py.File(path, 'w')
    chunks = tuple(min(n, c) for n, c in zip(shape, (self.depth, 256, 256), strict=True))
    self._data = self._file.create_dataset(
      about.dataset or DATASET, shape, dtype, chunks=chunks, compression='gzip', shuffle=True
    )
    for dimension, axis in zip(self._data.dims, 'zyx', strict=True):
      dimension.label = axis
    if None not in about.voxel_size_zyx:
      self._data.attrs['resolution'] = about.voxel_size_zyx
      self._data.attrs['element_size_um'] = [n / 1e3 for n in about.voxel_size_zyx]
    if about.offset_nm is not None:
      self._data.attrs['offset'] = about.offset_nm

  def put(self, z, slab):
    self._data[z : z + len(slab)] = slab

  def close(self):
    self._file.close()


class StoreWriter(ArrayWriter):
  """What tensorstore writes: folders, which may be there already and are then gone on with."""

  depth = CHUNK

  def _create(self, path: Path, spec: dict[str, Any]) -> None:
    import tensorstore

    store = {'driver': 'file', 'path': f'{path}{os.sep}'}
    # A missing chunk is then one that was lost.
    whole = {'store_data_equal_to_fill_value': True}
    spec = {**spec, **whole, 'kvstore': store, 'create': True, 'open': True}
    self._array = tensorstore.open(spec).result()

  def put(self, z, slab):
    self._array[z : z + len(slab)].write(slab).result()

  def put_box(self, start: Shape, box: np.ndarray) -> None:
    """Writes a box whose first voxel is `start`, in any order; on disk when this returns."""
    place = tuple(slice(a, a + n) for a, n in zip(start, box.shape, strict=True))
    self._array[place].write(box).result()

  def close(self):
    pass


class ZarrWriter(StoreWriter):
  """OME-Zarr with one resolution level: version 0.4 on Zarr 2."""

  def __init__(self, path, shape, dtype, about):
    group = path / about.dataset.strip('/') if about.dataset else path
    group.mkdir(parents=True, exist_ok=True)
    for folder in {path, group}:
      _write_json(folder / '.zgroup', {'zarr_format': 2})
    _write_json(group / '.zattrs', {'multiscales': [_multiscale(about, '0.4', group.name)]})
    metadata = {
      'shape': shape,
      'chunks': _chunks(shape),
      'dtype': dtype.newbyteorder('<').str,
      'compressor': {'id': 'blosc', 'cname': 'zstd', 'clevel': 5, 'shuffle': 1},
      'dimension_separator': '/',
    }
    self._create(group / '0', {'driver': 'zarr', 'metadata': metadata})


class Zarr3Writer(StoreWriter):
  """OME-Zarr with one resolution level: version 0.5 on Zarr 3, sharded."""

  def __init__(self, path, shape, dtype, about):
    group = path / about.dataset.strip('/') if about.dataset else path
    group.mkdir(parents=True, exist_ok=True)
    node: dict[str, Any] = {'zarr_format': 3, 'node_type': 'group', 'attributes': {}}
    _write_json(path / 'zarr.json', node)
    ome = {'version': '0.5', 'multiscales': [_multiscale(about, None, group.name)]}
    _write_json(group / 'zarr.json', {**node, 'attributes': {'ome': ome}})
    inner = _chunks(shape)
    written = about.box or (self.depth, *SHARD_YX)
    # Whole chunks, as far as the volume reaches.
    shard = [min(-(-b // c), -(-n // c)) * c for b, c, n in zip(written, inner, shape, strict=True)]
    codecs = [
      {'name': 'bytes', 'configuration': {'endian': 'little'}},
      {'name': 'blosc', 'configuration': {'cname': 'zstd', 'clevel': 5}},
    ]
    sharding = {'chunk_shape': inner, 'codecs': codecs}
    metadata = {
      'shape': shape,
      'data_type': dtype.name,
      'chunk_grid': {'name': 'regular', 'configuration': {'chunk_shape': shard}},
      'codecs': [{'name': 'sharding_indexed', 'configuration': sharding}],
      'dimension_names': ['z', 'y', 'x'],
    }
    self._create(group / '0', {'driver': 'zarr3', 'metadata': metadata})


class N5Writer(StoreWriter):
  """N5, whose axes are X, Y, Z."""

  def __init__(self, path, shape, dtype, about):
    path.mkdir(parents=True, exist_ok=True)
    _write_json(path / 'attributes.json', {'n5': '2.0.0'})
    metadata: dict[str, Any] = {
      'dimensions': shape[::-1],
      'blockSize': _chunks(shape)[::-1],
      'dataType': dtype.name,
      'compression': {'type': 'gzip', 'level': 5},
      'axes': ['x', 'y', 'z'],
    }
    if None not in about.voxel_size_zyx:
      metadata |= {'resolution': about.voxel_size_zyx[::-1], 'units': ['nm'] * 3}
    if about.offset_nm is not None:
      metadata['translate'] = about.offset_nm[::-1]
    place = path / (about.dataset or DATASET).strip('/')
    self._create(place, {'driver': 'n5', 'metadata': metadata})
    self._array = self._array.T


class PrecomputedWriter(StoreWriter):
  """Neuroglancer's precomputed, X, Y, Z, channel."""

  def __init__(self, path, shape, dtype, about):
    import tensorstore

    spec = {
      'driver': 'neuroglancer_precomputed',
      'multiscale_metadata': {
        'type': 'segmentation' if about.labels else 'image',
        'data_type': dtype.name,
        'num_channels': 1,
      },
      'scale_metadata': {
        'size': shape[::-1],
        'voxel_offset': about.offset_zyx[::-1],
        'resolution': [n or 1.0 for n in reversed(about.voxel_size_zyx)],
        'encoding': 'raw',
        'chunk_size': _chunks(shape)[::-1],
      },
    }
    self._create(path, spec)
    self._array = self._array[..., 0].T[tensorstore.d[:].translate_to[0]]


class NiftiWriter(ArrayWriter):
  """NIfTI-1, X, Y, Z in mm, without an orientation in space."""

  def __init__(self, path, shape, dtype, about):
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape[::-1])
    # A size of 0 is none at all to most programs; without units the number means nothing.
    header.set_zooms([1.0 if n is None else n * 1e-6 for n in reversed(about.voxel_size_zyx)])
    header.set_xyzt_units('unknown' if None in about.voxel_size_zyx else 'mm')
    with open(path, 'xb') as file:
      header['vox_offset'], header['magic'] = 352, b'n+1'
      file.write(header.binaryblock + bytes(4))
    self._data = np.memmap(path, header.get_data_dtype(), 'r+', 352, shape)

  def put(self, z, slab):
    self._data[z : z + len(slab)] = slab

  def close(self):
    self._data.flush()


WRITERS: dict[str, type[ArrayWriter]] = {
  'mrc': MrcWriter,
  'hdf5': Hdf5Writer,
  'zarr': ZarrWriter,
  'zarr3': Zarr3Writer,
  'n5': N5Writer,
  'precomputed': PrecomputedWriter,
  'nifti': NiftiWriter,
}


def _chunks(shape: Shape) -> list[int]:
  return [min(CHUNK, n) for n in shape]


def _multiscale(about: About, version: str | None, name: str) -> dict[str, Any]:
  axes = []
  for axis, nanometres in zip('zyx', about.voxel_size_zyx, strict=True):
    unit = {} if nanometres is None else {'unit': 'nanometer'}
    axes.append({'name': axis, 'type': 'space', **unit})
  steps = [1.0 if n is None else n for n in about.voxel_size_zyx]
  transforms: list[dict[str, Any]] = [{'type': 'scale', 'scale': steps}]
  if any(about.offset_zyx):
    first = [n * step for n, step in zip(about.offset_zyx, steps, strict=True)]
    transforms.append({'type': 'translation', 'translation': first})
  found = {
    'name': name,
    'axes': axes,
    'datasets': [{'path': '0', 'coordinateTransformations': transforms}],
  }
  return found if version is None else {'version': version, **found}


def _write_json(path: Path, record: dict[str, Any]) -> None:
  path.write_text(json.dumps(record, indent=2), encoding='utf-8')
