"""EM-net of Khadangi et al. (2020), in the seven variants that its authors released.

Parameters at width 1 for one input channel and one class:

  v1_bn      5,394,649
  v1_bn_2x   6,797,801
  v1_2x      7,010,377
  v1_4x     28,012,681
  v2         7,576,201
  v2_2x     14,871,977
  v2_4x     33,827,209

The paper of PmcaNet compares with an EM-net of 39.06 M parameters, which is none of them; v2_4x,
the largest, has 33.83 M. Not to be confused with EM-Net, the 3D network with HVEC.
"""

import functools
from typing import Annotated, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from pydantic import Field

from emseg_jax.models import layers, resample

__all__ = ['TLU', 'EmNetKhadangi', 'Layer', 'Unit', 'UnitNew', 'UnitV2x4']

VariantName = Literal['v1_bn', 'v1_bn_2x', 'v1_2x', 'v1_4x', 'v2', 'v2_2x', 'v2_4x']


class TLU(nn.Module):
  """Trainable linear unit: α·x for x < 0, β·x for x ≥ 0, per channel; a ReLU at the start."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    negative = self.param('negative_scale', nn.initializers.zeros, x.shape[-1:])  # α
    positive = self.param('scale', nn.initializers.ones, x.shape[-1:])  # β
    shape = (1,) * (x.ndim - 1) + (-1,)
    negative, positive = (p.astype(x.dtype).reshape(shape) for p in (negative, positive))
    return jnp.where(x >= 0, positive, negative) * x


class Layer(nn.Module):
  """Convolution with bias, Keras's batch norm if wanted, TLU or ReLU.

  [B, Y, X, C] -> [B, Y, X, features].
  """

  features: int
  kernel_size: int = 3
  norm: bool = False
  activation: Literal['tlu', 'relu'] = 'tlu'
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = layers.Conv(self.features, self.kernel_size, dtype=self.dtype, name='conv')(x)
    if self.norm:
      x = layers.batch_norm(
        train=train, dtype=self.dtype, momentum=0.99, epsilon=1e-3, name='norm'
      )(x)
    return TLU(name='tlu')(x) if self.activation == 'tlu' else nn.relu(x)


class Unit(nn.Module):
  """Three layers; [B, Y, X, C] -> [first, third], [B, Y, X, 2·features]."""

  features: int
  norm: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    outputs = []
    for i in range(3):
      x = Layer(self.features, norm=self.norm, dtype=self.dtype, name=f'layer{i + 1}')(
        x, train=train
      )
      outputs.append(x)
    return jnp.concatenate([outputs[0], outputs[2]], -1)


class UnitNew(nn.Module):
  """Layers of 2·f, f, 2·f, f channels; [B, Y, X, C] -> [second, fourth], [B, Y, X, 2·features]."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    outputs = []
    for i, factor in enumerate((2, 1, 2, 1)):
      x = Layer(factor * self.features, dtype=self.dtype, name=f'layer{i + 1}')(x, train=train)
      outputs.append(x)
    return jnp.concatenate([outputs[1], outputs[3]], -1)


class UnitV2x4(nn.Module):
  """Densely joined layers of 2·f, f, f channels; [B, Y, X, C] -> [B, Y, X, 4·features]."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    x = Layer(2 * self.features, dtype=self.dtype, name='layer1')(x, train=train)
    for i in (2, 3):
      y = Layer(self.features, dtype=self.dtype, name=f'layer{i}')(x, train=train)
      x = jnp.concatenate([x, y], -1)
    return x


# Units by name, and how many 3x3 convolutions follow one another in each.
UNITS = {
  'unit': (Unit, 3),
  'unit_bn': (functools.partial(Unit, norm=True), 3),
  'new': (UnitNew, 4),
  'v2_4x': (UnitV2x4, 3),
  'relu': (functools.partial(Layer, activation='relu'), 1),
}


class _Variant(NamedTuple):
  """Units are (name, f); an encoder's f are factors on the level's."""

  encoder: tuple[tuple[str, float], ...]
  kept: tuple[int, ...]  # units whose outputs are joined and pooled; the last one is the skip
  bridge: tuple[tuple[tuple[str, int], ...], ...]  # branches beside each other
  bridge_kept: tuple[int, ...] = (1,)  # units of each branch whose outputs are joined
  levels: tuple[int, ...] = (16, 32, 64, 128)
  up: tuple[int, ...] = (32, 64, 128, 256)
  decoder: tuple[int, ...] = (32, 64, 128, 256)
  dropout: tuple[str, ...] = ()  # after each 'unit' going down, the last 'pool', the 'bridge'


_V1 = (('unit', 1), ('new', 1))
_VARIANTS: dict[str, _Variant] = {
  'v1_bn': _Variant(
    (('unit_bn', 1), ('unit_bn', 1)),
    (0, 1),
    2 * ((('unit_bn', 64), ('unit_bn', 64)),),
    dropout=('pool',),
  ),
  'v1_bn_2x': _Variant(
    2 * (('unit_bn', 1), ('unit_bn', 1 / 2)), (1, 3), (4 * (('unit_bn', 128),),), (1, 3)
  ),
  'v1_2x': _Variant(
    _V1,
    (0, 1),
    ((('unit', 64), ('unit', 64)), (('new', 64), ('unit', 64))),
    dropout=('pool',),
  ),
  'v1_4x': _Variant(
    _V1,
    (0, 1),
    ((('unit', 128), ('unit', 128)), (('new', 128), ('unit', 128))),
    levels=(32, 64, 128, 256),
    up=(64, 128, 256, 512),
    decoder=(64, 128, 256, 512),
    dropout=('pool', 'bridge'),
  ),
  'v2': _Variant(
    (('new', 1), ('new', 1)),
    (1,),
    ((('unit_bn', 64), ('new', 64)), (('new', 64), ('unit_bn', 64))),
  ),
  'v2_2x': _Variant(
    (('new', 1), ('new', 2)),
    (1,),
    ((('unit_bn', 64), ('new', 128)), (('new', 64), ('unit_bn', 128))),
  ),
  'v2_4x': _Variant(
    (('v2_4x', 1),),
    (0,),
    ((('relu', 1024), ('relu', 1024)),),
    levels=(32, 64, 128, 256),
    up=(64, 128, 256, 512),
    dropout=('unit', 'bridge'),
  ),
}


class EmNetKhadangi(nn.Module):
  """[B, Y, X, C] -> {'logits': [B, Y, X, num_classes]}, float32.

  The published head for one class, a 3x3 convolution to two channels and 1x1 to one, has two
  channels per class here.

  Attributes:
    num_classes: channels of the logits.
    variant: of the units and widths.
    width: factor on the number of channels of every layer before the head.
    dropout: rate at which whole channels are dropped: after the last pooling in v1_bn, v1_2x and
      v1_4x, after the bridge in v1_4x and v2_4x, after each unit of the encoder in v2_4x; has no
      effect in the others.
    dtype: what is computed in, except for the last layer.
    divisor: sizes that are not multiples of it are padded inside.
    receptive_field: (y, x), the largest span of input voxels that one output voxel depends on. A
      level of the decoder adds 4 and, for the 2x2 convolution, 1 voxel after; n voxels come from at
      most floor(n / 2) + 1 of half size. With the head's 2 these are 1 + 2 + 5 = 8, 10, 11, 11
      voxels, from 5, 6, 6, 6. A bridge of b convolutions in a row makes them 6 + 2b, a level of the
      encoder with e of them n 2n + 2e: 16·(6 + 2b) + 30e at the end. A cell of `divisor` voxels at
      a multiple of `divisor` depends on 16·(2 + b) + 15e voxels before it and 16 more after.
  """

  num_classes: int
  variant: VariantName = 'v2_4x'
  width: Annotated[float, Field(gt=0)] = 1.0
  dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
  dtype: jnp.dtype = jnp.float32

  divisor: ClassVar[tuple[int, ...]] = (16, 16)

  @property
  def receptive_field(self) -> tuple[int, ...] | None:
    variant = _VARIANTS[self.variant]
    e = sum(UNITS[kind][1] for kind, _ in variant.encoder)
    b = max(sum(UNITS[kind][1] for kind, _ in branch) for branch in variant.bridge)
    return (16 * (6 + 2 * b) + 30 * e,) * 2

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    variant = _VARIANTS[self.variant]

    def units(x: jax.Array, specs: tuple, f: float, name: str) -> list[jax.Array]:
      outputs = []
      for i, (kind, factor) in enumerate(specs):
        features = layers.scaled(f * factor, self.width)
        unit = UNITS[kind][0](features, dtype=self.dtype, name=f'{name}_{i + 1}')
        outputs.append(x := unit(x, train=train))
      return outputs

    def relu_layer(x: jax.Array, channels: int, name: str, size: int = 3) -> jax.Array:
      features = layers.scaled(channels, self.width)
      return Layer(features, size, True, 'relu', self.dtype, name=name)(x, train=train)

    def dropout(x: jax.Array, after: str) -> jax.Array:
      rate = self.dropout if after in variant.dropout else 0.0
      return nn.Dropout(rate, broadcast_dims=(1, 2), deterministic=not train)(x)

    x = resample.pad_to_multiple(image, self.divisor)
    skips = []
    for i, f in enumerate(variant.levels, start=1):
      outputs = [dropout(o, 'unit') for o in units(x, variant.encoder, f, f'down{i}')]
      skips.append(outputs[-1])
      x = resample.max_pool(jnp.concatenate([outputs[k] for k in variant.kept], -1))
    x = dropout(x, 'pool')
    branches = [units(x, b, 1, f'bridge{i + 1}') for i, b in enumerate(variant.bridge)]
    x = jnp.concatenate([outputs[k] for outputs in branches for k in variant.bridge_kept], -1)
    x = dropout(x, 'bridge')
    widths = tuple(zip(variant.up, variant.decoder, strict=True))
    for i, (up, decoder) in reversed(tuple(enumerate(widths, start=1))):
      x = relu_layer(resample.upsample_nearest(x, 2), up, f'upconv{i}', size=2)
      x = jnp.concatenate([x, skips[i - 1]], -1)
      x = relu_layer(relu_layer(x, decoder, f'up{i}_1'), decoder, f'up{i}_2')
    x = Layer(2 * self.num_classes, 3, True, 'relu', self.dtype, name='squeeze')(x, train=train)
    logits = layers.Conv(self.num_classes, 1, name='head')(x)
    return {'logits': resample.crop(logits, image.shape[1:-1])}
