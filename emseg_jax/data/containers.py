"""Zarr, OME-Zarr, N5 and precomputed folders: which array is meant, its axes and voxel size.

Where axes are not described: three axes of Zarr are Z, Y, X, and two Y, X; N5 lists its axes from
the fastest, so that three are X, Y, Z; precomputed is X, Y, Z, C by definition. More are not
guessed. Without a unit, a length in OME-Zarr stays unknown; `resolution` of N5 is in nm, as Janelia
writes it.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from emseg_jax.config import Reading
from emseg_jax.data import arrays, chunked
from emseg_jax.data.store import Store
from emseg_jax.data.units import to_nanometres
from emseg_jax.data.volume import Kind, Volume, stem
from emseg_jax.errors import DataError

__all__ = ['is_container', 'open_container']

KINDS: dict[chunked.Driver, Kind] = {
  'zarr': 'zarr',
  'zarr3': 'zarr',
  'n5': 'n5',
  'neuroglancer_precomputed': 'precomputed',
}
SPECIAL_AXES = {'channel': 'C', 'time': 'T'}
GROUPS_ABOVE = 2  # how far above an array the group that describes it may be

Sizes = tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class _Array:
  """An array and what is written about it; axes in the order of its format."""

  driver: chunked.Driver
  store: Store
  axes: str | None
  sizes: Sizes | None  # nm per axis
  level: int = 0


def is_container(store: Store) -> bool:
  """Whether a folder has the description of a Zarr, N5 or precomputed array or group."""
  if any(store.read_json(name) is not None for name in ('zarr.json', '.zarray', '.zgroup')):
    return True
  n5 = store.read_json('attributes.json') or {}
  if 'dimensions' in n5 or 'n5' in n5:
    return True
  if 'multiscales' in (store.read_json('.zattrs') or {}):
    return True
  return 'scales' in (store.read_json('info') or {})


def open_container(path: str, store: Store, name: str | None, *, reading: Reading) -> Volume:
  """Opens an array, or the resolution level of a group; reads descriptions only.

  Args:
    path: as the user gave it.
    store: the folder.
    name: the array or group in it; None: the folder itself.
    reading: level, axes, and what else is not described.

  Raises:
    DataError: no array there, several to choose from, or a description that is damaged.
  """
  if reading.signed is not None:
    raise DataError(f'{path}: reading.signed={reading.signed} is for 8-bit MRC files only')
  found = _find(store.child(name or ''), reading.level, path)
  array = chunked.open_chunked(
    found.driver, found.store, missing=reading.missing, level=found.level
  )
  plain = 'XYZ' if found.driver == 'n5' else 'ZYX'
  layout = arrays.find_layout(found.axes, array.shape, reading, path, plain=plain)
  size = None
  if found.sizes is not None and len(found.sizes) == len(layout.axes):
    known = dict(zip(layout.axes, found.sizes, strict=True))
    size = known.get('Z'), known['Y'], known['X']
  return arrays.StoredVolume(
    path,
    array,
    kind=KINDS[found.driver],
    layout=layout,
    dtype=array.dtype,
    name=stem(store.url),
    files=() if store.remote else (store.url,),
    voxel_size_zyx=reading.voxel_size or size,
  )


def _find(store: Store, level: int, path: str) -> _Array:
  info = store.read_json('info') or {}
  if 'scales' in info:
    _check_level(level, len(info['scales']), path)
    sizes = tuple(float(n) for n in info['scales'][level]['resolution'])
    return _Array('neuroglancer_precomputed', store, 'XYZC', (*sizes, None), level)
  found = _describe(store)
  if found is not None:
    _check_level(level, 1, path)
    return found
  store = _choose(store, level, path)
  found = _describe(store)
  if found is None:
    raise DataError(f'{path}: its array {store.url} is missing; copy it again')
  return found


def _check_level(level: int, count: int, path: str) -> None:
  if level >= count:
    allowed = '0, it has no others' if count == 1 else f'0 to {count - 1}'
    raise DataError(f'{path}: reading.level={level} is not there; allowed: {allowed}')


def _choose(store: Store, level: int, path: str) -> Store:
  """The array of a resolution level, or the only array of a group."""
  for multiscale in _multiscales(store):
    levels = [str(dataset['path']) for dataset in multiscale['datasets']]
    _check_level(level, len(levels), path)
    return store.child(levels[level])
  pyramid = [name for name in ('s0', f's{level}') if _describe(store.child(name)) is not None]
  if 's0' in pyramid:
    if f's{level}' not in pyramid:
      raise DataError(f'{path}: reading.level={level} is not there: no array s{level}')
    return store.child(f's{level}')
  names = store.arrays()
  if len(names) == 1:
    _check_level(level, 1, path)
    return store.child(names[0])
  hint = f'; name one as in {path}:/{names[0]}' if names else ''
  raise DataError(f'{path}: has no Zarr, N5 or precomputed array here{store.list_arrays()}{hint}')


def _describe(store: Store) -> _Array | None:
  """The Zarr or N5 array in this very folder, with axes and sizes; None if there is none."""
  node = store.read_json('zarr.json') or {}
  if node.get('node_type') == 'array':
    driver, names = 'zarr3', node.get('dimension_names')
  elif store.read_json('.zarray') is not None:
    driver, names = 'zarr', (store.read_json('.zattrs') or {}).get('_ARRAY_DIMENSIONS')
  else:
    node = store.read_json('attributes.json') or {}
    return _describe_n5(store, node) if 'dimensions' in node else None
  axes, sizes = _describe_level(store)
  return _Array(driver, store, axes or _letters(names), sizes)


# ---- OME-Zarr -----------------------------------------------------------------------------------


def _multiscales(store: Store) -> Sequence[dict[str, Any]]:
  """`multiscales` of a group; version 0.5 has them under `ome`."""
  attributes = (store.read_json('zarr.json') or {}).get('attributes')
  attributes = attributes or store.read_json('.zattrs') or {}
  return attributes.get('ome', attributes).get('multiscales', ())


def _describe_level(store: Store) -> tuple[str | None, Sizes | None]:
  """Axes and sizes of an array as the `multiscales` of a group above it give them."""
  group, name = store.split()
  for _ in range(GROUPS_ABOVE):
    for multiscale in _multiscales(group):
      for dataset in multiscale['datasets']:
        if dataset['path'] == name:
          return _read_multiscale(multiscale, dataset)
    group, above = group.split()
    name = f'{above}/{name}'
  return None, None


def _read_multiscale(
  multiscale: dict[str, Any], dataset: dict[str, Any]
) -> tuple[str | None, Sizes | None]:
  axes = multiscale.get('axes', list('tczyx'))  # always these before version 0.3
  axes = [{'name': axis} if isinstance(axis, str) else axis for axis in axes]
  letters = ''.join(SPECIAL_AXES.get(a.get('type')) or a['name'].upper() for a in axes)
  scale = [1.0] * len(axes)
  for transformation in (
    *dataset.get('coordinateTransformations', ()),
    *multiscale.get('coordinateTransformations', ()),
  ):
    if transformation.get('type') == 'scale':
      scale = [a * float(b) for a, b in zip(scale, transformation['scale'], strict=True)]
  return letters, _in_nanometres(scale, [axis.get('unit') for axis in axes])


def _letters(names: Any) -> str | None:
  """'ZYX' of ['z', 'y', 'x']; None if any is no such letter: names of dimensions are free."""
  letters = ''.join(str(name).upper() for name in names or ())
  known = len(letters) == len(names or ()) and not set(letters) - set('ZYXCT')
  return letters if letters and known else None


# ---- N5 -----------------------------------------------------------------------------------------


def _describe_n5(store: Store, attributes: dict[str, Any]) -> _Array:
  """Levels are s0, s1, ...; what an array does not say, the group above says for all."""
  group, name = store.split()
  above = group.read_json('attributes.json') or {}
  axes = _letters(attributes.get('axes') or above.get('axes'))
  factors = attributes.get('downsamplingFactors')
  table = above.get('downsamplingFactors') or above.get('scales')
  if factors is None and table and re.fullmatch('s[0-9]+', name):
    factors = table[int(name[1:])]
  for node in (attributes, above):
    if isinstance(node.get('pixelResolution'), dict):
      numbers = node['pixelResolution']['dimensions']
      units = [node['pixelResolution'].get('unit')] * len(numbers)
    elif 'resolution' in node:
      numbers = node['resolution']
      units = node.get('units') or ['nm'] * len(numbers)
    else:
      continue
    numbers = [float(n) * f for n, f in zip(numbers, factors or [1] * len(numbers), strict=True)]
    return _Array('n5', store, axes, _in_nanometres(numbers, units))
  return _Array('n5', store, axes, None)


def _in_nanometres(numbers: Sequence[float], units: Sequence[str | None]) -> Sizes:
  scales = [to_nanometres(unit) if unit else None for unit in units]
  return tuple(s and float(f'{n * s:.7g}') for n, s in zip(numbers, scales, strict=True))
