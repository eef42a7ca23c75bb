"""The device mesh and the only place where host arrays become global device arrays.

The mesh has two axes: `data` splits the batch, `space` splits the first spatial axis. The batch
arrives split over `data` and, once cropped to the patch, is split over `space` as well. The train
state is replicated or, with `mesh.shard_state`, its large arrays are split over `data`, too.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from emseg_jax import config as config_lib
from emseg_jax.errors import DeviceError

__all__ = [
  'batch_sharding',
  'constrain',
  'constrain_patches',
  'make_mesh',
  'patch_sharding',
  'put_batch',
  'replicated',
  'state_shardings',
]

SPLIT_FROM = 2**14  # elements; what is smaller would cost more to send than it takes


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
  if jax.process_count() > 1 and jax.local_device_count() % options.space:
    raise DeviceError(
      f'mesh.space={options.space}: does not divide the {jax.local_device_count()} devices of each '
      'process, which share no image with those of another'
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


def patch_sharding(mesh: Mesh) -> NamedSharding:
  """First axis split over `data`, the second, y or z, over `space`."""
  return NamedSharding(mesh, PartitionSpec('data', 'space'))


def state_shardings(state: Any, mesh: Mesh, *, split: bool) -> Any:
  """How the arrays of a train state, or of a part of it, lie on the devices.

  Args:
    state: arrays or their shapes.
    mesh: of the run.
    split: whether each array of `SPLIT_FROM` elements or more is split over `data`, along the
      longest of its axes that the size of `data` divides (ZeRO, Rajbhandari et al. 2020); arrays
      without such an axis are whole on every device, as all are if this is False.

  Returns:
    A tree like `state`, of shardings.
  """
  count = mesh.shape['data']

  def place(leaf: Any) -> NamedSharding:
    axes = [i for i, size in enumerate(leaf.shape) if size % count == 0]
    if not split or leaf.size < SPLIT_FROM or not axes:
      return replicated(mesh)
    axis = max(axes, key=lambda i: leaf.shape[i])
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, 'data'))

  return jax.tree.map(place, state)


def constrain(tree: Any, shardings: Any) -> Any:
  """Inside jit: places arrays as told, by a sharding each or by one for all."""
  return jax.lax.with_sharding_constraint(tree, shardings)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Turns this process's rows [b, ...] into global arrays [B, ...] split over `data`."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
    for name, rows in batch.items()
  }


def constrain_patches(batch: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
  """Inside jit: splits [B, Y, X, ...] arrays over (`data`, `space`), others over `data`."""

  patches, others = patch_sharding(mesh), batch_sharding(mesh)
  return {name: constrain(x, patches if x.ndim >= 3 else others) for name, x in batch.items()}
