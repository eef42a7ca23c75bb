"""Parameters in fewer bits: how a bundle keeps a smaller copy of them.

Kernels, which are nearly all of a network, are stored as bfloat16, or as int8 with one float32
factor per output channel; biases, norms and running statistics stay float32. Reading gives float32
arrays again, so that whatever uses a bundle computes as before:

    bf16:  w' = bfloat16(w)
    int8:  q = round(w / s), w' = s q,  s = max |w| / 127 over all axes but the last

The difference |w - w'| is at most 2^-8 |w| for the one and s / 2 for the other.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np

__all__ = ['KINDS', 'Kind', 'expand', 'file_name', 'reduce', 'stored_as']

Kind = Literal['bf16', 'int8']
KINDS: tuple[str, ...] = get_args(Kind)
FACTORS = '_scale'  # behind the name of an int8 kernel
LARGEST = 127
SMALLEST = np.finfo(np.float32).tiny
_DTYPES = {'bf16': np.dtype(jnp.bfloat16), 'int8': np.dtype(np.int8)}


def file_name(kind: str) -> str:
  """Of the file in a bundle."""
  return f'params_{kind}.safetensors'


def stored_as(name: str, array: Any, kind: str) -> np.dtype:
  """The type of one array of the file."""
  return _DTYPES[kind] if _is_kernel(name, array) else np.dtype(np.float32)


def reduce(arrays: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
  """What is stored of float32 arrays, by path."""
  found = {}
  for name, given in arrays.items():
    array = np.asarray(given, np.float32)
    if not _is_kernel(name, array):
      found[name] = array
    elif kind == 'bf16':
      found[name] = array.astype(_DTYPES[kind])
    else:
      largest = np.abs(array).max(axis=tuple(range(array.ndim - 1)), initial=0.0)
      factors = largest / np.float32(LARGEST)
      factors[factors < SMALLEST] = 1.0  # all zero, or as good as that
      found[name] = np.rint(array / factors).clip(-LARGEST, LARGEST).astype(np.int8)
      found[name + FACTORS] = factors
  return found


def expand(stored: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
  """Float32 arrays by path, from what `reduce` made of them.

  Raises:
    ValueError: the factors of a kernel are missing, or do not fit it.
  """
  found = {}
  for name, array in stored.items():
    if name.endswith(f'kernel{FACTORS}'):
      continue
    found[name] = array.astype(np.float32)
    if kind == 'int8' and _is_kernel(name, array):
      factors = stored.get(name + FACTORS)
      if factors is None or factors.shape != array.shape[-1:]:
        raise ValueError(f'{name} has no factors for its {array.shape[-1]} output channels')
      found[name] *= factors
  return found


def _is_kernel(name: str, array: Any) -> bool:
  return name.endswith('kernel') and array.ndim > 1
