"""What the tests of networks share: counts, and values without compiling an initialisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

KEYS = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}


# Of norms and of PReLUs; the other parameters with one axis are biases.
STARTS = {'scale': 1, 'var': 1, 'slope': 0.25, 'negative_slope': 0.25}


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes(model, image_shape):
  """The variables' shapes; nothing is compiled or computed."""
  image = jax.ShapeDtypeStruct(image_shape, jnp.float32)
  return jax.eval_shape(lambda x: model.init(KEYS, x, train=True), image)


def count(model, image_shape, collection='params'):
  """Number of values in a collection of variables."""
  return sum(leaf.size for leaf in jax.tree.leaves(shapes(model, image_shape).get(collection, {})))


@functools.cache
def variables(model, image_shape, seed=0):
  """Values as at initialisation, without compiling an initialisation."""
  rng = np.random.default_rng(seed)

  def fill(path, leaf):
    if len(leaf.shape) > 1:
      spread = np.sqrt(2 / np.prod(leaf.shape[:-1]))
      return rng.normal(0, spread, leaf.shape).astype(np.float32)
    return np.full(leaf.shape, STARTS.get(path[-1].key, 0), np.float32)

  return jax.tree_util.tree_map_with_path(fill, shapes(model, image_shape))


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply(model, variables, image, train, dropout_key=KEYS['dropout']):
  """(outputs, updated collections) of one forward pass."""
  rngs = {'dropout': dropout_key}
  return model.apply(variables, image, train=train, mutable=['batch_stats'], rngs=rngs)
