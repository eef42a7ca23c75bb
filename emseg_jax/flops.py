"""How many floating-point operations a function takes, counted by XLA without compiling it.

A multiplication and an addition are two operations. XLA counts the body of a loop once; here the
body of every `lax.scan` is multiplied by the number of its steps.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import jaxpr_as_fun

__all__ = ['count']


def count(function: Callable[..., Any], *args: Any) -> float:
  """Operations of one call.

  Args:
    function: of arrays; its `while` loops without a known length count once.
    *args: arrays, or jax.ShapeDtypeStruct in their place.
  """
  jaxpr = jax.make_jaxpr(function)(*args)
  once = jax.jit(function).lower(*args).cost_analysis() or {}
  return once.get('flops', 0.0) + _further_steps(jaxpr.jaxpr)


def _further_steps(jaxpr: Any) -> float:
  """What the scans in `jaxpr` cost beyond one run of their bodies, scans inside them included."""
  total = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'scan':
      body = equation.params['jaxpr']
      arrays = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in body.jaxpr.invars]
      per_step = count(jaxpr_as_fun(body), *arrays)
      length, unroll = equation.params['length'], equation.params['unroll']
      # Copies of the body in the program: an unrolled loop, and what its length leaves over.
      copies = length if length <= unroll else unroll + length % unroll
      total += (length - copies) * per_step + copies * _further_steps(body.jaxpr)
    else:
      total += sum(_further_steps(inner) for inner in _inner(equation.params))
  return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  """The functions that an equation calls."""
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      inner = getattr(item, 'jaxpr', item)
      if hasattr(inner, 'eqns'):
        yield inner
