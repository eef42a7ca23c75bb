"""From a function of JAX to an ONNX graph, operation by operation.

What depends on constants alone is computed at once. Calls are dissolved; where a function has one
form for CPUs and another for all other platforms (`lax.platform_dependent`), the other is taken: it
is the one in terms of ordinary convolutions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from emseg_jax.export import onnx_layers, onnx_operations
from emseg_jax.export.onnx_graph import Graph, Tensor, Value

__all__ = ['convert']

_CALLS = ('jit', 'custom_jvp_call', 'custom_vjp_call')
_OPERATIONS = onnx_operations.OPERATIONS | onnx_layers.OPERATIONS


def convert(graph: Graph, function: Callable[..., Any], inputs: Sequence[Tensor]) -> list[Value]:
  """Adds the nodes of a function to a graph.

  Args:
    graph: where to.
    function: of float32 arrays of the inputs' shapes; their symbolic lengths stay free.
    inputs: tensors of the graph.

  Returns:
    The function's results, in the order of `jax.tree.leaves`.

  Raises:
    NotImplementedError: an operation has no counterpart; the message names it.
  """
  specs = [jax.ShapeDtypeStruct(tensor.shape, np.float32) for tensor in inputs]
  closed = jax.make_jaxpr(function)(*specs)
  results = _run(graph, closed, inputs)
  return [graph.full(r, v.aval.shape) for r, v in zip(results, closed.jaxpr.outvars, strict=True)]


def _run(graph: Graph, jaxpr: Any, inputs: Sequence[Value]) -> list[Value]:
  """The results of a jaxpr (closed or not) for these inputs."""
  constants = [np.asarray(c) for c in getattr(jaxpr, 'consts', ())]
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  values: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
  values |= dict(zip(jaxpr.invars, inputs, strict=True))

  def value_of(variable: Any) -> Value:
    if isinstance(variable, core.Literal):
      return np.asarray(variable.val, variable.aval.dtype)
    return values[variable]

  for equation in jaxpr.eqns:
    results = _equation(graph, equation, [value_of(v) for v in equation.invars])
    values |= dict(zip(equation.outvars, results, strict=True))
  return [value_of(v) for v in jaxpr.outvars]


def _equation(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
  name, params = equation.primitive.name, equation.params
  if name in _CALLS:
    return _run(graph, params.get('jaxpr') or params['call_jaxpr'], inputs)
  if name == 'platform_index':
    return [np.asarray(params['platforms'].index(None), np.int32)]
  if name == 'cond' and isinstance(inputs[0], np.ndarray):
    branches = params['branches']
    return _run(graph, branches[np.clip(inputs[0], 0, len(branches) - 1)], inputs[1:])
  if name == 'scan':
    return onnx_layers.scan(graph, equation, inputs, _run)
  if name not in _OPERATIONS:
    raise NotImplementedError(f'the operation {name}')
  folded = _folded(equation, inputs)
  if folded is not None:
    return folded
  results = _OPERATIONS[name](graph, equation, inputs)
  return list(results) if equation.primitive.multiple_results else [results]


def _folded(equation: Any, inputs: list[Value]) -> list[np.ndarray] | None:
  """The results where they are constant."""
  if not inputs or not all(isinstance(value, np.ndarray) for value in inputs):
    return None
  if equation.primitive.name in onnx_operations.LAZY:  # they leave constants as small as they are
    return None
  if equation.primitive.name in onnx_operations.ELEMENTWISE:
    inputs = np.broadcast_arrays(*inputs)
  else:
    shapes = [v.aval.shape for v in equation.invars]
    if any(not isinstance(n, int) for shape in shapes for n in shape):
      return None
    inputs = [np.broadcast_to(v, s) for v, s in zip(inputs, shapes, strict=True)]
  results = equation.primitive.bind(*map(jax.numpy.asarray, inputs), **equation.params)
  return [np.asarray(r) for r in (results if equation.primitive.multiple_results else [results])]
