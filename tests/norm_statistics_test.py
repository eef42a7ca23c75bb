"""Running statistics against a loop written from the formula."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emseg_jax import norm_statistics
from emseg_jax.models import layers


class Network(nn.Module):
  """Two norms of different momentum, one of them in a module of its own."""

  @nn.compact
  def __call__(self, x, *, train):
    x = layers.batch_norm(train=train, dtype=jnp.float32, momentum=0.99, name='keras')(x)
    return layers.ConvBlock(3, (1, 1), momentum=0.9, name='block')(x, train=train)


NETWORK = Network()


def _run(steps):
  """Running statistics after some steps, and the batches."""
  rng = np.random.default_rng(0)
  batches = [rng.normal(5 + i, 2, (4, 6, 6, 2)).astype(np.float32) for i in range(steps)]
  variables = NETWORK.init(jax.random.key(0), batches[0], train=True)
  stats = variables['batch_stats']

  @jax.jit
  def advance(stats, x, n):
    with norm_statistics.record_momenta() as momenta:
      _, new = NETWORK.apply(
        {**variables, 'batch_stats': stats}, x, train=True, mutable=['batch_stats']
      )
    return norm_statistics.grown_into(stats, new['batch_stats'], momenta, n)

  for n, batch in enumerate(batches):
    stats = advance(stats, batch, n)
  return stats, batches


@pytest.mark.parametrize('steps', [1, 2, 30])
def test_the_momentum_grows_as_the_formula_says(steps):
  stats, batches = _run(steps)
  mean, var = np.zeros(2), np.ones(2)
  for n, batch in enumerate(batches):
    m = min(0.99, (1 + n) / (10 + n))
    mean = m * mean + (1 - m) * batch.mean((0, 1, 2), dtype=np.float64)
    var = m * var + (1 - m) * batch.var((0, 1, 2), dtype=np.float64)
  np.testing.assert_allclose(stats['keras']['mean'], mean, rtol=1e-3)
  np.testing.assert_allclose(stats['keras']['var'], var, rtol=1e-3)


def test_each_layer_keeps_its_own_momentum_and_settles_at_it():
  x = np.random.default_rng(0).normal(3, 1, (4, 6, 6, 2)).astype(np.float32)
  variables = NETWORK.init(jax.random.key(0), x, train=True)
  old = variables['batch_stats']
  with norm_statistics.record_momenta() as momenta:
    _, new = NETWORK.apply(variables, x, train=True, mutable=['batch_stats'])
  new = new['batch_stats']
  assert sorted(momenta.values()) == [0.9, 0.99]
  # (1 + n) / (10 + n) reaches 0.9 at n = 80 and 0.99 at n = 890.
  for n, settled in ((79, 0), (80, 1), (889, 1), (890, 2)):
    found = norm_statistics.grown_into(old, new, momenta, jnp.asarray(n))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), found, new)
    assert sum(all(jax.tree.leaves(layer)) for layer in same.values()) == settled, n


def test_a_network_without_batch_norm_has_nothing_to_settle():
  assert norm_statistics.grown_into({}, {}, {}, jnp.asarray(3)) == {}
