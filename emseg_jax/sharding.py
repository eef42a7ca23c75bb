"""The device mesh and the only place where host arrays become global device arrays.

The mesh has two axes: `data` splits the batch, `space` splits the first spatial axis. The train
state is replicated; the batch arrives split over `data` and, once cropped to the patch, is split
over `space` as well.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from emseg_jax import config as config_lib
from emseg_jax.errors import DeviceError

__all__ = ['batch_sharding', 'constrain_patches', 'make_mesh', 'put_batch', 'replicated']


def make_mesh(options: config_lib.Mesh, *, batch_size: int | None = None) -> Mesh:
  """Builds the mesh over all devices of all processes.

  Args:
    options: data and space sizes; data = -1 takes all devices that space leaves.
    batch_size: examples per step; must be divisible by data. None: not checked.

  Raises:
    DeviceError: the sizes do not fit the devices or the batch.
  """
  count = jax.device_count()
  data = options.data
  if data == -1:
    if count % options.space:
      raise DeviceError(f'mesh.space={options.space}: does not divide the {count} devices')
    data = count // options.space
  if data < 1 or data * options.space > count:
    raise DeviceError(
      f'mesh.data={data} x mesh.space={options.space}: needs {data * options.space} devices, '
      f'there are {count}'
    )
  if data * options.space < count and jax.process_count() > 1:
    raise DeviceError(
      f'mesh.data={data} x mesh.space={options.space}: several processes use all of their {count} '
      'devices; set mesh.data to -1'
    )
  if batch_size is not None and batch_size % data:
    raise DeviceError(
      f'train.batch_size={batch_size}: is not a multiple of mesh.data={data}; choose one, or set '
      'mesh.data to a divisor'
    )
  devices = jax.devices()[: data * options.space]
  return jax.make_mesh(
    (data, options.space),
    ('data', 'space'),
    axis_types=(AxisType.Auto, AxisType.Auto),  # linen's Dropout fails under Explicit axes
    devices=devices,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The same array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """First axis split over `data`."""
  return NamedSharding(mesh, PartitionSpec('data'))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Turns this process's rows [b, ...] into global arrays [B, ...] split over `data`."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
    for name, rows in batch.items()
  }


def constrain_patches(batch: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
  """Inside jit: splits [B, Y, X, ...] arrays over (`data`, `space`), others over `data`."""

  def constrain(x: jax.Array) -> jax.Array:
    spec = PartitionSpec('data', 'space') if x.ndim >= 3 else PartitionSpec('data')
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

  return {name: constrain(x) for name, x in batch.items()}
