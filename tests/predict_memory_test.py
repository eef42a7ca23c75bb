"""Memory of a prediction is that of a block: it hardly grows with the volume."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.long

# One process per size, since what a process has once used counts as its peak for ever.
PROGRAM = """
import functools, resource, sys
import jax, jax.numpy as jnp, numpy as np, tensorstore
from emseg_jax import block_plan, block_predict
from emseg_jax.data import array_writers, blocks, normalise, pairs, volumes
from emseg_jax.config import Reading

folder, side = sys.argv[1], int(sys.argv[2])
shape = (256, side, side)
unknown = (None, None, None)
writer = array_writers.ZarrWriter(
  __import__('pathlib').Path(folder) / 'in.zarr', shape, np.dtype('uint8'),
  voxel_size_zyx=unknown, dataset=None, labels=False)
rng = np.random.default_rng(0)
# All other chunks are missing.
writer.put_box((64, 64, 64), rng.integers(0, 255, (64, 64, 64), dtype=np.uint8))
volume = volumes.open_volume(folder + '/in.zarr', reading=Reading(missing='fill'))
split = pairs.Split.of_images(volume)
group = tuple(range(len(split)))
output = array_writers.ZarrWriter(
  __import__('pathlib').Path(folder) / 'out.zarr', shape, np.dtype('uint8'),
  voxel_size_zyx=unknown, dataset=None, labels=True)
plan = block_plan.make_plan(
  shape, tile=(64, 128, 128), overlap=0.25, voxel_bytes=24, memory=2**29, chunk=64)
kernel = jnp.ones((3, 3, 3, 1, 2), jnp.float32) / 27

@jax.jit
def network(tiles):
  numbers = jax.lax.conv_dimension_numbers(tiles.shape, kernel.shape, ('NDHWC', 'DHWIO', 'NDHWC'))
  logits = jax.lax.conv_general_dilated(
    tiles, kernel, (1, 1, 1), 'SAME', dimension_numbers=numbers)
  return jax.nn.softmax(logits * jnp.array([1.0, -1.0])[None, None, None, None])

normalisation = normalise.Normalisation('scale', 1, 0.0, 1.0, 'uint8')
work = block_predict.Work(
  read=functools.partial(blocks.read_image, split, normalisation, group),
  apply=network, decide=lambda p: jnp.argmax(p, axis=-1).astype(jnp.uint8),
  write=lambda start, labels, maps: output.put_box(start, labels), mask=None, flat=False,
  channels=1, num_maps=2, batch_size=2, blend='gaussian')
count = block_predict.predict_blocks(
  plan, work, numbers=range(len(plan)), on_block=lambda number: None)
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def _peak(folder, side):
  """Blocks, and the peak of a process in 10^6 bytes."""
  folder.mkdir()
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, str(folder), str(side)],
    capture_output=True,
    text=True,
    check=True,
  )
  count, kilobytes = done.stdout.split()[-2:]
  return int(count), int(kilobytes) / 1e3


def test_a_gibibyte_takes_hardly_more_than_a_quarter_of_it(tmp_path):
  few, small = _peak(tmp_path / 'small', 1024)  # 0.25 GiB of uint8
  many, large = _peak(tmp_path / 'large', 2048)  # 1 GiB
  print(f'\npeak of 0.25 GiB: {small:.0f} MB ({few} blocks), of 1 GiB: {large:.0f} MB ({many})')
  assert many > 2 * few > 4
  assert large < 1.1 * small
