"""Losses on parameters."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

__all__ = ['l2']


def l2(params: Any, *, pattern: str = 'kernel$') -> jax.Array:
  """Sum of the squares of some parameters (SegET: of all kernels).

      L = sum |W|^2

  Unlike weight decay it is part of the loss that is printed, and its gradient goes through the
  optimiser's moments.

  Args:
    params: the parameters, dictionaries of dictionaries.
    pattern: regular expression that is searched for in paths such as 'encoder/conv1/kernel'.

  Returns:
    Scalar, float32; 0 if there are no parameters at all.

  Raises:
    ValueError: `pattern` is not a regular expression, or none of the parameters has such a path.
  """
  try:
    expression = re.compile(pattern)
  except (re.error, TypeError) as error:
    raise ValueError(f'pattern is {pattern!r}, must be a regular expression: {error}') from error
  leaves = traverse_util.flatten_dict(params, sep='/')
  chosen = [leaf for path, leaf in leaves.items() if expression.search(path)]
  if leaves and not chosen:
    raise ValueError(
      f'pattern is {pattern!r}, must be in the path of a parameter such as {min(leaves)!r}'
    )
  squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in chosen]
  return sum(squares, jnp.zeros((), jnp.float32))
