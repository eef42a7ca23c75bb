"""Small files of every format, written with libraries other than those that read them where there
are two.
"""

import gzip
import json

import h5py
import imagecodecs
import mrcfile
import numpy as np
import tensorstore
import tifffile
import zarr
from PIL import Image

VOXEL_SIZE = (30.0, 5.0, 4.0)  # z, y, x in nm


def values(*shape, dtype='u1', seed=0):
  """Random numbers over the range of an integer type, or normal ones."""
  random = np.random.default_rng(seed)
  if np.dtype(dtype).kind == 'f':
    return random.normal(size=shape).astype(dtype)
  if np.dtype(dtype).kind == 'b':
    return random.integers(0, 2, shape).astype(bool)
  info = np.iinfo(dtype)
  return random.integers(info.min, info.max, shape, np.dtype(dtype).newbyteorder('=')).astype(dtype)


def write_mrc(path, array, *, voxel_size=VOXEL_SIZE):
  """`array` is [z, y, x] as stored; packed if the name says so."""
  packing = {'.gz': 'gzip', '.bz2': 'bzip2'}.get(path.suffix)
  with mrcfile.new(path, array, compression=packing, overwrite=True) as file:
    if voxel_size is not None:
      file.voxel_size = tuple(10 * n for n in voxel_size[::-1])  # angstrom, x first
    file.set_volume()
  return path


def write_hdf5(path, array, *, name='raw', attributes=None, **options):
  with h5py.File(path, 'a') as file:
    dataset = file.create_dataset(name, data=array, **options)
    dataset.attrs.update(attributes or {})
  return path


def write_zarr(path, array, *, version=2, chunks=None, **options):
  chunks = chunks or tuple(max(1, n // 2) for n in array.shape)
  stored = zarr.create_array(
    path,
    shape=array.shape,
    dtype=array.dtype,
    chunks=chunks,
    zarr_format=version,
    overwrite=True,
    config={'write_empty_chunks': True},
    **options,
  )
  stored[...] = array
  return path


def write_ome_zarr(path, array, *, version='0.4', axes='zyx', unit='micrometer', levels=2):
  """Levels differ by a factor of 2 per axis and are cut, not averaged."""
  zarr_format = 2 if version == '0.4' else 3
  datasets = []
  for level in range(levels):
    step = 2**level
    write_zarr(
      path / str(level), array[(slice(None, None, step),) * array.ndim], version=zarr_format
    )
    size = dict(zip('zyx', VOXEL_SIZE, strict=True))
    scale = [size.get(a, 1000) * step / 1000 for a in axes]
    transformation = {'type': 'scale', 'scale': scale}
    datasets.append({'path': str(level), 'coordinateTransformations': [transformation]})
  described = [{'name': a, 'type': 'space', 'unit': unit} if a in 'zyx' else
               {'name': a, 'type': {'c': 'channel', 't': 'time'}[a]} for a in axes]  # fmt: skip
  multiscales = [{'axes': described, 'datasets': datasets}]
  attributes = {'multiscales': [{'version': version, **multiscales[0]}]}
  if zarr_format == 3:
    attributes = {'ome': {'version': version, 'multiscales': multiscales}}
  zarr.open_group(path, mode='a', zarr_format=zarr_format).attrs.update(attributes)
  return path


def write_n5(path, array, *, name='', compression='gzip', **options):
  """`array` is [z, y, x]; N5 lists x first."""
  spec = {
    'driver': 'n5',
    'store_data_equal_to_fill_value': True,
    'kvstore': {'driver': 'file', 'path': f'{path}/{name}/'.replace('//', '/')},
    'metadata': {
      'dimensions': array.shape[::-1],
      'blockSize': [max(1, n // 2) for n in array.shape[::-1]],
      'dataType': array.dtype.name,
      'compression': {'type': compression, **options},
    },
  }
  tensorstore.open(spec, create=True).result()[...] = array.T
  return path


def write_precomputed(path, array, *, resolution=VOXEL_SIZE, scale=0, encoding='raw'):
  """`array` is [z, y, x], or [z, y, x, c]; the first voxel is not at 0."""
  array = array if array.ndim == 4 else array[..., None]
  spec = {
    'driver': 'neuroglancer_precomputed',
    'store_data_equal_to_fill_value': True,
    'kvstore': {'driver': 'file', 'path': f'{path}/'},
    'multiscale_metadata': {
      'type': 'image',
      'data_type': array.dtype.name,
      'num_channels': array.shape[-1],
    },
    'scale_metadata': {
      'size': array.shape[2::-1],
      'voxel_offset': [5, 6, 7],
      'chunk_size': [max(1, n // 2) for n in array.shape[2::-1]],
      'encoding': encoding,
      'resolution': [n * 2**scale for n in resolution[::-1]],
      'key': f's{scale}',
    },
  }
  tensorstore.open(spec, create=True).result()[...] = array.transpose(2, 1, 0, 3)
  return path


def write_nifti(path, array, *, unit='micron', slope=1.0, intercept=0.0):
  import nibabel

  image = nibabel.Nifti1Image(array.T, None)
  image.header.set_xyzt_units(unit)
  image.header.set_zooms([n / 1000 for n in VOXEL_SIZE[::-1]])
  image.header.set_slope_inter(slope, intercept)
  data = image.to_bytes()
  path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)
  return path


def write_tiff(path, array, **options):
  tifffile.imwrite(path, array, photometric='minisblack', **options)
  return path


def write_png(path, array):
  path.write_bytes(imagecodecs.png_encode(array))
  return path


def write_jpeg(path, array):
  Image.fromarray(array).save(path)
  return path


def edit_json(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
