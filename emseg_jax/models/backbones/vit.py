"""ViT-B/16 (Dosovitskiy et al. 2020), the backbone of Segmenter and SegViT, for images of any size.

Layers are in the order of timm and mmsegmentation, so that their weights fit: a kernel is their
weight transposed, and the learnt positions are split into those of the patches and of the class
token.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = [
  'HEADS',
  'PATCH',
  'Block',
  'Dense',
  'Grid',
  'Vit',
  'layer_norm',
  'resize_positions',
  'small_normal',
]

PATCH = 16
HEADS = 12
HEAD_CHANNELS = 64
EPSILON = 1e-6

Grid = tuple[int, int]

# Published as truncated, but at 100 standard deviations.
small_normal = nn.initializers.normal(0.02)
Dense = functools.partial(nn.Dense, kernel_init=small_normal)


def layer_norm(*, epsilon: float, dtype: jnp.dtype, name: str) -> nn.LayerNorm:
  """Layer norm over the channels, statistics in float32."""
  # The fast variance E[x²] - E[x]² loses the difference of two nearly equal values.
  return nn.LayerNorm(epsilon, dtype=dtype, use_fast_variance=False, name=name)


def _bicubic_matrix(length: int, out: int) -> np.ndarray:
  """Weights [out, length] of cubic interpolation between half-pixel centres, edges repeated."""
  a = -0.75  # PyTorch's; jax.image.resize has -0.5
  rows = np.arange(out)
  position = (rows + 0.5) * length / out - 0.5
  first = np.floor(position).astype(int) - 1
  matrix = np.zeros((out, length))
  for column in (first + i for i in range(4)):
    d = np.abs(position - column)
    near = ((a + 2) * d - (a + 3)) * d**2 + 1  # d <= 1
    far = a * (((d - 5) * d + 8) * d - 4)  # 1 <= d <= 2
    matrix[rows, np.clip(column, 0, length - 1)] += np.where(d <= 1, near, far)
  return matrix


def resize_positions(positions: jax.Array, size: Sequence[int]) -> jax.Array:
  """Interpolates learnt positions [1, gy, gx, C] to another grid, [1, *size, C], float32.

  PyTorch's bicubic interpolation without `align_corners` and without antialiasing.
  """
  for axis, out in enumerate(size, start=1):
    length = positions.shape[axis]
    if out != length:
      weights = jnp.asarray(_bicubic_matrix(length, out), jnp.float32)
      positions = jnp.tensordot(
        weights, positions, axes=((1,), (axis,)), precision=lax.Precision.HIGHEST
      )
      positions = jnp.moveaxis(positions, 0, axis)
  return positions


class PatchEmbed(nn.Module):
  """Convolution whose kernel size and stride are PATCH: [B, Y, X, C] -> [B, gy, gx, features].

  Y and X are multiples of PATCH. The parameters are those of `nn.Conv`.
  """

  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    batch, height, width, channels = x.shape
    shape = (PATCH, PATCH, channels, self.features)
    kernel = self.param('kernel', nn.initializers.he_normal(), shape).astype(self.dtype)
    bias = self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
    x = x.astype(self.dtype)
    x = x.reshape(batch, height // PATCH, PATCH, width // PATCH, PATCH, channels)
    return jnp.einsum('byixjc,ijcf->byxf', x, kernel) + bias.reshape(1, 1, 1, -1)


class Block(nn.Module):
  """Self-attention and a two-layer perceptron, each after a layer norm and with a shortcut.

  [B, N, C] -> the same shape; C is a multiple of HEADS. The softmax is in float32.

  Attributes:
    epsilon: of the layer norms.
    dropout: rate after every linear layer but that of queries, keys and values.
    dtype: what is computed in.
  """

  epsilon: float
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    batch, tokens, channels = x.shape
    dropout = nn.Dropout(self.dropout, deterministic=not train)
    norm = functools.partial(layer_norm, epsilon=self.epsilon, dtype=self.dtype)
    y = Dense(3 * channels, dtype=self.dtype, name='qkv')(norm(name='norm1')(x))
    y = y.reshape(batch, tokens, 3, HEADS, channels // HEADS)
    y = jax.nn.dot_product_attention(y[:, :, 0], y[:, :, 1], y[:, :, 2])
    y = y.reshape(batch, tokens, channels)
    x += dropout(Dense(channels, dtype=self.dtype, name='proj')(y))
    y = Dense(4 * channels, dtype=self.dtype, name='fc1')(norm(name='norm2')(x))
    y = dropout(nn.gelu(y, approximate=False))
    return x + dropout(Dense(channels, dtype=self.dtype, name='fc2')(y))


class Vit(nn.Module):
  """[B, Y, X, C] -> the patches' tokens after the blocks `taps`, each [B, Y / 16, X / 16, 768].

  Y and X are multiples of 16. At width 1, C = 3 and a grid of 32 x 32 (that of 512 x 512 pixels)
  there are 86,431,488 parameters, 1536 more with a class token and as many with a final norm.

  Attributes:
    taps: indices of blocks, from 0.
    width: factor on the number of channels, which stays a multiple of the 12 heads.
    depth: number of blocks.
    grid: size of the grid of learnt positions; they are interpolated to that of the patches.
    cls_token: whether a learnt token takes part in the attention; it is not returned.
    final_norm: whether a layer norm follows the last block.
    dtype: what is computed in.
  """

  taps: tuple[int, ...]
  width: float = 1.0
  depth: int = 12
  grid: Grid = (32, 32)
  cls_token: bool = False
  final_norm: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, image: jax.Array) -> tuple[jax.Array, ...]:
    channels = HEADS * max(1, round(HEAD_CHANNELS * self.width))
    x = PatchEmbed(channels, self.dtype, name='patch_embed')(image)
    batch, *grid, _ = x.shape
    positions = self.param('pos_embed', small_normal, (1, *self.grid, channels))
    x += resize_positions(positions, grid).astype(self.dtype)
    x = x.reshape(batch, -1, channels)
    if self.cls_token:
      names = ('cls_token', 'cls_pos')
      token = sum(self.param(name, small_normal, (1, 1, channels)) for name in names)
      token = jnp.broadcast_to(token.astype(self.dtype), (batch, 1, channels))
      x = jnp.concatenate([token, x], 1)
    outputs = {}
    for i in range(self.depth):
      x = Block(EPSILON, dtype=self.dtype, name=f'block{i}')(x, train=False)
      if self.final_norm and i == self.depth - 1:
        x = layer_norm(epsilon=EPSILON, dtype=self.dtype, name='norm')(x)
      if i in self.taps:
        outputs[i] = x[:, int(self.cls_token) :].reshape(batch, *grid, channels)
    return tuple(outputs[i] for i in self.taps)
