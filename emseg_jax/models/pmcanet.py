"""PmcaNet: pyramid pooling, local adaptive channel attention (LACA), multi-level fusion (MAF).

The paper fixes the pyramid (§3.2), LACA (eq. 1, 4), MAF (eq. 5, 6) and the output (eq. 7), but not
all channel numbers; those here are our choice, which reaches the paper's 32.79 M
parameters: 32,791,292 for 3 input channels and 2 classes. The options are the paper's ablations.
"""

import math
from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from emseg_jax.models import heads, layers, resample
from emseg_jax.models.backbones.resnet import ResNet50D8, Stem

__all__ = ['PmcaNet', 'eca_kernel_size', 'laca_kernel_size']

HEAD_CHANNELS = 256
SE_REDUCTION = 16
# Widths of the up-convolutions from F to full size: from 1/4 with C2, from 1/8 without.
DECODER = {'c2': (64, 64), 'none': (64, 32, 16)}


def laca_kernel_size(channels: int) -> int:
  """Eq. 4 of PmcaNet: the odd number nearest to ln((C - β) / α), α = 2, β = 1; at least 1."""
  if channels <= 3:  # the logarithm is at most 0
    return 1
  return max(1, 2 * round((math.log((channels - 1) / 2) - 1) / 2) + 1)


def eca_kernel_size(channels: int) -> int:
  """Eq. 12 of ECA-Net, γ = 2 and b = 1: |log2(C) / 2 + 1 / 2| truncated, plus 1 if that is even."""
  size = int(abs(math.log2(channels) / 2 + 0.5))
  return size if size % 2 else size + 1


class LevelAttention(nn.Module):
  """Channel attention of one level, float32 in 0..1.

  [B, n, n, C] -> [B, 1, 1, C] from the level's mean, or [B, n, n, C] `per_cell`. LACA is eq. 1:
  sigmoid(BN(1D convolution across channels)); ECA has no batch norm; SE has two dense layers.
  """

  kind: Literal['laca', 'eca', 'se']
  per_cell: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = x.astype(jnp.float32)
    if not self.per_cell:
      x = jnp.mean(x, axis=(1, 2), keepdims=True)
    channels = x.shape[-1]
    if self.kind == 'se':
      x = nn.relu(nn.Dense(max(1, channels // SE_REDUCTION), name='squeeze')(x))
      return nn.sigmoid(nn.Dense(channels, name='excite')(x))
    size = laca_kernel_size(channels) if self.kind == 'laca' else eca_kernel_size(channels)
    x = nn.Conv(1, (size,), use_bias=False, name='conv')(x[..., None])[..., 0]
    if self.kind == 'laca':
      x = layers.batch_norm(train=train, dtype=jnp.float32, name='norm')(x)
    return nn.sigmoid(x)


class AttentionFusion(nn.Module):
  """Attentions of all levels, each [B, Y, X, C], to one of that shape.

  'maf' is eq. 5 and 6: their mean, weighted by a softmax over the levels of one score each.
  """

  kind: Literal['maf', 'add', 'multiply']

  @nn.compact
  def __call__(self, attentions: list[jax.Array]) -> jax.Array:
    if self.kind == 'add':
      return sum(attentions)
    if self.kind == 'multiply':
      return math.prod(attentions)
    scores = [nn.Dense(1, name=f'score{i + 1}')(a) for i, a in enumerate(attentions)]
    weights = nn.softmax(jnp.stack(scores), axis=0)
    return jnp.sum(weights * jnp.stack(attentions), axis=0)


class PyramidAttention(nn.Module):
  """F weighted by the fused attention of pooled C5 (eq. 7); options as in `PmcaNet`.

  f [B, Y, X, C] and c5 [B, y, x, D] -> [B, Y, X, C].
  """

  attention: Literal['laca', 'eca', 'se', 'none']
  per_cell: bool
  fusion: Literal['maf', 'add', 'multiply']
  pool: Literal['avg', 'max']
  bins: tuple[int, ...]
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, f: jax.Array, c5: jax.Array, *, train: bool) -> jax.Array:
    levels = []
    for i, bins in enumerate(self.bins):
      x = resample.adaptive_pool(c5, bins, mode=self.pool)
      x = layers.ConvBlock(f.shape[-1], 1, dtype=self.dtype, name=f'level{i + 1}')(x, train=train)
      if self.attention != 'none':
        attention = LevelAttention(self.attention, self.per_cell, name=f'attention{i + 1}')
        x = attention(x, train=train)
      if self.per_cell or self.attention == 'none':
        x = jax.image.resize(x, (x.shape[0], *f.shape[1:]), 'bilinear')
      levels.append(x)
    if self.attention == 'none':
      return f + sum(levels) / len(levels)
    return AttentionFusion(self.fusion, name='fusion')(levels).astype(self.dtype) * f


class PmcaNet(nn.Module):
  """[B, Y, X, C] -> {'logits': [B, Y, X, num_classes]}, float32.

  In training there is 'aux/fcn' of the same shape beside it.

  Attributes:
    num_classes: channels of the logits.
    width: factor on the number of channels of every layer.
    attention: of each level; 'none' sets it to 1 and adds the mean of the pooled levels to F, as
      context like PSPNet's, without which the pyramid would have no effect.
    laca_scope: LACA of a level's mean ('channel') or of each pooled cell ('region').
    fusion: of the levels' attentions; has no effect with attention = 'none'.
    pool: how the levels are pooled.
    bins: cells per axis of each level.
    low_level: 'c2' adds the backbone's first stage to F (§3.1); 'none' is eq. 7 to the letter.
    stem: of the backbone; 'v1' fits weights of torchvision.
    aux: whether there is an auxiliary head; it is left out in evaluation.
    dtype: what is computed in, except for attention and the last layers.
    divisor: sizes that are not multiples of it are padded inside.
    receptive_field: None, the attention sees the whole image.

  Raises:
    ValueError: laca_scope = 'region' without LACA.
  """

  num_classes: int
  width: Annotated[float, Field(gt=0)] = 1.0
  attention: Literal['laca', 'eca', 'se', 'none'] = 'laca'
  laca_scope: Literal['channel', 'region'] = 'channel'
  fusion: Literal['maf', 'add', 'multiply'] = 'maf'
  pool: Literal['avg', 'max'] = 'avg'
  bins: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 2, 3, 6)
  low_level: Literal['c2', 'none'] = 'c2'
  stem: Stem = 'v1c'
  aux: bool = True
  dtype: jnp.dtype = jnp.float32

  divisor: ClassVar[tuple[int, ...]] = (8, 8)
  receptive_field: ClassVar[tuple[int, ...] | None] = None

  def __post_init__(self) -> None:
    if self.laca_scope == 'region' and self.attention != 'laca':
      raise ValueError(
        f"laca_scope='region' needs attention='laca', got attention={self.attention!r}"
      )
    super().__post_init__()

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    x = resample.pad_to_multiple(image, self.divisor)
    c2, _, c4, c5 = ResNet50D8(self.width, self.stem, self.dtype, name='backbone')(x, train=train)
    channels = layers.scaled(HEAD_CHANNELS // 4, self.width) * 4  # those of C2
    f = layers.ConvBlock(channels, dtype=self.dtype, name='reduce')(c5, train=train)
    if self.low_level == 'c2':
      f = c2 + resample.upsample_linear(f, 2)
    x = PyramidAttention(
      attention=self.attention,
      per_cell=self.laca_scope == 'region',
      fusion=self.fusion,
      pool=self.pool,
      bins=self.bins,
      dtype=self.dtype,
      name='pyramid',
    )(f, c5, train=train)
    for i, features in enumerate(DECODER[self.low_level]):
      features = layers.scaled(features, self.width)
      x = layers.UpConv(features, use_bias=False, dtype=self.dtype, name=f'upconv{i + 1}')(x)
      x = nn.relu(layers.batch_norm(train=train, dtype=self.dtype, name=f'upnorm{i + 1}')(x))
    logits = layers.Conv(self.num_classes, 1, name='head')(x)
    outputs = {'logits': resample.crop(logits, image.shape[1:-1])}
    if self.aux and (train or self.is_initializing()):
      logits = heads.FcnHead(self.num_classes, channels, self.dtype, name='aux')(c4, train=train)
      logits = resample.upsample_linear(logits, self.divisor)
      outputs['aux/fcn'] = resample.crop(logits, image.shape[1:-1])
    return outputs
