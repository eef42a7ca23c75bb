"""Rows split over devices: the plain convolutional networks exchange border rows only."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from model_support import KEYS, normal, variables

from emseg_jax import models
from emseg_jax.collectives import KINDS, traffic

# Per device two rows or more at the coarsest level; for the centre of SegET, dilated by up to 8, as
# many as that.
SHAPES = {
  'unet': (2, 64, 32, 1),
  'seget': (2, 256, 16, 1),
  'casser_unet': (2, 64, 16, 1),
  'resunet': (2, 64, 16, 1),
  'unet3d': (2, 32, 16, 8, 1),
}


def _loss(model, params, stats, image):
  out, _ = model.apply({'params': params, **stats}, image, train=True, mutable=['batch_stats'])
  return jnp.mean(jnp.sin(out['logits'] + image))


@pytest.fixture(autouse=True)
def _as_on_accelerators(monkeypatch):
  """The convolutions of accelerators: their forms for CPUs send more, and are not what is split."""
  monkeypatch.setattr(jax.lax, 'platform_dependent', lambda *args, default, **_: default(*args))


@pytest.mark.parametrize('name', SHAPES)
def test_rows_split_over_devices_are_not_gathered_and_change_nothing(name):
  options = {'dropout': 0.0} if name == 'casser_unet' else {}
  model = models.create_model(name, 2, width=1 / 8 if name == 'seget' else 1 / 16, **options)
  stats = dict(variables(model, SHAPES[name]))
  arguments = stats.pop('params'), stats, normal(*SHAPES[name])
  mesh = jax.make_mesh(
    (2, 2), ('data', 'space'), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4]
  )
  everywhere = NamedSharding(mesh, PartitionSpec())
  shardings = everywhere, everywhere, NamedSharding(mesh, PartitionSpec('data', 'space'))
  gradient = jax.value_and_grad(functools.partial(_loss, model))
  compiled = jax.jit(gradient, in_shardings=shardings).lower(*arguments).compile()
  found = traffic(compiled.as_text())
  assert found.keys() <= {'collective-permute', 'all-reduce'}
  assert found['collective-permute'].count > 0  # the exchange of border rows
  # What is summed, over each axis of the mesh, is parameters' gradients and a few statistics.
  parameters = 4 * sum(leaf.size for leaf in jax.tree.leaves(arguments[0])) / 1e6
  assert found['all-reduce'].megabytes < 2.2 * parameters
  split, whole = compiled(*jax.device_put(arguments, shardings)), jax.jit(gradient)(*arguments)
  np.testing.assert_allclose(split[0], whole[0], rtol=1e-5)
  for a, b in zip(*map(jax.tree.leaves, (split[1], whole[1])), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-3 * max(1e-3, math.sqrt(float(np.mean(b**2)))) + 1e-5)


# What is not sent by neighbours only, at 256 x 64 pixels (64 x 16 x 16 voxels) with rows split over
# two devices: recurrence, dilations larger than a shard, attention, pooling of the coarsest level.
GATHERS = {
  'rescrnet': {'all-gather'},
  'deeplabv3plus': {'all-gather'},
  'deeplabv3plus_vgg': {'all-gather'},
  'segmenter': {'all-gather', 'all-to-all'},
  'segvit': {'all-gather'},
  'pidnet': {'all-gather'},
}


@pytest.mark.long
@pytest.mark.parametrize('name', models.MODELS)
def test_what_every_network_sends_between_devices(name):
  narrow = {'segmenter': {'depth': 2}, 'segvit': {'depth': 2, 'taps': (0, 1), 'decoder_layers': 1}}
  model = models.create_model(name, 2, width=1 / 8, **narrow.get(name, {}))
  shape = (2, 256, 64, 1) if len(model.divisor) == 2 else (2, 64, 16, 16, 1)
  stats = dict(variables(model, shape))
  arguments = stats.pop('params'), stats, normal(*shape)
  mesh = jax.make_mesh(
    (1, 2), ('data', 'space'), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:2]
  )
  everywhere = NamedSharding(mesh, PartitionSpec())
  shardings = everywhere, everywhere, NamedSharding(mesh, PartitionSpec('data', 'space'))

  def loss(params, stats, image):
    out, _ = model.apply(
      {'params': params, **stats}, image, train=True, mutable=['batch_stats'], rngs=KEYS
    )
    return sum(jnp.mean(jnp.sin(x)) for x in out.values())

  compiled = jax.jit(jax.grad(loss), in_shardings=shardings).lower(*arguments).compile()
  found = traffic(compiled.as_text())
  cells = [f'{found[k].count} ({found[k].megabytes:.2f} MB)' if k in found else '-' for k in KINDS]
  print(f'| {name} | {" | ".join(cells)} |')
  assert {kind for kind in KINDS[:2] if kind in found} == GATHERS.get(name, set())
