"""Reads the tensors of a file of pretrained weights: safetensors, or HDF5 as Keras writes it."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from emseg_jax.errors import DataError

__all__ = ['read']

_HDF5 = b'\x89HDF\r\n\x1a\n'
_ZIP = b'PK\x03\x04'
_PICKLE = (b'\x80\x02', b'\x80\x03', b'\x80\x04', b'\x80\x05')

_CONVERT_TORCH = (
  'is a PyTorch pickle, which can run code when it is read: convert it once where PyTorch is '
  'installed, with "import torch, safetensors.torch" and '
  '"safetensors.torch.save_file({{k: v.contiguous().clone() for k, v in torch.load({name!r}, '
  "weights_only=True).items()}}, {stem!r} + '.safetensors')\""
)
_CONVERT_KERAS = (
  'is a .keras archive: save it as HDF5 once, with '
  '"keras.saving.load_model({name!r}).save({stem!r} + \'.h5\')"'
)


def read(path: str | Path) -> dict[str, np.ndarray]:
  """All tensors of a file, by name, with the types they are stored in.

  The format is told by the content. The weights of a Keras layer are called 'layer/kernel' and
  'layer/bias' in all HDF5 layouts of Keras; other datasets keep their path in the file.

  Raises:
    DataError: there is no such file, or it is damaged or of another format.
  """
  path = Path(path)
  try:
    kind = _kind(path)
    return _read_hdf5(path) if kind == 'hdf5' else _read_safetensors(path)
  except (OSError, KeyError, RuntimeError) as error:  # h5py raises all of them for damage
    raise DataError(f'{path}: cannot be read as pretrained weights ({_one_line(error)})') from error


def _kind(path: Path) -> str:
  if not path.is_file():
    what = 'is a folder, not a file' if path.is_dir() else 'there is no such file'
    raise DataError(f'{path}: {what}; pretrained weights are one .safetensors or .h5 file on disk')
  with path.open('rb') as file:
    start = file.read(9)
  if start.startswith(_HDF5):
    return 'hdf5'
  convert = None
  if start.startswith(_ZIP):
    convert = _CONVERT_KERAS if _is_keras_archive(path) else _CONVERT_TORCH
  elif start.startswith(_PICKLE):
    convert = _CONVERT_TORCH
  if convert:
    raise DataError(f'{path}: {convert.format(name=path.name, stem=path.stem)}')
  if start[8:] == b'{':  # after the length of the header, its JSON
    return 'safetensors'
  raise DataError(
    f'{path}: is neither a safetensors nor an HDF5 file (it begins with {start!r}); pretrained '
    'weights are read from .safetensors and from .h5 of Keras'
  )


def _is_keras_archive(path: Path) -> bool:
  try:
    with zipfile.ZipFile(path) as archive:
      return 'model.weights.h5' in archive.namelist()
  except zipfile.BadZipFile:
    return False


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
  import safetensors

  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
  except (safetensors.SafetensorError, TypeError) as error:
    raise DataError(
      f'{path}: cannot be read as safetensors ({_one_line(error)}); copy or download it again'
    ) from error


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
  import h5py

  with h5py.File(path) as file:
    # A whole model keeps its weights in a group of their own, beside those of the optimiser.
    layers = list(_layers(file.get('model_weights', file), h5py))
    return {name: np.asarray(dataset) for name, dataset in _named(layers)}


def _layers(group: Any, h5py: Any) -> Iterator[tuple[str, list[Any]]]:
  """(layer's name, its datasets) of every group that holds datasets."""
  datasets = [item for item in group.values() if isinstance(item, h5py.Dataset)]
  if datasets:
    parts = group.name.split('/')
    # Keras 3 keeps 'layers/conv2d_3/vars/0' and the layer's own name beside it.
    name = group.attrs.get('name', parts[-2]) if parts[-1] == 'vars' else parts[-1]
    yield str(name), datasets
  for key, item in group.items():
    if isinstance(item, h5py.Group) and key not in ('optimizer', 'optimizer_weights'):
      yield from _layers(item, h5py)


def _named(layers: list[tuple[str, list[Any]]]) -> Iterator[tuple[str, Any]]:
  """Calls the one kernel and the one bias of a layer so, whatever Keras called them."""
  names = [name for name, _ in layers]
  for layer, datasets in layers:
    datasets = [d for d in datasets if d.dtype.kind in 'fiu']
    ranks = [d.ndim for d in datasets]
    kernels = sum(r >= 2 for r in ranks)
    plain = kernels == 1 and ranks.count(1) == len(ranks) - 1 <= 1 and names.count(layer) == 1
    for dataset, rank in zip(datasets, ranks, strict=True):
      yield (f'{layer}/{"kernel" if rank >= 2 else "bias"}' if plain else dataset.name), dataset


def _one_line(error: Exception) -> str:
  return ' '.join(str(error).split())
