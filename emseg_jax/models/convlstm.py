"""Bidirectional convolutional LSTM (Shi et al. 2015) along one axis of an image, as in Res-CR-Net.

The state is an image of voxels x classes with one channel, so that the kernel (3, K) reaches over
three neighbouring voxels and, with zero padding, over all K classes. All of it is float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from emseg_jax.models.resample import shift

__all__ = ['BiConvLstm']

GATES = 4  # i, f, g, o: input, forget, candidate, output
TAPS = 3  # of the kernel along the voxels


def _forget_bias(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """1 for the forget gate, else 0: at the start the cell remembers."""
  del key
  return jnp.zeros(shape).at[1].set(1)


class _Weights(nn.Module):
  """kernel [3, K, 1, 4], recurrent_kernel [3, K, 1, 4] and bias [4] of one direction."""

  @nn.compact
  def __call__(self, classes: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    shape = (TAPS, classes, 1, GATES)
    return (
      self.param('kernel', nn.initializers.he_normal(), shape),
      self.param('recurrent_kernel', nn.initializers.orthogonal(), shape),
      self.param('bias', _forget_bias, (GATES,)),
    )


def _as_matrices(kernel: jax.Array) -> jax.Array:
  """[D, 3, K, 1, 4] -> [D, 4, K, 3·K]: the convolution as a product with `_neighbours`.

  Class o of the output sees class i through tap i - o + (K - 1) // 2 where there is one: K - 1
  zeros pad the classes, half of them rounded down at the start.
  """
  directions, _, classes, _, _ = kernel.shape
  q, i, o = np.indices((classes,) * 3)
  seen = jnp.asarray(q == i - o + (classes - 1) // 2, kernel.dtype)
  matrices = jnp.einsum('dpqg,qio->dgopi', kernel[:, :, :, 0], seen, precision='highest')
  return matrices.reshape(directions, GATES, classes, TAPS * classes)


def _neighbours(x: jax.Array) -> jax.Array:
  """[..., K, B, N] -> [..., 3·K, B, N]: the classes of voxels n - 1, n and n + 1."""
  last = x.ndim - 1
  return jnp.concatenate([shift(x, last, 1), x, shift(x, last, -1)], axis=-3)


def _hard_sigmoid(x: jax.Array) -> jax.Array:
  """Keras' up to version 2; Keras 3 and `nn.hard_sigmoid` have the slope 1/6."""
  return jnp.clip(0.2 * x + 0.5, 0, 1)


class BiConvLstm(nn.Module):
  """Steps along T in both directions: [B, T, N, K] -> [B, T, N, K, 2], forward and backward.

  The state has N voxels and K classes. 2·(24·K + 4) parameters. If rows are split over devices and
  T are the rows, the devices exchange them: each step needs the one before.

  Attributes:
    recurrent_dropout: rate at which values of the state are zeroed before the recurrent
      convolution, in training. As in Keras one mask is drawn per image, gate and direction and
      holds for all steps; the cell's memory is left alone.
    unroll: steps per iteration of the compiled loop; changes nothing but speed.
  """

  recurrent_dropout: float = 0.0
  unroll: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    batch, _, voxels, classes = x.shape
    both = [_Weights(name=name)(classes) for name in ('forward', 'backward')]
    kernel, recurrent_kernel, bias = (jnp.stack(weights) for weights in zip(*both, strict=True))
    recurrent = _as_matrices(recurrent_kernel)
    # Classes are few, voxels many: voxels come last, where they fill a vector unit.
    x = x.astype(jnp.float32).transpose(1, 3, 0, 2)
    x = jnp.stack([x, jnp.flip(x, 0)], axis=1)  # [T, 2, K, B, N]
    inputs = jnp.einsum('dgoi,tdibn->tdgobn', _as_matrices(kernel), _neighbours(x))
    inputs += bias.reshape(1, 2, GATES, 1, 1, 1)

    masks = None
    if train and self.recurrent_dropout:
      keep, shape = 1 - self.recurrent_dropout, (2, GATES, classes, batch, voxels)
      masks = jax.random.bernoulli(self.make_rng('dropout'), keep, shape) / keep

    def step(state, inputs):
      h, c = state
      if masks is None:
        gates = jnp.einsum('dgoi,dibn->dgobn', recurrent, _neighbours(h))
      else:
        gates = jnp.einsum('dgoi,dgibn->dgobn', recurrent, _neighbours(h[:, None] * masks))
      i, f, g, o = jnp.moveaxis(inputs + gates, 1, 0)
      c = _hard_sigmoid(f) * c + _hard_sigmoid(i) * jnp.tanh(g)
      h = _hard_sigmoid(o) * jnp.tanh(c)
      return (h, c), h

    zeros = jnp.zeros((2, classes, batch, voxels))
    _, h = lax.scan(step, (zeros, zeros), inputs, unroll=self.unroll)  # [T, 2, K, B, N]
    h = jnp.stack([h[:, 0], jnp.flip(h[:, 1], 0)], axis=-1)
    return h.transpose(2, 0, 3, 1, 4)
