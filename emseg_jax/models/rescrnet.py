"""Res-CR-Net (Abdallah et al. 2020): no down-sampling, but dilated and recurrent residual blocks.

At the defaults 58,662 parameters for 1 input channel and 3 classes, 59,020 for 3 channels and 3
classes, 59,165 for 3 channels and 4 classes, and 1,632 running statistics.
"""

from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from emseg_jax.models import layers
from emseg_jax.models.convlstm import BiConvLstm

__all__ = ['ResCRNet']


def _leaky(x: jax.Array) -> jax.Array:
  return nn.leaky_relu(x, 0.1)


def _batch_norm(*, train: bool, dtype: jnp.dtype, name: str) -> nn.BatchNorm:
  return layers.batch_norm(train=train, dtype=dtype, momentum=0.99, epsilon=1e-3, name=name)


class SeparableConv(nn.Module):
  """Convolution of each channel, then 1x1: [B, Y, X, C] -> [B, Y, X, features]."""

  features: int
  kernel_size: int
  dilation: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    # He's rule as Keras applies it: all channels count as fan-in, though each kernel sees one.
    init = nn.initializers.variance_scaling(2 / x.shape[-1], 'fan_in', 'truncated_normal')
    x = layers.DepthwiseConv(
      self.kernel_size, self.dilation, kernel_init=init, dtype=self.dtype, name='depthwise'
    )(x)
    return layers.Conv(self.features, 1, dtype=self.dtype, name='pointwise')(x)


class Branch(nn.Module):
  """Separable convolution, batch norm, leaky ReLU, separable convolution."""

  features: int
  kernel_size: int
  dilation: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    options = (self.features, self.kernel_size, self.dilation, self.dtype)
    x = SeparableConv(*options, name='conv1')(x)
    x = _leaky(_batch_norm(train=train, dtype=self.dtype, name='norm')(x))
    return SeparableConv(*options, name='conv2')(x)


class ConvResBlock(nn.Module):
  """Branches of several scales side by side, plus 1x1 convolution and batch norm as shortcut.

  [B, Y, X, C] -> [B, Y, X, F]: F is `features`, times the number of branches if they are
  concatenated. Batch norm and leaky ReLU come before the branches, but not in the first block
  (`stem`); the shortcut sees the input without them.
  """

  features: int
  kernel_sizes: tuple[int, ...]
  dilations: tuple[int, ...]
  merge: Literal['concat', 'add']
  stem: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    shortcut = x
    if not self.stem:
      x = _leaky(_batch_norm(train=train, dtype=self.dtype, name='norm')(x))
    branches = [
      Branch(self.features, size, dilation, self.dtype, name=f'branch{i + 1}')(x, train=train)
      for i, (size, dilation) in enumerate(zip(self.kernel_sizes, self.dilations, strict=True))
    ]
    x = jnp.concatenate(branches, -1) if self.merge == 'concat' else sum(branches)
    shortcut = layers.Conv(x.shape[-1], 1, dtype=self.dtype, name='shortcut')(shortcut)
    return x + _batch_norm(train=train, dtype=self.dtype, name='shortcut_norm')(shortcut)


class LstmResBlock(nn.Module):
  """x plus what LSTMs along the rows and along the columns say, both ways: the shape of x.

  [B, Y, X, K], float32. The paper's figure has a convolution in the shortcut; the authors' program
  adds x itself, as is done here.
  """

  recurrent_dropout: float
  unroll: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    rows = BiConvLstm(self.recurrent_dropout, self.unroll, name='rows')(x, train=train)
    transposed = x.swapaxes(1, 2)
    columns = BiConvLstm(self.recurrent_dropout, self.unroll, name='columns')(
      transposed, train=train
    )
    return x + jnp.sum(rows, -1) + jnp.sum(columns, -1).swapaxes(1, 2)


class ResCRNet(nn.Module):
  """[B, Y, X, C] -> {'logits': [B, Y, X, num_classes]}, float32.

  Attributes:
    num_classes: channels of the logits, and the width of the LSTMs' kernels.
    width: factor on `filters`.
    conv_blocks: the paper's n; the first is the stem.
    lstm_blocks: the paper's m; each begins with a 1x1 convolution to the classes and leaky ReLU,
      which is all that is left with 0.
    filters: channels of each branch.
    kernel_sizes: one per branch.
    dilations: one per branch.
    merge: of the branches.
    dropout: rate of whole channels after each convolutional block.
    recurrent_dropout, unroll: see `BiConvLstm`.
    dtype: what is computed in, except for everything after the convolutional blocks.
    divisor: 1, sizes are left as they are.
    receptive_field: (y, x), None with LSTM blocks, which see the whole image. Without: two
      convolutions of each block add dilation·(kernel size - 1) each, in its widest branch.

  Raises:
    ValueError: kernel_sizes and dilations differ in length.
  """

  num_classes: int
  width: Annotated[float, Field(gt=0)] = 1.0
  conv_blocks: Annotated[int, Field(ge=1)] = 6
  lstm_blocks: Annotated[int, Field(ge=0)] = 1
  filters: Annotated[int, Field(ge=1)] = 16
  kernel_sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (3, 5, 7)
  dilations: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 3, 5)
  merge: Literal['concat', 'add'] = 'concat'
  dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
  recurrent_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
  unroll: Annotated[int, Field(ge=1)] = 1
  dtype: jnp.dtype = jnp.float32

  divisor: ClassVar[tuple[int, ...]] = (1, 1)

  def __post_init__(self) -> None:
    if len(self.kernel_sizes) != len(self.dilations):
      raise ValueError(
        f'kernel_sizes={self.kernel_sizes} and dilations={self.dilations} need as many entries'
      )
    super().__post_init__()

  @property
  def receptive_field(self) -> tuple[int, ...] | None:
    if self.lstm_blocks:
      return None
    branches = zip(self.kernel_sizes, self.dilations, strict=True)
    span = 1 + 2 * self.conv_blocks * max((size - 1) * dilation for size, dilation in branches)
    return span, span

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    x = image
    for i in range(self.conv_blocks):
      x = ConvResBlock(
        layers.scaled(self.filters, self.width),
        self.kernel_sizes,
        self.dilations,
        self.merge,
        stem=i == 0,
        dtype=self.dtype,
        name=f'conv{i + 1}',
      )(x, train=train)
      x = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(x)
    for i in range(max(1, self.lstm_blocks)):
      x = _leaky(layers.Conv(self.num_classes, 1, name=f'classes{i + 1}')(x))
      if self.lstm_blocks:
        x = LstmResBlock(self.recurrent_dropout, self.unroll, name=f'lstm{i + 1}')(x, train=train)
    return {'logits': x}
