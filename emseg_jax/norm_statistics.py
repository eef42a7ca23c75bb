"""Running statistics of batch norm that can be used from the first evaluation on.

A running average with momentum m starts from mean 0 and variance 1, of which m^n is left after n
steps: with Keras' 0.99 that is 5 % after 300 steps, more than the whole variance of many a layer,
and the average lags a network that still changes quickly. So the momentum grows into its value,

    m_n = min(m, (1 + n) / (10 + n)),

which forgets the start at once and equals m from 10 / (1 - m) steps on. What is learnt does not
depend on it: training normalises by the batch.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ['grown_into', 'record_momenta']

Path = tuple[str, ...]


@contextlib.contextmanager
def record_momenta() -> Iterator[dict[Path, float]]:
  """Fills the dictionary with the momentum of every batch norm that is called within."""
  found: dict[Path, float] = {}

  def note(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    if isinstance(context.module, nn.BatchNorm):
      found[context.module.path] = context.module.momentum
    return call(*args, **kwargs)

  with nn.intercept_methods(note):
    yield found


def grown_into(old: Any, new: Any, momenta: dict[Path, float], step: jax.Array) -> Any:
  """The statistics after a step with the momentum m_n instead of m.

  Args:
    old: 'batch_stats' before the step.
    new: after it, m old + (1 - m) batch.
    momenta: m by the path of the layer, from `record_momenta`.
    step: n, steps done before this one.

  Returns:
    m_n old + (1 - m_n) batch, shaped like `new`.
  """

  def settle(path: tuple[Any, ...], before: jax.Array, after: jax.Array) -> jax.Array:
    m = momenta[tuple(key.key for key in path[:-1])]
    grown = (1.0 + step) / (10.0 + step)
    batch = (after - m * before) / (1.0 - m)
    return jnp.where(grown < m, grown * before + (1.0 - grown) * batch, after)

  return jax.tree_util.tree_map_with_path(settle, old, new)
