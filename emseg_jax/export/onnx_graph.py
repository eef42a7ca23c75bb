"""An ONNX graph under construction.

A value is a constant, `numpy.ndarray`, or a `Tensor` that is only known when the graph runs. Both
may have length 1 along axes where JAX has already repeated them: ONNX repeats by itself wherever it
combines two values. A tensor's axes are stored in any order: ONNX wants channels first, our
networks have them last, and a transposition that is only written down costs nothing.

Axes have an integer length, or a symbolic one: the number of images, which stays free.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
  'OPSET',
  'Graph',
  'Shape',
  'Tensor',
  'Value',
  'channels_first',
  'common_shape',
  'free_once',
]

OPSET = 17  # of 2022: read by onnxruntime 1.12 and newer, and by what ilastik and Fiji ship
_IR_VERSION = 8  # the one of that opset

Shape = tuple[Any, ...]  # int, or a symbolic dimension of jax.export


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A value of the running graph.

  Attributes:
    name: in the graph.
    shape: lengths of its axes as JAX counts them, but 1 where it is still to be repeated.
    order: the axes in the order in which they are stored.
  """

  name: str
  shape: Shape
  order: tuple[int, ...]


Value = np.ndarray | Tensor


def channels_first(rank: int) -> tuple[int, ...]:
  """The order in which ONNX stores [B, *spatial, C]."""
  return (0, rank - 1, *range(1, rank - 1))


def common_shape(shapes: Sequence[Shape]) -> Shape:
  """The shape of a combination of values; scalars fit every shape."""
  rank = max(map(len, shapes))
  full = [shape for shape in shapes if len(shape) == rank]
  return tuple(next((n for n in lengths if n != 1), 1) for lengths in zip(*full, strict=True))


class Graph:
  """Nodes in running order.

  A body (of a loop) is a graph whose `parent` is the one around it: it sees its tensors, shares its
  names, and keeps its constants there.
  """

  def __init__(self, parent: 'Graph | None' = None) -> None:
    self.nodes: list[Any] = []
    self.constants: list[Any] = parent.constants if parent else []
    self._count = parent._count if parent else itertools.count()
    self.batch: tuple[Any, str] | None = parent.batch if parent else None

  def input(self, name: str, shape: Shape, order: tuple[int, ...]) -> Tensor:
    """A tensor that is given; the first one's axis 0 is the number of images."""
    if self.batch is None:
      self.batch = (shape[0], name)
    return Tensor(name, shape, order)

  def fresh(self, hint: str) -> str:
    return f'{hint.lower()}_{next(self._count)}'

  def node(self, op: str, inputs: Sequence[str], *, outputs: int = 1, **attributes: Any) -> Any:
    """Adds a node; returns the name of its output, or a list of names."""
    from onnx import helper

    names = [self.fresh(op) for _ in range(outputs)]
    self.nodes.append(helper.make_node(op, list(inputs), names, name=names[0], **attributes))
    return names[0] if outputs == 1 else names

  def constant(self, value: Any, dtype: Any = None) -> str:
    """The name of a constant."""
    from onnx import numpy_helper

    name = self.fresh('constant')
    array = np.ascontiguousarray(np.asarray(value, dtype)).reshape(np.shape(value))
    self.constants.append(numpy_helper.from_array(array, name))
    return name

  def integers(self, values: Sequence[int]) -> str:
    return self.constant(list(values), np.int64)

  def stored(self, value: Value, order: tuple[int, ...]) -> str:
    """The name of a value with its axes in this order; a scalar has none."""
    if isinstance(value, np.ndarray):
      return self.constant(value.transpose(order) if value.ndim else value)
    if not value.shape or value.order == order:
      return value.name
    moved = [axis for axis in value.order if value.shape[axis] != 1]
    if moved == [axis for axis in order if value.shape[axis] != 1]:
      target = self.integers(free_once([value.shape[axis] for axis in order]))
      return self.node('Reshape', [value.name, target])
    return self.node('Transpose', [value.name], perm=[value.order.index(a) for a in order])

  def in_order(self, value: Value, order: tuple[int, ...]) -> Tensor:
    """The value as a tensor that is stored in this order."""
    return Tensor(self.stored(value, order), tuple(value.shape), order)

  def full(self, value: Value, shape: Shape) -> Value:
    """Repeats a value to the shape that JAX knows it by."""
    if tuple(value.shape) == tuple(shape):
      return value
    if isinstance(value, np.ndarray):
      if all(isinstance(n, int) for n in shape):
        return np.broadcast_to(value, shape)
      value = self.in_order(value, tuple(range(value.ndim)))
    # A length of 1 leaves the axis as it is.
    wanted = [1 if value.shape[axis] == shape[axis] else shape[axis] for axis in value.order]
    if all(isinstance(n, int) for n in wanted):
      target = self.integers(wanted)
    else:
      parts = [self.integers([n]) if isinstance(n, int) else self.length(n) for n in wanted]
      target = self.node('Concat', parts, axis=0)
    return Tensor(self.node('Expand', [value.name, target]), tuple(shape), value.order)

  def length(self, dimension: Any) -> str:
    """The name of the number of images, int64 [1]."""
    symbol, name = self.batch
    if dimension != symbol:
      raise NotImplementedError(f'an axis of length {dimension}')
    return self.node('Shape', [name], start=0, end=1)

  def graph_proto(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """Only nodes and constants that the outputs need; the constants are those of a whole graph."""
    from onnx import helper

    needed, nodes = {output.name for output in outputs}, []
    for node in reversed(self.nodes):
      if needed.intersection(node.output):
        needed |= _used(node)
        nodes.append(node)
    constants = [c for c in self.constants if c.name in needed]
    return helper.make_graph(nodes[::-1], name, inputs, outputs, constants)

  def model(self, graph: Any, metadata: dict[str, str]) -> Any:
    from onnx import helper

    opset = helper.make_opsetid('', OPSET)
    model = helper.make_model(
      graph, opset_imports=[opset], ir_version=_IR_VERSION, producer_name='emseg_jax'
    )
    helper.set_model_props(model, metadata)
    return model


def free_once(shape: Sequence[Any]) -> list[int]:
  """The lengths for a Reshape, -1 for the one that is symbolic."""
  if sum(not isinstance(n, int) for n in shape) > 1:
    raise NotImplementedError(f'a shape with two free lengths, {tuple(shape)}')
  return [n if isinstance(n, int) else -1 for n in shape]


def _used(node: Any) -> set[str]:
  """Names that a node reads, those of its bodies included."""
  names = set(node.input)
  for attribute in node.attribute:
    if attribute.HasField('g'):
      names |= {o.name for o in attribute.g.output}
      for inner in attribute.g.node:
        names |= _used(inner)
  return names
