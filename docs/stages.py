"""What a network is made of, as its traced computation tells: stages, and what feeds what.

A stage is a module of the network, or of a part of it that is worth opening: a backbone, a pyramid.
Nothing is computed. `drawing.py` makes pictures of it.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from emseg_jax import models, zoo

__all__ = ['Network', 'Node', 'trace']

SIZES = {2: (256, 256), 3: (32, 64, 64)}
FEW = 8  # stages at the top; a network of no more is opened where it is wide
WIDE = 3  # parts, so that opening shows something
JOINS = {
  'concatenate': 'join',
  'stack': 'join',
  'add': '+',
  'add_any': '+',
  'sub': '-',
  'mul': '×',
  'div': '÷',
  'max': 'max',
  'dot_general': '×',
}
Path = tuple[str, ...]


@dataclasses.dataclass
class Node:
  """A stage, an operation between stages, the image, or an output.

  Attributes:
    name: of the module, or of the output.
    kind: class of the module; 'input', 'output', or 'join' of an operation, whose name it then is.
    shape: of what it gives, without batch.
    parent: module that it is a part of, '' at the top.
    parameters: trainable scalars in it.
    count: how many modules of one kind after another it stands for.
    sources: what it takes, by place in `Network.nodes`.
  """

  name: str
  kind: str
  shape: tuple[int, ...]
  parent: str = ''
  parameters: int = 0
  count: int = 1
  sources: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Network:
  """Attributes:
  name: key of `models.MODELS`.
  size: of the image, without channels.
  parameters: all trainable scalars.
  nodes: in the order of computation.
  """

  name: str
  size: tuple[int, ...]
  parameters: int
  nodes: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class _Call:
  path: Path
  kind: str
  shapes: tuple[tuple[int, ...], ...]


def trace(entry: zoo.Entry) -> Network:
  """The stages of a network under the conditions of the table of networks."""
  model = models.create_model(entry.name, entry.classes, **entry.options)
  size = SIZES[len(model.divisor)]
  calls: list[_Call] = []

  def record(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
    result = function(*args, **kwargs)
    if context.method_name == '__call__' and context.module.path:
      shapes = tuple(leaf.shape[1:] for leaf in jax.tree.leaves(result))
      calls.append(_Call(context.module.path, type(context.module).__name__, shapes))
    return result

  keys = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
  image = jax.ShapeDtypeStruct((1, *size, entry.channels), jnp.float32)
  with nn.intercept_methods(record):
    traced, (outputs, variables) = jax.make_jaxpr(
      lambda x: model.init_with_output(keys, x, train=False), return_shape=True
    )(image)
  stages = {call.path: call for call in _chosen(calls)}
  nodes = _Reader(stages, image.shape[1:]).read(traced.jaxpr, outputs)
  for node, path in nodes:
    node.parameters = _count(variables['params'], path) if path else 0
  kept = _simplified([node for node, _ in nodes])
  return Network(entry.name, size, _count(variables['params'], ()), tuple(kept))


def _count(parameters: Any, path: Path) -> int:
  for name in path:
    parameters = parameters.get(name, {})
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters))


def _chosen(calls: Sequence[_Call]) -> Iterator[_Call]:
  """The calls that are stages: those at the top, or the parts of such a one."""

  def children(parent: Path) -> list[_Call]:
    depth = len(parent) + 1
    found = [c for c in calls if len(c.path) == depth and c.path[:-1] == parent]
    return [c for c in found if c.kind != 'Dropout']

  top = [c for c in children(()) if not _is_norm(c.kind)]
  kinds = [c.kind for c in top]
  for call in children(()):
    parts = children(call.path)
    wide = len([p for p in parts if not _is_norm(p.kind)]) >= WIDE
    lone = len(top) <= FEW and kinds.count(call.kind) == 1
    yield from parts if wide and (lone or len(call.shapes) > 1) else [call]


def _is_norm(kind: str) -> bool:
  return kind.endswith('Norm')


class _Reader:
  """Follows values through the equations of a traced network.

  The origin of a value is the node that made it; None, if it does not depend on the image. What is
  computed between stages from one origin keeps it; from several, it makes a join.
  """

  def __init__(self, stages: dict[Path, _Call], shape: tuple[int, ...]):
    self._stages = stages
    self._nodes: list[tuple[Node, Path]] = [(Node('image', 'input', shape), ())]
    self._places: dict[Any, int] = {}

  def read(self, traced: Any, outputs: dict[str, Any]) -> list[tuple[Node, Path]]:
    origins: dict[Any, int | None] = {traced.invars[0]: 0}
    for equation in traced.eqns:
      given = [origins.get(v) for v in equation.invars if not hasattr(v, 'val')]
      found = list(dict.fromkeys(o for o in given if o is not None))
      origin = self._origin(equation, found) if found else None
      origins |= dict.fromkeys(equation.outvars, origin)
    for name, variable in zip(sorted(outputs), traced.outvars, strict=False):
      node = Node(name, 'output', outputs[name].shape[1:], sources=[origins[variable]])
      self._nodes.append((node, ()))
    return self._nodes

  def _origin(self, equation: Any, found: list[int]) -> int:
    path = self._stage_of(str(equation.source_info.name_stack))
    if path is not None:
      place = self._place(path, lambda: self._stage(path))
      node = self._nodes[place][0]
      node.sources += [o for o in found if o not in (place, *node.sources)]
      return place
    if len(found) == 1:
      return found[0]
    name = JOINS.get(equation.primitive.name, 'combine')
    shape = equation.outvars[0].aval.shape[1:]
    key = (name, frozenset(found))
    return self._place(key, lambda: Node(name, 'join', shape, sources=list(found)))

  def _place(self, key: Any, make: Any) -> int:
    if key not in self._places:
      self._places[key] = len(self._nodes)
      self._nodes.append((make(), key if key in self._stages else ()))
    return self._places[key]

  def _stage(self, path: Path) -> Node:
    call = self._stages[path]
    return Node(path[-1], call.kind, call.shapes[-1], parent='/'.join(path[:-1]))

  def _stage_of(self, scopes: str) -> Path | None:
    # A method that is not __call__ adds NAME.METHOD behind NAME.
    names = [part.partition('.')[0] for part in scopes.split('/')]
    path = tuple(b for a, b in itertools.pairwise(names) if a != b)
    return next((path[:n] for n in (1, 2) if path[:n] in self._stages), None)


def _simplified(nodes: list[Node]) -> list[Node]:
  """Without norms, joins of joins and repetitions as nodes of their own."""
  alive = dict(enumerate(nodes))

  def drop(place: int, into: int) -> None:
    del alive[place]
    for node in alive.values():
      node.sources = list(dict.fromkeys(into if s == place else s for s in node.sources))

  for place, node in list(alive.items()):
    for source in [s for s in node.sources if s in alive]:
      before = alive[source]
      lone = sum(source in other.sources for other in alive.values()) == 1
      if not lone:
        continue
      if node.kind == before.kind == 'join' and node.name == before.name in ('+', 'join'):
        at = node.sources.index(source)
        node.sources[at : at + 1] = before.sources
        del alive[source]
      elif len(node.sources) == 1 and _continues(node, before):
        before.parameters += node.parameters
        if not _is_norm(node.kind):
          before.count += 1
          before.name = f'{before.name.partition(" ")[0]} to {_number(node.name)}'
          before.shape = node.shape
        drop(place, source)
  order = {place: n for n, place in enumerate(alive)}
  for node in alive.values():
    node.sources = [order[s] for s in node.sources]
  return list(alive.values())


def _continues(node: Node, before: Node) -> bool:
  """Whether a stage is a norm of the one before, or another of the same."""
  if node.shape[:-1] != before.shape[:-1] or before.kind in ('input', 'join'):
    return False
  first = before.name.partition(' ')[0]
  alike = node.kind == before.kind and _number(node.name) and _stem(node.name) == _stem(first)
  return _is_norm(node.kind) or bool(alike)


def _number(name: str) -> str:
  found = re.search(r'\d+$', name)
  return found[0] if found else ''


def _stem(name: str) -> str:
  return re.sub(r'\d+$', '', name)
