"""Batches in one buffer: where their arrays lie, and that nothing is copied."""

import gc
import weakref

import numpy as np

from emseg_jax.data import packing

KINDS = {'image': ((2, 3, 5), np.float32), 'index': ((2,), np.int32), 'mask': ((7,), np.uint8)}


def test_arrays_have_the_shapes_and_types_asked_for_and_do_not_overlap():
  batch = packing.allocate(KINDS)
  for number, (name, (shape, dtype)) in enumerate(KINDS.items()):
    assert (batch[name].shape, batch[name].dtype) == (shape, dtype)
    batch[name][...] = number
  assert all((batch[name] == number).all() for number, name in enumerate(KINDS))


def test_packing_and_unpacking_copies_nothing():
  batch = packing.allocate(KINDS)
  buffer, layout = packing.pack(batch)
  # 2·3·5 floats are 120 bytes, 128 in steps of 64; two integers and seven bytes take a step each.
  assert buffer.nbytes == 128 + 64 + 64
  again = packing.unpack((buffer, layout))
  again['image'][1, 2, 4] = 3.5
  again['index'][:] = 7, 8
  assert batch['image'][1, 2, 4] == 3.5
  assert batch['index'].tolist() == [7, 8]


def test_the_buffer_lives_as_long_as_one_of_its_arrays():
  batch = packing.allocate(KINDS)
  buffer = weakref.ref(packing.pack(batch)[0])
  kept = batch.pop('index')
  del batch
  gc.collect()
  assert buffer() is not None
  kept[:] = 1
  del kept
  gc.collect()
  assert buffer() is None
