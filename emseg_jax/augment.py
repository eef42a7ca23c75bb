"""Random changes of training patches, made on the device as part of the jitted training step.

The host reads regions as large as `read_size`; here every example is cropped, zoomed, mirrored,
turned and recoloured with draws of its own, from fold_in(key, global example number). So an example
looks the same, bit for bit, whatever batch, device or process it lands on.

Geometry moves image, label and weight together: bilinear for the image, nearest for the others.
Without zoom it only permutes voxels and copies them bit for bit. Grey values are changed per
channel but by the same draws, so that a grey image repeated over three channels stays grey, also
after a normalisation that differs between them.
"""

import math

import jax
import jax.numpy as jnp

from emseg_jax import config

__all__ = ['augment', 'read_size']

# What is drawn for every example, uniform in [0, 1), whether an option uses it or not: switching
# one change on or off leaves the others as they were.
DRAWS = (
  'mirror_y',
  'mirror_x',
  'half_turn',
  'quarter_turn',
  'zoom',
  'corner_y',
  'corner_x',
  'gamma',
  'contrast',
  'brightness',
  'noise',
)
Draws = dict[str, jax.Array]


def read_size(options: config.Augment, patch: tuple[int, int]) -> tuple[int, int]:
  """Size (y, x) in voxels of the region that the host has to read for one patch.

  ceil(patch / smallest zoom): zooming out by 2 shows twice the extent. The patch itself if nothing
  zooms out.
  """
  smallest = min(1.0, options.resize[0])
  # Rounding first, or 90 / 0.3 = 300.00000000000006 would cost a voxel.
  y, x = (math.ceil(round(size / smallest, 6)) for size in patch)
  return y, x


def augment(
  batch: dict[str, jax.Array],
  key: jax.Array,
  *,
  options: config.Augment,
  patch: tuple[int, int],
) -> dict[str, jax.Array]:
  """Cuts a randomly changed patch out of every region.

  Args:
    batch: 'image' [B, Y, X, C] float32, normalised; 'label' [B, Y, X] or [B, Y, X, K]; 'weight'
      [B, Y, X]; 'index' [B] integer, the global example number; 'valid' [B, 2] integer, the extent
      (y, x) of the region that is image, from its first voxel on; other entries pass through
      unchanged. (Y, X) should be `read_size`. Patches lie within 'valid' where they fit. What a
      zoom sees beyond its region has weight 0.
    key: the run's key folded with the step.
    options: which changes, and how strong; a change at 0 costs nothing.
    patch: size (y, x) of what comes out, voxels; at most 8192.

  Returns:
    The batch with image, label and weight of size `patch`.

  Raises:
    ValueError: quarter turns of a patch that is not square, or a region smaller than the patch
      where nothing zooms.
  """
  if options.rotate90 and patch[0] != patch[1]:
    raise ValueError(f'augment.rotate90 needs a square data.patch, got {patch}')
  region = batch['image'].shape[1:3]
  if options.resize == (1.0, 1.0) and (region[0] < patch[0] or region[1] < patch[1]):
    raise ValueError(f'region {region} is smaller than the patch {patch}')

  def augment_one(image, label, weight, index, valid):
    draw_key, noise_key = jax.random.split(jax.random.fold_in(key, index))
    draws = dict(zip(DRAWS, jax.random.uniform(draw_key, (len(DRAWS),)), strict=True))
    place = _whole_voxels if options.resize == (1.0, 1.0) else _zoomed
    y, x = place(draws, valid, patch, options)
    y, x = _turn(y, x, draws, options)
    image, label, weight = _sample(image, label, weight, y, x)
    return _recolour(image, draws, noise_key, options), label, weight

  names = 'image', 'label', 'weight'
  fields = jax.vmap(augment_one)(*(batch[name] for name in (*names, 'index', 'valid')))
  return {**batch, **dict(zip(names, fields, strict=True))}


def _whole_voxels(
  draws: Draws, valid: jax.Array, patch: tuple[int, int], options: config.Augment
) -> list[jax.Array]:
  """Integer coordinates y [Py] and x [Px] of a patch at a random position within `valid`."""
  del options
  axes = []
  for name, extent, size in zip(('corner_y', 'corner_x'), valid, patch, strict=True):
    places = jnp.maximum(extent - size + 1, 1)
    axes.append(jnp.floor(draws[name] * places).astype(jnp.int32) + jnp.arange(size))
  return axes


def _zoomed(
  draws: Draws, valid: jax.Array, patch: tuple[int, int], options: config.Augment
) -> list[jax.Array]:
  """Coordinates y [Py] and x [Px] of a box of patch / zoom at a random position within `valid`.

  Counted from the centre of the region's first voxel; both are sampled at voxel centres. There is
  no low-pass filter: zooming out by more than 2 aliases.
  """
  zoom = _between(draws['zoom'], *options.resize)
  axes = []
  for name, extent, size in zip(('corner_y', 'corner_x'), valid, patch, strict=True):
    corner = _times(draws[name], jnp.maximum(extent - size / zoom, 0.0))
    axes.append(corner + (jnp.arange(size) + 0.5) / zoom - 0.5)
  return axes


def _turn(
  y: jax.Array, x: jax.Array, draws: Draws, options: config.Augment
) -> tuple[jax.Array, jax.Array]:
  """Coordinates y, x of every voxel [Py, Px], mirrored and turned; with both, all 8 ways alike.

  Coordinates are turned, not images: a choice between images computes each of them.
  """
  mirror_y, mirror_x = ((axis in options.flip) & (draws[f'mirror_{axis}'] < 0.5) for axis in 'yx')
  half, quarter = (options.rotate90 & (draws[f'{part}_turn'] < 0.5) for part in ('half', 'quarter'))
  y = jnp.where(mirror_y ^ half, y[::-1], y)
  x = jnp.where(mirror_x ^ half, x[::-1], x)
  if not options.rotate90:
    return jnp.meshgrid(y, x, indexing='ij')
  turned_y = jnp.where(quarter, y[None, :], y[:, None])
  turned_x = jnp.where(quarter, x[::-1][:, None], x[None, :])  # rot90: out[i, j] = in[j, n-1-i]
  return turned_y, turned_x


def _sample(
  image: jax.Array, label: jax.Array, weight: jax.Array, y: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The three fields at y, x [Py, Px]: copied if these are whole voxels, else interpolated."""
  if jnp.issubdtype(y.dtype, jnp.integer):
    return _gather(image, y, x), _gather(label, y, x), _gather(weight, y, x)
  near_y, near_x = (jnp.floor(c + 0.5).astype(jnp.int32) for c in (y, x))
  height, width = weight.shape
  inside = (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
  weight = jnp.where(inside, _gather(weight, near_y, near_x), 0)
  return _bilinear(image, y, x), _gather(label, near_y, near_x), weight


def _gather(field: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
  """field[y, x] for integer y, x; beyond the field its edge is repeated."""
  # Clipped here, since mode='clip' first lets negative indices count from the end.
  y, x = jnp.clip(y, 0, field.shape[0] - 1), jnp.clip(x, 0, field.shape[1] - 1)
  return field.at[y, x].get(mode='promise_in_bounds')


def _bilinear(image: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
  """[Y, X, C] at the coordinates y, x [Py, Px] -> [Py, Px, C]."""
  y0, x0 = jnp.floor(y), jnp.floor(x)
  along_y, along_x = (y - y0)[..., None], (x - x0)[..., None]
  y0, x0 = y0.astype(jnp.int32), x0.astype(jnp.int32)
  upper = _between(along_x, _gather(image, y0, x0), _gather(image, y0, x0 + 1))
  lower = _between(along_x, _gather(image, y0 + 1, x0), _gather(image, y0 + 1, x0 + 1))
  return _between(along_y, upper, lower)


def _recolour(
  image: jax.Array, draws: Draws, noise_key: jax.Array, options: config.Augment
) -> jax.Array:
  """Gamma, contrast, brightness, then noise on [Y, X, C]; statistics are per channel of the patch.

  g = (image - min) / (max - min), raised to the power 2^U(-gamma, gamma)
  g -> mean + (1 + U(-contrast, contrast)) (g - mean)
       + U(-brightness, brightness) std + U(0, noise) std N(0, 1)
  """
  if not (options.gamma or options.contrast or options.brightness or options.noise):
    return image
  low = jnp.min(image, axis=(0, 1), keepdims=True)
  span = jnp.max(image, axis=(0, 1), keepdims=True) - low
  # Span 1 keeps a constant patch constant; clipped, as a power of the slightest negative is NaN.
  grey = jnp.clip((image - low) / jnp.where(span > 0, span, 1.0), 0.0, 1.0)
  if options.gamma:
    grey = grey ** jnp.exp2(_between(draws['gamma'], -options.gamma, options.gamma))
  mean = _mean(grey)
  std = jnp.sqrt(_mean(jnp.square(grey - mean)))
  if options.contrast:
    factor = 1.0 + _between(draws['contrast'], -options.contrast, options.contrast)
    grey = mean + _times(factor, grey - mean)
  if options.brightness:
    shift = _between(draws['brightness'], -options.brightness, options.brightness)
    grey = grey + _times(shift, std)
  if options.noise:
    sigma = draws['noise'] * options.noise * std
    grey = grey + _times(sigma, jax.random.normal(noise_key, (*grey.shape[:2], 1)))
  return _between(grey, low, low + span)


# Programs compiled for another batch size or device count add up in another order, and contract
# other pairs of a product and a sum to one rounding (FMA). The three functions below give the same
# bits however they are compiled.


def _times(a: jax.Array, b: jax.Array) -> jax.Array:
  """a · b, rounded to 22 bits of mantissa before anything is added to it."""
  return jax.lax.reduce_precision(a * b, exponent_bits=8, mantissa_bits=22)


def _between(share: jax.Array, low: jax.Array | float, high: jax.Array | float) -> jax.Array:
  """low + share (high - low); exactly `low` where both are equal."""
  return low + _times(share, high - low)


def _mean(values: jax.Array) -> jax.Array:
  """Mean over y and x of [Y, X, C] within 0..1, to 2^-17, as a sum of integers -> [1, 1, C]."""
  height, width = values.shape[:2]
  levels = jnp.round(values * 2**17).astype(jnp.int32)
  columns = jnp.sum(levels, axis=0, keepdims=True) // height  # keeps the next sum within int32
  return jnp.sum(columns, axis=1, keepdims=True) / (width * 2**17)
