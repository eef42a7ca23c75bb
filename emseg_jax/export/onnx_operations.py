"""ONNX counterparts of JAX's operations on single values, and of moving values about.

Each takes (graph, equation of a jaxpr, its inputs) and returns its result. `onnx_layers` has those
that sum products, and loops.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from emseg_jax.export.onnx_graph import Graph, Shape, Tensor, Value, common_shape, free_once

__all__ = ['ELEMENTWISE', 'LAZY', 'OPERATIONS', 'cut', 'elementwise', 'moved', 'squeeze']


def elementwise(graph: Graph, op: str, *inputs: Value, **attributes: Any) -> Tensor:
  """One node for values of one shape; lengths of 1 and scalars are repeated."""
  shape = common_shape([v.shape for v in inputs])
  tensors = [v for v in inputs if isinstance(v, Tensor) and len(v.shape) == len(shape)]
  # The largest stays as it is stored.
  order = max(tensors, key=lambda t: sum(n != 1 for n in t.shape)).order
  return Tensor(
    graph.node(op, [graph.stored(v, order) for v in inputs], **attributes), shape, order
  )


def _node(op: str) -> Callable[[Graph, Any, list[Value]], Tensor]:
  return lambda graph, equation, inputs: elementwise(graph, op, *inputs)


def _maximum(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  for x, other in (inputs, inputs[::-1]):
    if isinstance(other, np.ndarray) and not other.any():
      return elementwise(graph, 'Relu', x)
  return elementwise(graph, 'Max', *inputs)


def _minus(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  x, y = inputs
  if isinstance(y, np.ndarray):  # runtimes merge a sum into the convolution before it
    return elementwise(graph, 'Add', x, np.asarray(-y))
  return elementwise(graph, 'Sub', x, y)


def _rsqrt(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  return elementwise(graph, 'Reciprocal', elementwise(graph, 'Sqrt', *inputs))


def _square(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  return elementwise(graph, 'Mul', inputs[0], inputs[0])


def _integer_pow(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  return elementwise(graph, 'Pow', inputs[0], np.asarray(equation.params['y'], np.float32))


def _erfc(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  return elementwise(graph, 'Sub', np.ones((), np.float32), elementwise(graph, 'Erf', *inputs))


def _expm1(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  return elementwise(graph, 'Add', elementwise(graph, 'Exp', *inputs), np.asarray(-1, np.float32))


def _not_equal(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  return elementwise(graph, 'Not', elementwise(graph, 'Equal', *inputs))


def _select(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
  which, *cases = inputs
  if isinstance(which, np.ndarray) and which.size == 1:
    return cases[int(which.item())]
  if len(cases) != 2 or equation.invars[0].aval.dtype != bool:
    raise NotImplementedError('a choice between more than two')
  if isinstance(which, np.ndarray) and all(isinstance(c, np.ndarray) for c in cases):
    return np.where(which, cases[1], cases[0])
  return elementwise(graph, 'Where', which, cases[1], cases[0])


def _cast(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
  from onnx import helper

  new = np.dtype(equation.params['new_dtype'])
  if equation.invars[0].aval.dtype == new:
    return inputs[0]
  return elementwise(graph, 'Cast', inputs[0], to=helper.np_dtype_to_tensor_dtype(new))


def _same(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
  return inputs[0]


def _iota(graph: Graph, equation: Any, inputs: list[Value]) -> np.ndarray:
  axis, shape = equation.params['dimension'], equation.params['shape']
  along = [-1 if a == axis else 1 for a in range(len(shape))]
  return np.arange(shape[axis], dtype=equation.params['dtype']).reshape(along)


def _length(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  from onnx import TensorProto

  name = graph.node('Squeeze', [graph.length(equation.params['dim']), graph.integers([0])])
  return Tensor(graph.node('Cast', [name], to=TensorProto.INT32), (), ())


def _unsqueeze(graph: Graph, value: Value, places: Sequence[int], rank: int) -> Value:
  """Adds axes of length 1: axis i of the value becomes axis `places[i]` of `rank`."""
  shape = [1] * rank
  for place, length in zip(places, value.shape, strict=True):
    shape[place] = length
  if isinstance(value, np.ndarray):
    return value.reshape(shape)
  if len(places) == rank:
    return value
  order = [places[axis] for axis in value.order]
  for axis in sorted(set(range(rank)) - set(places)):
    order.insert(order.index(axis - 1) + 1 if axis else 0, axis)
  new = [i for i, axis in enumerate(order) if axis not in places]
  name = graph.node('Unsqueeze', [value.name, graph.integers(new)])
  return Tensor(name, tuple(shape), tuple(order))


def _broadcast(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
  """Only the axes; who needs the full size asks for it."""
  places, shape = equation.params['broadcast_dimensions'], equation.params['shape']
  return _unsqueeze(graph, inputs[0], places, len(shape))


def moved(value: Value, permutation: Sequence[int]) -> Value:
  """Axis i of the result is axis `permutation[i]` of the value."""
  if isinstance(value, np.ndarray):
    return value.transpose(permutation)
  order = tuple(list(permutation).index(axis) for axis in value.order)
  return Tensor(value.name, tuple(value.shape[axis] for axis in permutation), order)


def _transpose(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
  return moved(inputs[0], equation.params['permutation'])


def squeeze(graph: Graph, value: Value, dimensions: Sequence[int]) -> Value:
  """Drops axes of length 1."""
  kept = [axis for axis in range(len(value.shape)) if axis not in dimensions]
  shape = tuple(value.shape[axis] for axis in kept)
  if isinstance(value, np.ndarray):
    return value.reshape(shape)
  if not dimensions:
    return value
  gone = [i for i, axis in enumerate(value.order) if axis in dimensions]
  order = tuple(kept.index(axis) for axis in value.order if axis in kept)
  return Tensor(graph.node('Squeeze', [value.name, graph.integers(gone)]), shape, order)


def _squeeze(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
  return squeeze(graph, inputs[0], equation.params['dimensions'])


def _groups(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]] | None:
  """Axes of the old shape and those of the new one that have the same voxels; None: no such."""
  groups, i, j = [], 0, 0
  while i < len(old) or j < len(new):
    a, b = [i] if i < len(old) else [], [j] if j < len(new) else []
    i, j = i + len(a), j + len(b)
    while (left := _product(old, a)) != (right := _product(new, b)):
      if not isinstance(left, int) or not isinstance(right, int):
        return None
      if left < right and i < len(old):
        a, i = [*a, i], i + 1
      elif right < left and j < len(new):
        b, j = [*b, j], j + 1
      else:
        return None
    groups.append((a, b))
  return groups


def _product(shape: Shape, axes: Sequence[int]) -> Any:
  lengths = [shape[axis] for axis in axes]
  return lengths[0] if len(lengths) == 1 else math.prod(lengths)


def _reshape(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
  """Axes that are split or merged by themselves leave the order of the others as it is."""
  old, new = equation.invars[0].aval.shape, tuple(equation.params['new_sizes'])
  value = graph.full(inputs[0], old)
  groups = _groups(old, new) or [(list(range(len(old))), list(range(len(new))))]
  if isinstance(value, np.ndarray):
    value = graph.in_order(value, tuple(range(value.ndim)))
  places = {axis: place for place, axis in enumerate(value.order)}
  groups.sort(key=lambda group: places[group[0][0]] if group[0] else len(places))
  value = graph.in_order(value, tuple(axis for axes, _ in groups for axis in axes))
  order = tuple(axis for _, axes in groups for axis in axes)
  target = graph.integers(free_once([new[axis] for axis in order]))
  return Tensor(graph.node('Reshape', [value.name, target]), new, order)


def _concatenated(graph: Graph, values: list[Value], shapes: list[Shape], axis: int) -> Tensor:
  values = [graph.full(v, s) for v, s in zip(values, shapes, strict=True)]
  order = next((v.order for v in values if isinstance(v, Tensor)), tuple(range(len(shapes[0]))))
  name = graph.node('Concat', [graph.stored(v, order) for v in values], axis=order.index(axis))
  total = sum(shape[axis] for shape in shapes)
  return Tensor(name, (*shapes[0][:axis], total, *shapes[0][axis + 1 :]), order)


def _concatenate(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  shapes = [v.aval.shape for v in equation.invars]
  return _concatenated(graph, inputs, shapes, equation.params['dimension'])


def _stack(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  axis, shape = equation.params['axis'], equation.invars[0].aval.shape
  places = [a for a in range(len(shape) + 1) if a != axis]
  values = [_unsqueeze(graph, v, places, len(shape) + 1) for v in inputs]
  shapes = [(*shape[:axis], 1, *shape[axis:])] * len(values)
  return _concatenated(graph, values, shapes, axis)


def _split(graph: Graph, equation: Any, inputs: list[Value]) -> list[Tensor]:
  sizes = [int(size) for size in equation.params['sizes']]
  return _parts(graph, equation, inputs[0], sizes)


def _unstack(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
  sizes, axis = [1] * len(equation.outvars), equation.params['axis']
  return [squeeze(graph, part, [axis]) for part in _parts(graph, equation, inputs[0], sizes)]


def _parts(graph: Graph, equation: Any, value: Value, sizes: list[int]) -> list[Tensor]:
  axis, shape = equation.params['axis'], equation.invars[0].aval.shape
  value = graph.full(value, shape)
  if len(sizes) == 1:
    return [value]
  names = graph.node(
    'Split',
    [value.name, graph.integers(sizes)],
    outputs=len(sizes),
    axis=value.order.index(axis),
  )
  return [
    Tensor(name, (*shape[:axis], size, *shape[axis + 1 :]), value.order)
    for name, size in zip(names, sizes, strict=True)
  ]


def cut(
  graph: Graph, value: Tensor, ranges: dict[int, tuple[int, int, int]], shape: Shape
) -> Tensor:
  """A part of a tensor: axis -> (start, end, step); `shape` is the result's."""
  if not ranges:
    return value
  axes = [value.order.index(axis) for axis in ranges]
  parts = [graph.integers(part) for part in (*list(zip(*ranges.values(), strict=True))[:2], axes)]
  parts.append(graph.integers([step for _, _, step in ranges.values()]))
  return Tensor(graph.node('Slice', [value.name, *parts]), tuple(shape), value.order)


_ELEMENTWISE = {
  'abs': _node('Abs'),
  'add': _node('Add'),
  'and': _node('And'),
  'div': _node('Div'),
  'eq': _node('Equal'),
  'erf': _node('Erf'),
  'erfc': _erfc,
  'exp': _node('Exp'),
  'expm1': _expm1,
  'ge': _node('GreaterOrEqual'),
  'gt': _node('Greater'),
  'integer_pow': _integer_pow,
  'le': _node('LessOrEqual'),
  'log': _node('Log'),
  'logistic': _node('Sigmoid'),
  'lt': _node('Less'),
  'max': _maximum,
  'min': _node('Min'),
  'mul': _node('Mul'),
  'ne': _not_equal,
  'neg': _node('Neg'),
  'not': _node('Not'),
  'or': _node('Or'),
  'pow': _node('Pow'),
  'rsqrt': _rsqrt,
  'sqrt': _node('Sqrt'),
  'square': _square,
  'sub': _minus,
  'tanh': _node('Tanh'),
}
# Of constants only, these are computed voxel by voxel ...
ELEMENTWISE = frozenset(_ELEMENTWISE) | {'convert_element_type'}
# ... and these leave them as small as they are.
LAZY = frozenset({'broadcast_in_dim', 'transpose', 'squeeze', 'select_n', 'copy', 'stop_gradient'})
OPERATIONS = _ELEMENTWISE | {
  'broadcast_in_dim': _broadcast,
  'concatenate': _concatenate,
  'convert_element_type': _cast,
  'copy': _same,
  'dim_as_value': _length,
  'iota': _iota,
  'reshape': _reshape,
  'select_n': _select,
  'split': _split,
  'squeeze': _squeeze,
  'stack': _stack,
  'stop_gradient': _same,
  'transpose': _transpose,
  'unstack': _unstack,
}
