"""The mesh over eight virtual devices, and where the rows of a batch end up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from emseg_jax import config, sharding
from emseg_jax.errors import DeviceError


@pytest.mark.parametrize(
  ('data', 'space', 'shape'),
  [
    (-1, 1, (8, 1)),
    (-1, 2, (4, 2)),
    (-1, 8, (1, 8)),
    (2, 3, (2, 3)),  # six of the eight devices
    (1, 1, (1, 1)),
  ],
)
def test_the_mesh_has_the_sizes_asked_for(data, space, shape):
  mesh = sharding.make_mesh(config.Mesh(data=data, space=space))
  assert mesh.axis_names == ('data', 'space')
  assert mesh.devices.shape == shape
  # Dropout of linen raises under the default, Explicit.
  assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
  assert set(mesh.devices.flat) == set(jax.devices()[: mesh.size])


@pytest.mark.parametrize(
  ('data', 'space', 'batch_size', 'message'),
  [
    (-1, 3, None, r'mesh\.space=3: does not divide the 8 devices'),
    (-1, 16, None, r'mesh\.space=16: does not divide the 8 devices'),
    (4, 4, None, r'mesh\.data=4 x mesh\.space=4: needs 16 devices, there are 8'),
    (0, 1, None, r'mesh\.data=0'),
    (-1, 1, 12, r'train\.batch_size=12: is not a multiple of mesh\.data=8'),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused(data, space, batch_size, message):
  with pytest.raises(DeviceError, match=message):
    sharding.make_mesh(config.Mesh(data=data, space=space), batch_size=batch_size)


def test_a_batch_needs_to_be_divisible_by_data_alone():
  mesh = sharding.make_mesh(config.Mesh(data=-1, space=2), batch_size=12)  # 12 = 3 * 4
  assert mesh.shape == {'data': 4, 'space': 2}


def test_put_batch_splits_rows_over_data_and_repeats_them_over_space():
  mesh = sharding.make_mesh(config.Mesh(data=4, space=2))
  batch = {
    'image': np.arange(8 * 6 * 5, dtype=np.float32).reshape(8, 6, 5, 1),
    'index': np.arange(8, dtype=np.int32),
  }
  placed = sharding.put_batch(batch, mesh)
  assert set(placed) == set(batch)
  for name, rows in batch.items():
    assert placed[name].shape == rows.shape
    assert placed[name].dtype == rows.dtype
    assert placed[name].sharding == sharding.batch_sharding(mesh)
    np.testing.assert_array_equal(placed[name], rows)
    assert len(placed[name].addressable_shards) == 8
    for shard in placed[name].addressable_shards:
      place = int(np.argwhere(mesh.devices == shard.device)[0, 0])  # along data
      np.testing.assert_array_equal(shard.data, rows[2 * place : 2 * place + 2])  # 8 rows / 4


def test_a_replicated_array_is_whole_on_every_device():
  mesh = sharding.make_mesh(config.Mesh())
  x = jax.device_put(np.arange(6), sharding.replicated(mesh))
  assert [shard.data.shape for shard in x.addressable_shards] == [(6,)] * 8


def test_patches_are_split_over_space_and_small_fields_are_not():
  mesh = sharding.make_mesh(config.Mesh(data=2, space=4))
  batch = {
    'image': np.arange(4 * 8 * 3, dtype=np.float32).reshape(4, 8, 3, 1),
    'label': np.arange(4 * 8 * 3, dtype=np.int32).reshape(4, 8, 3),
    'valid': np.arange(8, dtype=np.int32).reshape(4, 2),
    'index': np.arange(4, dtype=np.int32),
  }

  @jax.jit
  def split(values):
    return sharding.constrain_patches(values, mesh)

  out = split(sharding.put_batch(batch, mesh))
  for name, rows in batch.items():
    np.testing.assert_array_equal(out[name], rows)
    both = name in ('image', 'label')
    spec = PartitionSpec('data', 'space') if both else PartitionSpec('data')
    expected = jax.sharding.NamedSharding(mesh, spec)
    assert out[name].sharding.is_equivalent_to(expected, rows.ndim)
  # 4 examples over 2 and 8 rows over 4.
  assert out['image'].addressable_shards[0].data.shape == (2, 2, 3, 1)


def test_a_mean_over_a_split_batch_is_the_mean_of_the_whole():
  mesh = sharding.make_mesh(config.Mesh())
  rows = np.arange(16, dtype=np.float32)
  placed = sharding.put_batch({'x': rows}, mesh)['x']
  assert float(jax.jit(jnp.mean)(placed)) == 7.5  # (0 + 15) / 2


def test_several_processes_use_all_devices(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(DeviceError, match='several processes use all of their 8 devices'):
    sharding.make_mesh(config.Mesh(data=2))


def test_processes_share_no_image(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 4)
  monkeypatch.setattr(jax, 'local_device_count', lambda: 2)  # four times two are the eight
  assert sharding.make_mesh(config.Mesh(space=2)).devices.shape == (4, 2)
  with pytest.raises(DeviceError, match=r'mesh\.space=4: does not divide the 2 devices of each'):
    sharding.make_mesh(config.Mesh(space=4))
