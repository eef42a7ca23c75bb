"""Boxes of probabilities: together they are what the whole volume gives."""

import numpy as np
import pytest
from data_support import volume_split
from volume_support import Stand

from emseg_jax import volume_boxes

SHAPE = (6, 20, 24)
IMAGE = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
GROUP = tuple(range(6))


def gather(network, plan):
  split = volume_split((IMAGE, IMAGE % 3), cache_bytes=10**6)
  found = np.full((*SHAPE, 3), np.nan, np.float32)
  starts = []
  for box in volume_boxes.predict_boxes(network, split, GROUP, plan):
    assert box.probabilities.shape == (*box.size, 3)
    found[tuple(map(slice, box.start, box.stop))] = box.probabilities
    starts.append(box.start)
  return found, starts


@pytest.mark.parametrize('patch', [(4, 16, 16), (16, 16)])
@pytest.mark.parametrize('block', [None, (4, 12, 24), (1, 5, 7)])
def test_boxes_hold_the_probabilities_of_the_whole(patch, block):
  network = Stand(patch)
  (plan,) = volume_boxes.same_boxes([network], SHAPE, block=block)
  found, starts = gather(network, plan)
  assert starts == sorted(starts)  # layer by layer
  split = volume_split((IMAGE, IMAGE % 3), cache_bytes=10**6)
  groups = [GROUP] if len(patch) == 3 else [(i,) for i in GROUP]
  parts = [network.group_probabilities(split, group) for group in groups]
  expected = np.concatenate([part.reshape(-1, *found.shape[1:]) for part in parts])
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_networks_of_different_tiles_get_the_same_boxes(monkeypatch):
  monkeypatch.setattr(volume_boxes.block_job, 'block_memory', lambda: 2**16)
  networks = [Stand((4, 16, 16)), Stand((8, 8)), Stand((2, 20, 20))]
  plans = volume_boxes.same_boxes(networks, SHAPE)
  boxes = [[(b.start, b.stop) for b in plan.blocks()] for plan in plans]
  assert boxes[0] == boxes[1] == boxes[2]
  assert len(boxes[0]) > 1
  (alone,) = volume_boxes.same_boxes(networks[:1], SHAPE)
  assert np.prod(alone.block) >= np.prod(plans[0].block)  # they share the memory
