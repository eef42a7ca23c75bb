"""What the tests of networks share: counts, traces, values without compiling an initialisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

KEYS = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}


# Of norms and of PReLUs; the other parameters with one axis are biases.
STARTS = {'scale': 1, 'var': 1, 'slope': 0.25, 'negative_slope': 0.25}


def normal(*shape, seed=0):
  """An array of the standard normal distribution."""
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes(model, image_shape):
  """The variables' shapes; nothing is compiled or computed."""
  image = jax.ShapeDtypeStruct(image_shape, jnp.float32)
  return jax.eval_shape(lambda x: model.init(KEYS, x, train=True), image)


def size(tree):
  """Number of values in a tree of arrays or shapes."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def count(model, image_shape, collection='params'):
  """Number of values in a collection of variables."""
  return size(shapes(model, image_shape).get(collection, {}))


def equations(jaxpr):
  """Every equation in running order, inner ones included; not the branches of a `cond`."""
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from equations(inner)


def _he_normal(rng, shape):
  return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)


def start_values(tree, seed=0):
  """Values as at initialisation for variables of these shapes."""
  rng = np.random.default_rng(seed)

  def fill(path, leaf):
    if len(leaf.shape) > 1:
      return _he_normal(rng, leaf.shape)
    return np.full(leaf.shape, STARTS.get(path[-1].key, 0), np.float32)

  return jax.tree_util.tree_map_with_path(fill, tree)


@functools.cache
def variables(model, image_shape, seed=0):
  """Values as at initialisation, without compiling an initialisation."""
  return start_values(shapes(model, image_shape), seed)


def moved(values):
  """Vectors away from 0 and 1, so that every norm, bias and slope counts."""
  rng = np.random.default_rng(1)

  def move(v):
    return v if v.ndim > 1 else v + rng.uniform(0, 0.3, v.shape).astype(np.float32)

  return jax.tree.map(move, values)


def random_values(module, *inputs, **options):
  """Random parameters and running statistics, so that no norm is an identity."""
  rng = np.random.default_rng(7)

  def fill(path, leaf):
    if len(leaf.shape) > 1:
      return _he_normal(rng, leaf.shape)
    low, high = (0.5, 1.5) if path[-1].key in ('scale', 'var') else (-0.5, 0.5)
    return rng.uniform(low, high, leaf.shape).astype(np.float32)

  tree = jax.eval_shape(lambda: module.init(KEYS, *inputs, **options))
  return jax.tree_util.tree_map_with_path(fill, tree)


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply(model, variables, image, train, dropout_key=KEYS['dropout']):
  """(outputs, updated collections) of one forward pass."""
  rngs = {'dropout': dropout_key}
  return model.apply(variables, image, train=train, mutable=['batch_stats'], rngs=rngs)
