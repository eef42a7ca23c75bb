"""All changes of a batch, one after the other, and which of them fit a patch."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from emseg_jax import config
from emseg_jax.augment import defects, geometry, intensity, sample
from emseg_jax.augment.draws import draw

__all__ = ['TARGETS', 'augment', 'validate']

TARGETS = ('proximity',)


def validate(options: config.Augment, patch: Sequence[int]) -> None:
  """Checks that every change that is switched on exists for patches (y, x) or (z, y, x).

  Raises:
    ValueError: one does not; names the field.
  """
  if options.rotate90 and patch[-2] != patch[-1]:
    raise ValueError(f'augment.rotate90 needs a square data.patch, got {tuple(patch)}')
  if len(patch) == 3:
    return
  wrong = [f'defects.{name}' for name in defects.OF_VOLUMES if getattr(options.defects, name)]
  wrong += ['isotropic'] * options.isotropic + ['flip=zyx'] * (options.flip == 'zyx')
  if wrong:
    raise ValueError(f'augment.{wrong[0]} needs a data.patch of (z, y, x), got {tuple(patch)}')


def augment(
  batch: dict[str, jax.Array],
  key: jax.Array,
  *,
  options: config.Augment,
  patch: tuple[int, ...],
) -> dict[str, jax.Array]:
  """Cuts a randomly changed patch out of every region.

  Args:
    batch: 'image' [B, *region, C] float32, normalised; 'label' [B, *region] or [B, *region, K];
      'weight' [B, *region]; any of TARGETS [B, *region] float32; 'index' [B] integer, the global
      example number; 'valid' [B, ndim] integer, the extent of the region that is image, from its
      first voxel on; other entries pass through unchanged. The region should be `read_size`.
      Patches lie within 'valid' where they fit; beyond it everything is mirrored.
    key: the run's key folded with the step.
    options: which changes, and how strong; a change at 0 costs nothing.
    patch: size (y, x) or (z, y, x) of what comes out, voxels; at most 8192 along each axis.

  Returns:
    The batch with image, label, weight and targets of size `patch`. A target keeps its values: what
    it says about distances is that of the image before a zoom.

  Raises:
    ValueError: as `validate`, or a region smaller than the patch where nothing zooms.
  """
  validate(options, patch)
  region = batch['image'].shape[1:-1]
  if options.resize == (1.0, 1.0) and any(r < p for r, p in zip(region, patch, strict=True)):
    raise ValueError(f'region {region} is smaller than the patch {patch}')
  names = 'image', 'label', 'weight', 'index', 'valid', *(name for name in TARGETS if name in batch)
  change = functools.partial(_change, key=key, options=options, patch=patch)
  return {**batch, **jax.vmap(change)({name: batch[name] for name in names})}


def _change(
  example: dict[str, jax.Array],
  *,
  key: jax.Array,
  options: config.Augment,
  patch: tuple[int, ...],
) -> dict[str, jax.Array]:
  """One example of `augment`: its image, label, weight and targets."""
  image, weight = example['image'], example['weight']
  targets = [name for name in TARGETS if name in example]
  draws, keys = draw(jax.random.fold_in(key, example['index']))
  valid = jnp.minimum(example['valid'], jnp.array(weight.shape))
  places = geometry.source(draws, keys['elastic'], valid, options=options, patch=patch)
  seen = sample.inside(places, valid)
  places = sample.mirrored(places, valid)
  label, weight = (sample.nearest(field, places, valid) for field in (example['label'], weight))
  if options.fill == 'ignore':
    weight = jnp.where(seen, weight, 0)
  # Targets are interpolated as further channels, with the same coordinates.
  channels = jnp.concatenate([image, *(example[t][..., None] for t in targets)], axis=-1)
  channels = sample.linear(channels, places, valid, geometry.copies(options, patch))
  image, *moved = jnp.split(channels, [*range(image.shape[-1], channels.shape[-1])], axis=-1)
  image = intensity.blur(image, draws, options)
  image = defects.motion_blur(image, draws, options.defects)
  image = intensity.recolour(image, draws, keys['noise'], options)
  image = defects.occlude(image, draws, keys, options.defects)
  moved = {name: target[..., 0] for name, target in zip(targets, moved, strict=True)}
  return {'image': image, 'label': label, 'weight': weight, **moved}
