"""Parts of a network that training leaves as they are, such as a pretrained encoder.

A pattern is a regular expression that the whole path of a module has to match: `backbone`,
`down[12]`, `backbone/block1`. The parameters and running statistics in such a module stay bit by
bit what they are, and it computes as in evaluation: its running statistics normalise, nothing is
dropped. Without patterns nothing here changes a training step.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax

from emseg_jax.config_io import nearest
from emseg_jax.errors import ConfigError

__all__ = ['check', 'evaluating', 'keep', 'mask', 'stop']


def mask(tree: Any, patterns: Sequence[str]) -> Any:
  """True for the leaves that are frozen.

  Args:
    tree: 'params', or another collection of the network.
    patterns: of modules.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: _is_frozen([str(key.key) for key in path[:-1]], patterns), tree
  )


def check(params: Any, patterns: Sequence[str]) -> None:
  """Makes sure that every pattern freezes something, and that something is left to learn.

  Raises:
    ConfigError: it does not, or a pattern is no regular expression.
  """
  paths = [
    [str(k.key) for k in path[:-1]] for path, _ in jax.tree_util.tree_leaves_with_path(params)
  ]
  modules = list(dict.fromkeys('/'.join(p[:n]) for p in paths for n in range(1, len(p) + 1)))
  for pattern in patterns:
    try:
      re.compile(pattern)
    except re.error as error:
      raise ConfigError(
        f'config.model.freeze: {pattern!r} is not a regular expression: {error}'
      ) from error
    if not any(re.fullmatch(pattern, module) for module in modules):
      raise ConfigError(
        f'config.model.freeze: {pattern!r} matches no module with parameters'
        f'{nearest(pattern, modules)} (modules: {", ".join(m for m in modules if "/" not in m)})'
      )
  if all(_is_frozen(path, patterns) for path in paths):
    raise ConfigError(f'config.model.freeze={list(patterns)}: leaves nothing to learn')


def stop(params: Any, patterns: Sequence[str]) -> Any:
  """The parameters, without a gradient where they are frozen."""
  frozen = mask(params, patterns)
  return jax.tree.map(lambda f, x: jax.lax.stop_gradient(x) if f else x, frozen, params)


def keep(new: Any, old: Any, patterns: Sequence[str]) -> Any:
  """`new`, but `old` where it is frozen; both are of one collection."""
  return jax.tree.map(lambda f, n, o: o if f else n, mask(old, patterns), new, old)


@contextlib.contextmanager
def evaluating(patterns: Sequence[str]) -> Iterator[None]:
  """Within, modules that match compute as in evaluation, though the network is told to train."""

  def call(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    module = context.module
    if _is_frozen(module.path, patterns):
      if 'train' in kwargs:
        kwargs = {**kwargs, 'train': False}
      if isinstance(module, nn.BatchNorm):
        # One that a pattern names, or whose parent is told nothing of training. It lives for this
        # call alone.
        object.__setattr__(module, 'use_running_average', True)
    return method(*args, **kwargs)

  with nn.intercept_methods(call):
    yield


def _is_frozen(path: Sequence[str], patterns: Sequence[str]) -> bool:
  """Whether the module at `path`, or one that it is in, matches."""
  inside = ['/'.join(path[:n]) for n in range(1, len(path) + 1)]
  return any(re.fullmatch(pattern, name) for pattern in patterns for name in inside)
