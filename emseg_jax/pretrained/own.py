"""Parameters under the names of this package: how a bundle keeps them, and a network starts from
them.

A safetensors file with one float32 tensor for each array, called by its path,
'params/enc1/conv1/kernel'. Its metadata tell how many channels the network takes and gives, which
explains why a first or a last layer of another network has another shape, and for which
normalisation of images it was trained.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np

from emseg_jax.errors import ConfigError, DataError
from emseg_jax.pretrained.matching import Row

__all__ = ['PARAMS', 'About', 'about', 'find', 'flat', 'match', 'nested', 'pack', 'read', 'tensors']

PARAMS = 'params.safetensors'
FORMAT = 'emseg_jax'
StoredAs = Callable[[str, np.ndarray], np.dtype]
LARGEST_HEADER = 10**7  # bytes; that of a network of 10,000 arrays has 1.5 MB


@dataclasses.dataclass(frozen=True)
class About:
  """What a file says of its network.

  Attributes:
    inputs: channels of the image that the network sees.
    outputs: channels of its logits.
    normalisation: of images, as in data.normalisation.
  """

  inputs: int
  outputs: int
  normalisation: str


def _float32(name: str, array: np.ndarray) -> np.dtype:
  del name, array
  return np.dtype(np.float32)


def find(path: str | Path) -> Path | None:
  """The file of parameters that `path` is, or that lies in it; None if it is none of ours."""
  path = Path(path)
  inside = path / PARAMS
  if inside.is_file():
    return inside
  return path if path.name == PARAMS else None


def flat(variables: Mapping[str, Any]) -> dict[str, Any]:
  """{'params': {'head': {'kernel': x}}} -> {'params/head/kernel': x}."""
  return flax.traverse_util.flatten_dict(dict(variables), sep='/')


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """The reverse of `flat`."""
  return flax.traverse_util.unflatten_dict(dict(arrays), sep='/')


def tensors(variables: Mapping[str, Any], about: About) -> bytes:
  """What is in a file of float32 arrays, from 'params' and, where there are any, 'batch_stats'."""
  return pack({k: np.asarray(v, np.float32) for k, v in flat(variables).items()}, about)


def pack(arrays: Mapping[str, np.ndarray], about: About) -> bytes:
  """What is in a file of arrays by path, of any type."""
  import safetensors.numpy

  metadata = {name: str(value) for name, value in dataclasses.asdict(about).items()}
  ordered = {name: np.array(array, order='C') for name, array in arrays.items()}
  return safetensors.numpy.save(ordered, {'format': FORMAT} | metadata)


def about(path: Path) -> About:
  """Reads nothing but what the file says of its network.

  Raises:
    DataError: see `read`.
  """
  return _read(path, arrays=False)[1]


def read(path: Path, *, stored_as: StoredAs = _float32) -> tuple[dict[str, np.ndarray], About]:
  """The arrays by path, and what the file says of its network.

  Args:
    path: of the file.
    stored_as: (path, array) -> the type that it must have; default float32 for all.

  Raises:
    DataError: there is no such file, it is damaged, or it is not written by `tensors` or `pack`.
  """
  found, known = _read(path, arrays=True)
  for name, array in found.items():
    if array.dtype != stored_as(name, array):
      raise DataError(
        f'{path}: the tensor {name} is {array.dtype}, it must be {stored_as(name, array)}'
      )
  return found, known


def _read(path: Path, *, arrays: bool) -> tuple[dict[str, np.ndarray], About]:
  import safetensors

  try:
    with path.open('rb') as file:
      length = int.from_bytes(file.read(8), 'little')
    if length > LARGEST_HEADER:
      raise DataError(
        f'{path}: its header claims {length} bytes, at most {LARGEST_HEADER} are allowed; it is '
        'damaged or no safetensors file'
      )
    with safetensors.safe_open(path, framework='numpy') as file:
      said = file.metadata() or {}
      if said.get('format') != FORMAT:
        raise DataError(
          f'{path}: is not written by this package (its metadata lack format={FORMAT}); take the '
          'folder that --mode=export wrote'
        )
      known = About(int(said['inputs']), int(said['outputs']), said['normalisation'])
      names = file.keys() if arrays else ()
      found = {name: file.get_tensor(name) for name in names}
  except OSError as error:
    raise DataError(f'{path}: cannot be read: {error.strerror or error}') from error
  except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
    reason = ' '.join(str(error).split())
    raise DataError(f'{path}: is damaged or cut short ({reason}); copy it again') from error
  return found, known


def match(variables: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], list[Row]]:
  """Starts every module of a network from the module of that name in the file.

  A last layer for another number of classes stays as it is, and a first layer for another number of
  channels is adapted: its kernels are summed up, or shared out, so that equal channels give what
  one gave.

  Args:
    variables: as in `load_pretrained`.
    path: of the file.

  Raises:
    ConfigError: a module is of another kind or size, or no module is in both.
    DataError: see `read`.
  """
  arrays, known = read(path)
  ours = flat(variables)
  modules = {_module(name) for name in ours} & {_module(name) for name in arrays}
  if not modules:
    raise ConfigError(
      f'{path}: no module of the network is in it; it has '
      f'{", ".join(sorted({_module(name) for name in arrays}))}'
    )
  filled, rows = dict(ours), []
  fresh: dict[str, list[int]] = {}
  for name, leaf in ours.items():
    shape, size = tuple(leaf.shape), int(np.prod(leaf.shape))
    if _module(name) not in modules:
      fresh.setdefault(_module(name), []).append(size)
      continue
    if name not in arrays:
      raise _misfit(path, name, None, shape)
    value, note = _fitted(arrays[name], shape, known)
    if note is None:
      raise _misfit(path, name, arrays[name].shape, shape)
    status = 'fresh' if value is None else 'adapted' if note else 'loaded'
    filled[name] = leaf if value is None else value
    rows.append(Row(name.partition('/')[2], name, shape, status, note, 1, size))
  for name in sorted(arrays.keys() - ours.keys()):
    if _module(name) in modules:
      raise _misfit(path, name, arrays[name].shape, None)
    array, note = arrays[name], f'the network has no {_module(name)}'
    rows.append(Row(name.partition('/')[2], '', array.shape, 'unused', note, 1, array.size))
  rows += [Row('', f'params/{m}', (), 'fresh', '', len(n), sum(n)) for m, n in fresh.items()]
  return {name: {} for name in variables} | nested(filled), rows


def _module(name: str) -> str:
  """'params/enc1/conv1/kernel' -> 'enc1'."""
  return name.split('/')[1]


def _fitted(
  value: np.ndarray, shape: tuple[int, ...], known: About
) -> tuple[np.ndarray | None, str | None]:
  """(our array, what was changed); (None, why) for a fresh start; (None, None) without reason."""
  if value.shape == shape:
    return value, ''
  if value.ndim != len(shape):
    return None, None
  differs = [a != b for a, b in zip(value.shape, shape, strict=True)]
  given, wanted = value.shape[-1], shape[-1]
  if differs == [False] * (len(shape) - 1) + [True] and given == known.outputs:
    return None, f'{given} -> {wanted} outputs'
  if len(shape) > 2 and differs == [False] * (len(shape) - 2) + [True, False]:
    given, wanted = value.shape[-2], shape[-2]
    if given == known.inputs and 1 in (given, wanted):
      spread = np.repeat(value.sum(-2, keepdims=True) / wanted, wanted, axis=-2)
      return np.float32(spread), f'{given} -> {wanted} input channels'
  return None, None


def _misfit(
  path: Path, name: str, given: tuple[int, ...] | None, ours: tuple[int, ...] | None
) -> ConfigError:
  def show(shape: tuple[int, ...] | None) -> str:
    return 'nothing' if shape is None else str(list(shape))

  return ConfigError(
    f'{path}: {name} is {show(given)} in the file and {show(ours)} in the network; only first and '
    'last layers may differ: set model.name and model.options as in its model.json'
  )
