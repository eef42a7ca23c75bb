"""ONNX counterparts of JAX's operations that combine voxels: products, sums, windows, parts, loops.

Each takes (graph, equation of a jaxpr, its inputs) and returns its result, as in `onnx_operations`.
"""

import itertools
import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from emseg_jax.export.onnx_graph import Graph, Tensor, Value, channels_first
from emseg_jax.export.onnx_operations import cut, elementwise, moved, squeeze

__all__ = ['OPERATIONS', 'scan']

_TO_THE_FRONT = np.iinfo(np.int64).min  # as the end of a slice that runs backwards


def _tensors(graph: Graph, values: Sequence[Value], variables: Sequence[Any]) -> list[Tensor]:
  """Values as tensors of the sizes that JAX's variables have."""
  full = [graph.full(v, a.aval.shape) for v, a in zip(values, variables, strict=True)]
  return [v if isinstance(v, Tensor) else graph.in_order(v, tuple(range(v.ndim))) for v in full]


def _convolution(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  params, layout = equation.params, equation.params['dimension_numbers']
  if set(params['lhs_dilation']) != {1} or params['batch_group_count'] != 1:
    raise NotImplementedError('a transposed convolution')
  image, kernel = (
    graph.full(v, a.aval.shape) for v, a in zip(inputs, equation.invars, strict=True)
  )
  names = [graph.stored(image, layout.lhs_spec), graph.stored(kernel, layout.rhs_spec)]
  before, after = zip(*params['padding'], strict=True)
  name = graph.node(
    'Conv',
    names,
    strides=params['window_strides'],
    dilations=params['rhs_dilation'],
    pads=[*before, *after],
    group=params['feature_group_count'],
  )
  return Tensor(name, equation.outvars[0].aval.shape, tuple(layout.out_spec))


def _product(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  (left_sum, right_sum), (left_batch, right_batch) = equation.params['dimension_numbers']
  shape, rank = equation.outvars[0].aval.shape, equation.invars[0].aval.ndim
  of_channels = left_sum == (rank - 1,) and right_sum == (0,) and not left_batch
  if of_channels and rank > 3 and isinstance(inputs[1], np.ndarray) and inputs[1].ndim == 2:
    # A product with the channels of each voxel: a convolution, which leaves them in front.
    order = channels_first(rank)
    kernel = np.broadcast_to(inputs[1], equation.invars[1].aval.shape).T
    kernel = graph.constant(kernel.reshape(*kernel.shape, *(1,) * (rank - 2)))
    image = graph.stored(graph.full(inputs[0], equation.invars[0].aval.shape), order)
    return Tensor(graph.node('Conv', [image, kernel]), shape, order)
  left, right = _tensors(graph, inputs, equation.invars)
  letters = iter(string.ascii_lowercase)
  of_left = [next(letters) for _ in left.shape]
  of_right = [next(letters) for _ in right.shape]
  for a, b in (*zip(left_sum, right_sum, strict=True), *zip(left_batch, right_batch, strict=True)):
    of_right[b] = of_left[a]
  result = [of_left[a] for a in left_batch]
  result += [of_left[a] for a in range(rank) if a not in (*left_batch, *left_sum)]
  result += [s for a, s in enumerate(of_right) if a not in (*right_batch, *right_sum)]
  terms = [
    ''.join(names[axis] for axis in tensor.order)
    for names, tensor in ((of_left, left), (of_right, right))
  ]
  name = graph.node(
    'Einsum', [left.name, right.name], equation=f'{",".join(terms)}->{"".join(result)}'
  )
  return Tensor(name, shape, tuple(range(len(shape))))


def _sum(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  return _reduced(graph, equation, inputs, 'ReduceSum', as_input=True)


def _largest(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  return _reduced(graph, equation, inputs, 'ReduceMax', as_input=False)


def _reduced(
  graph: Graph, equation: Any, inputs: list[Value], op: str, *, as_input: bool
) -> Tensor:
  """`as_input`: this opset takes the axes as an input, not as an attribute."""
  axes, (value,) = equation.params['axes'], _tensors(graph, inputs, equation.invars)
  places = sorted(value.order.index(axis) for axis in axes)
  if as_input:
    name = graph.node(op, [value.name, graph.integers(places)], keepdims=0)
  else:
    name = graph.node(op, [value.name], axes=places, keepdims=0)
  kept = [axis for axis in range(len(value.shape)) if axis not in axes]
  order = tuple(kept.index(axis) for axis in value.order if axis in kept)
  return Tensor(name, equation.outvars[0].aval.shape, order)


def _window_max(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  return _windows(graph, equation, inputs, 'MaxPool')


def _window_sum(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  mean = _windows(graph, equation, inputs, 'AveragePool', count_include_pad=1)
  count = math.prod(equation.params['window_dimensions'])
  return elementwise(graph, 'Mul', mean, np.asarray(count, np.float32))


def _windows(
  graph: Graph, equation: Any, inputs: list[Value], op: str, **attributes: Any
) -> Tensor:
  params, (value,) = equation.params, _tensors(graph, inputs, equation.invars)
  window, padding = params['window_dimensions'], params['padding']
  dilations = {*params['base_dilation'], *params['window_dilation']}
  if window[0] != 1 or window[-1] != 1 or dilations != {1}:
    raise NotImplementedError(f'a window {window} over images or channels, or a dilated one')
  order = channels_first(len(window))
  before, after = zip(*padding[1:-1], strict=True)
  name = graph.node(
    op,
    [graph.stored(value, order)],
    kernel_shape=window[1:-1],
    strides=params['window_strides'][1:-1],
    pads=[*before, *after],
    **attributes,
  )
  return Tensor(name, equation.outvars[0].aval.shape, order)


def _pad(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  value, config = (
    _tensors(graph, inputs[:1], equation.invars[:1])[0],
    equation.params['padding_config'],
  )
  if any(between for _, _, between in config):
    raise NotImplementedError('padding between voxels')
  ranges, cropped = {}, list(value.shape)
  for axis, (before, after, _) in enumerate(config):
    if before < 0 or after < 0:
      start, end = max(0, -before), value.shape[axis] - max(0, -after)
      ranges[axis], cropped[axis] = (start, end, 1), end - start
  value = cut(graph, value, ranges, tuple(cropped))
  pads = [max(0, config[axis][side]) for side in (0, 1) for axis in value.order]
  if any(pads):
    name = graph.node('Pad', [value.name, graph.integers(pads), graph.stored(inputs[1], ())])
    value = Tensor(name, equation.outvars[0].aval.shape, value.order)
  return value


def _slice(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  params, (value,) = equation.params, _tensors(graph, inputs, equation.invars)
  strides = params['strides'] or (1,) * len(value.shape)
  bounds = zip(params['start_indices'], params['limit_indices'], strides, strict=True)
  ranges = {axis: bound for axis, bound in enumerate(bounds) if bound != (0, value.shape[axis], 1)}
  return cut(graph, value, ranges, equation.outvars[0].aval.shape)


def _dynamic_slice(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  value, shape = _tensors(graph, inputs[:1], equation.invars[:1])[0], equation.outvars[0].aval.shape
  starts = dict(enumerate(inputs[1:]))
  return _window(graph, value, starts, equation.params['slice_sizes'], shape)


def _window(
  graph: Graph, value: Tensor, starts: dict[int, Value], sizes: Sequence[Any], shape: Any
) -> Tensor:
  """`sizes` voxels from `starts` on, moved inside where they would stand out."""
  ranges = {}
  for axis, start in starts.items():
    if sizes[axis] == value.shape[axis]:
      continue
    if not isinstance(start, np.ndarray):
      raise NotImplementedError('a part whose place depends on the image')
    first = int(np.clip(start, 0, value.shape[axis] - sizes[axis]))
    ranges[axis] = (first, first + sizes[axis], 1)
  return cut(graph, value, ranges, shape)


def _gather(graph: Graph, equation: Any, inputs: list[Value]) -> Value:
  """Parts at places known beforehand: x[:, 1], x[:, ::2, ::2] and the like."""
  numbers, sizes = equation.params['dimension_numbers'], equation.params['slice_sizes']
  value, places = _tensors(graph, inputs[:1], equation.invars[:1])[0], inputs[1]
  axes = numbers.start_index_map
  if not isinstance(places, np.ndarray) or numbers.operand_batching_dims:
    raise NotImplementedError('a choice of voxels that depends on the image')
  if places.ndim == 1:
    starts = dict(zip(axes, map(np.asarray, places), strict=True))
    return squeeze(graph, _window(graph, value, starts, sizes, sizes), numbers.collapsed_slice_dims)
  lines = [_line(places, j) for j in range(len(axes))]
  grid = np.stack(np.meshgrid(*lines, indexing='ij'), axis=-1)
  if axes != numbers.collapsed_slice_dims or not np.array_equal(grid, places):
    raise NotImplementedError('a choice of voxels that is no grid')
  shape, ranges = list(value.shape), {}
  for axis, line in zip(axes, lines, strict=True):
    step = int(line[1] - line[0]) if len(line) > 1 else 1
    if step < 1 or (np.diff(line) != step).any() or line[0] < 0 or line[-1] >= shape[axis]:
      raise NotImplementedError('a choice of voxels that is no grid')
    ranges[axis], shape[axis] = (int(line[0]), int(line[-1]) + 1, step), len(line)
  # The axes of the grid come where the result has no axis of a slice.
  left = [axis for axis in range(len(shape)) if axis not in axes]
  of_slices = dict(zip(numbers.offset_dims, left, strict=True))
  of_grid = iter(axes)
  order = [of_slices[a] if a in of_slices else next(of_grid) for a in range(len(shape))]
  return moved(cut(graph, value, ranges, tuple(shape)), order)


def _line(places: np.ndarray, component: int) -> np.ndarray:
  """A coordinate of a grid of places [n0, n1, ..., components], along its own axis."""
  at = [0] * (places.ndim - 1)
  if component < len(at):
    at[component] = slice(None)
  return np.atleast_1d(places[(*at, component)])


def _reverse(graph: Graph, equation: Any, inputs: list[Value]) -> Tensor:
  (value,) = _tensors(graph, inputs, equation.invars)
  ranges = dict.fromkeys(equation.params['dimensions'], (-1, _TO_THE_FRONT, -1))
  return cut(graph, value, ranges, value.shape)


def scan(
  graph: Graph, equation: Any, inputs: list[Value], run: Callable[..., list[Value]]
) -> list[Tensor]:
  """A loop over axis 0; `run` adds the nodes of a jaxpr to a graph."""
  from onnx import TensorProto, helper

  params = equation.params
  inner = getattr(params['jaxpr'], 'jaxpr', params['jaxpr'])
  if any(v.aval.dtype != np.float32 for v in (*equation.invars, *equation.outvars)):
    raise NotImplementedError('a loop over other than float32')
  # Arrays that the loop runs over have one axis more outside than inside.
  pairs = (*zip(equation.invars, inner.invars, strict=True),)
  rows = sum(outside.aval.ndim > inside.aval.ndim for outside, inside in pairs)
  pairs = (*zip(equation.outvars, inner.outvars, strict=True),)
  carried = sum(outside.aval.ndim == inside.aval.ndim for outside, inside in pairs)
  known = len(inputs) - carried - rows
  given, body = _tensors(graph, inputs[known:], equation.invars[known:]), Graph(graph)
  names = [graph.stored(v, tuple(range(len(v.shape)))) for v in given]

  def tensor_of(shape: tuple[Any, ...]) -> Tensor:
    return Tensor(body.fresh('step'), shape, tuple(range(len(shape))))

  shapes = [v.shape for v in given[:carried]] + [v.shape[1:] for v in given[carried:]]
  places = [tensor_of(shape) for shape in shapes]
  results = run(body, params['jaxpr'], [*inputs[:known], *places])
  outputs = []
  for value, variable in zip(results, inner.outvars, strict=True):
    shape = variable.aval.shape
    name = body.stored(body.full(value, shape), tuple(range(len(shape))))
    # A name of its own for each: a result may be an input, or another result as well.
    outputs.append((body.node('Identity', [name]), shape))

  def declared(name: str, shape: tuple[Any, ...]) -> Any:
    lengths = [n if isinstance(n, int) else None for n in shape]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, lengths)

  proto = body.graph_proto(
    body.fresh('loop'),
    [declared(t.name, t.shape) for t in places],
    [*itertools.starmap(declared, outputs)],
  )
  del proto.initializer[:]  # they are those of the graph around it
  backwards = [int(params['reverse'])]
  names = graph.node(
    'Scan',
    names,
    outputs=len(outputs),
    body=proto,
    num_scan_inputs=rows,
    scan_input_directions=backwards * rows,
    scan_output_directions=backwards * (len(outputs) - carried),
  )
  final = [v.aval.shape for v in equation.outvars]
  names = [names] if len(outputs) == 1 else names
  return [Tensor(n, s, tuple(range(len(s)))) for n, s in zip(names, final, strict=True)]


OPERATIONS = {
  'conv_general_dilated': _convolution,
  'dot_general': _product,
  'dynamic_slice': _dynamic_slice,
  'gather': _gather,
  'pad': _pad,
  'reduce_max': _largest,
  'reduce_sum': _sum,
  'reduce_window_max': _window_max,
  'reduce_window_sum': _window_sum,
  'rev': _reverse,
  'slice': _slice,
}
