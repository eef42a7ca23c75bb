"""SegViT (Zhang et al. 2022): ViT-B/16 and attention-to-mask (ATM) decoders.

108,620,931 parameters for 3 input channels, 2 classes and images of 512 x 512 pixels. The authors'
configuration has 108,622,467: it also counts a class token and its position (2·768), which it
removes before the first block. A published comparison lists 96.75 M without saying for which
configuration.
"""

import itertools
from collections.abc import Sequence
from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from emseg_jax.models import resample
from emseg_jax.models.backbones import vit

__all__ = ['AtmDecoder', 'SegVit', 'semantic_logits']

HEAD_CHANNELS = 32
EPSILON = 1e-5
SMALLEST_SCORE = 1e-6


def semantic_logits(classes: jax.Array, masks: jax.Array) -> jax.Array:
  """Logits from the queries' classes and masks.

  The score of class k is s_k = Σ_q softmax(classes)[q, k]·sigmoid(masks)[q], in 0..K. The logits
  are ln s_k: their largest is that of the score, and their softmax is the scores divided by their
  sum. The one class of a sigmoid task gets ln(s / (1 - s)), whose sigmoid is the score.

  Args:
    classes: [B, K, K + 1] logits per query; the last is 'no object'.
    masks: [B, Y, X, K] logits per query.

  Returns:
    [B, Y, X, K].
  """
  probabilities = nn.softmax(classes)[..., :-1]
  score = jnp.einsum('bqk,byxq->byxk', probabilities, nn.sigmoid(masks))
  if masks.shape[-1] == 1:
    score = jnp.clip(score, SMALLEST_SCORE, 1 - SMALLEST_SCORE)
    return jnp.log(score) - jnp.log1p(-score)
  return jnp.log(jnp.maximum(score, SMALLEST_SCORE))


class Attention(nn.Module):
  """Attention of x [B, K, C] to memory [B, N, D]; C is a multiple of the 12 heads.

  Returns [B, K, C] and the scores before the softmax, float32, their mean over heads [B, K, N].
  """

  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, x: jax.Array, memory: jax.Array, *, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    batch, queries, channels = x.shape
    per_head = channels // vit.HEADS
    q = vit.Dense(channels, dtype=self.dtype, name='q')(x)
    q = q.reshape(batch, queries, vit.HEADS, per_head)
    # In one layer: but for the scores, a bias of the keys alone has no effect.
    kv = vit.Dense(2 * channels, dtype=self.dtype, name='kv')(memory)
    kv = kv.reshape(batch, -1, 2, vit.HEADS, per_head)
    k, v = kv[:, :, 0], kv[:, :, 1]
    scores = jnp.einsum('bqhc,bnhc->bhqn', q, k, preferred_element_type=jnp.float32)
    scores *= per_head**-0.5
    weights = nn.Dropout(self.dropout, deterministic=not train)(nn.softmax(scores))
    x = jnp.einsum('bhqn,bnhc->bqhc', weights.astype(self.dtype), v)
    x = x.reshape(batch, queries, channels)
    return vit.Dense(channels, dtype=self.dtype, name='proj')(x), jnp.mean(scores, axis=1)


class DecoderLayer(nn.Module):
  """Self-attention, attention to memory and a two-layer perceptron, a layer norm after each.

  x [B, K, C] and memory [B, N, D] -> x [B, K, C] and the scores of the attention to memory
  [B, K, N].
  """

  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, x: jax.Array, memory: jax.Array, *, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    dropout = nn.Dropout(self.dropout, deterministic=not train)

    def add(x: jax.Array, y: jax.Array, name: str) -> jax.Array:
      return vit.layer_norm(epsilon=EPSILON, dtype=self.dtype, name=name)(x + dropout(y))

    channels = x.shape[-1]
    y, _ = Attention(self.dropout, self.dtype, name='self_attention')(x, x, train=train)
    x = add(x, y, 'norm1')
    attention = Attention(self.dropout, self.dtype, name='cross_attention')
    y, scores = attention(x, memory, train=train)
    x = add(x, y, 'norm2')
    y = nn.relu(vit.Dense(4 * channels, dtype=self.dtype, name='fc1')(x))
    y = vit.Dense(channels, dtype=self.dtype, name='fc2')(dropout(y))
    return add(x, y, 'norm3'), scores


class AtmDecoder(nn.Module):
  """T taps, each [B, gy, gx, C] -> classes [B, T, K, K + 1], masks [B, T, gy, gx, K]; float32.

  One query per class goes through all taps. A tap adds the scores with which the queries look at
  it in its last layer to the masks of the taps before.
  """

  num_classes: int
  channels: int
  layers: int
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, taps: Sequence[jax.Array], *, train: bool) -> tuple[jax.Array, jax.Array]:
    batch, *grid, inputs = taps[0].shape
    shape = (1, self.num_classes, self.channels)
    x = self.param('queries', nn.initializers.normal(1.0), shape).astype(self.dtype)
    x = jnp.broadcast_to(x, (batch, *shape[1:]))
    queries, masks = [], []
    for t, tap in enumerate(taps):
      memory = tap.reshape(batch, -1, inputs)
      memory = vit.Dense(self.channels, dtype=self.dtype, name=f'proj{t}')(memory)
      memory = vit.layer_norm(epsilon=EPSILON, dtype=self.dtype, name=f'norm{t}')(memory)
      for i in range(self.layers):
        layer = DecoderLayer(self.dropout, self.dtype, name=f'tap{t}_layer{i}')
        x, scores = layer(x, memory, train=train)
      queries.append(x)
      masks.append(jnp.swapaxes(scores, 1, 2).reshape(batch, *grid, self.num_classes))
    classes = vit.Dense(self.num_classes + 1, name='classes')(jnp.stack(queries, 1))
    return classes, jnp.stack(list(itertools.accumulate(masks)), 1)


class SegVit(nn.Module):
  """[B, Y, X, C] -> {'logits': [B, Y, X, num_classes]}, float32.

  The logits are those of `semantic_logits`. In training there are beside them, for each of the T
  taps, the deepest first, 'atm/class' [B, T, num_classes, num_classes + 1], logits per query with
  'no object' last, and 'atm/mask' [B, T, Y, X, num_classes], logits per query. Query k stands for
  class k.

  Attributes:
    num_classes: channels of the logits.
    width: factor on the number of channels of every layer, rounded to multiples of the 12 heads.
    depth: blocks of the backbone.
    taps: indices of the blocks that the decoders look at, from 0, ascending; the last block's is
      among them.
    decoder_layers: of each tap.
    dropout: rate in the decoders.
    grid: size of the grid of learnt positions, in patches of 16 pixels; they are interpolated to
      the image's.
    dtype: what is computed in, except for the scores and the classes.
    divisor: sizes that are not multiples of it are padded inside.
    receptive_field: None, the attention sees the whole image.

  Raises:
    ValueError: the taps do not ascend from at least 0 to depth - 1.
  """

  num_classes: int
  width: Annotated[float, Field(gt=0)] = 1.0
  depth: Annotated[int, Field(ge=1)] = 12
  taps: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (5, 7, 11)
  decoder_layers: Annotated[int, Field(ge=1)] = 3
  dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
  grid: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (32, 32)
  dtype: jnp.dtype = jnp.float32

  divisor: ClassVar[tuple[int, ...]] = (vit.PATCH, vit.PATCH)
  receptive_field: ClassVar[tuple[int, ...] | None] = None

  def __post_init__(self) -> None:
    order = (-1, *self.taps)
    ascending = all(a < b for a, b in itertools.pairwise(order))
    # Blocks behind the last tap would have no effect.
    if not ascending or order[-1] != self.depth - 1:
      raise ValueError(
        f'taps={self.taps} have to ascend to the last block, {self.depth - 1} for '
        f'depth={self.depth}'
      )
    super().__post_init__()

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    x = resample.pad_to_multiple(image, self.divisor)
    taps = vit.Vit(
      taps=self.taps[::-1],
      width=self.width,
      depth=self.depth,
      grid=self.grid,
      dtype=self.dtype,
      name='backbone',
    )(x)
    channels = vit.HEADS * max(1, round(HEAD_CHANNELS * self.width))
    classes, masks = AtmDecoder(
      self.num_classes, channels, self.decoder_layers, self.dropout, self.dtype, name='decoder'
    )(taps, train=train)
    extras = train or self.is_initializing()
    if not extras:
      masks = masks[:, -1:]
    batch, count = masks.shape[:2]
    masks = resample.upsample_linear(masks.reshape(-1, *masks.shape[2:]), self.divisor)
    masks = resample.crop(masks, image.shape[1:-1])
    masks = masks.reshape(batch, count, *masks.shape[1:])
    outputs = {'logits': semantic_logits(classes[:, -1], masks[:, -1])}
    if extras:
      outputs |= {'atm/class': classes, 'atm/mask': masks}
    return outputs
