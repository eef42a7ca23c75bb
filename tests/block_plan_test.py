"""Blocks and their tiles: what is covered, what is computed twice, which boxes are allowed."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from emseg_jax import block_plan, tiling
from emseg_jax.errors import ConfigError


def plan_of(volume, tile, *, overlap=0.25, **options):
  tile = (*(1,) * (3 - len(tile)), *tile)
  layout = tiling.lay_out(volume, tile, overlap=overlap, blend='gaussian')
  usual = {'voxel_bytes': 8, 'memory': 2**28, 'chunk': 4}
  return block_plan.make_plan(layout, **{**usual, **options})


SIZES = st.tuples(*[st.integers(1, 30)] * 3)


@hypothesis.given(
  volume=SIZES,
  tile=st.tuples(*[st.integers(1, 12)] * 3),
  block=SIZES,
  overlap=st.floats(0, 0.75),
  chunk=st.integers(1, 8),
  data=st.data(),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_every_voxel_is_written_once_and_lies_in_all_tiles_that_touch_it(
  volume, tile, block, overlap, chunk, data
):
  roi = []
  for size in volume:
    start = data.draw(st.integers(0, size - 1))
    roi.append(slice(start, data.draw(st.integers(start + 1, size))))
  plan = plan_of(volume, tile, block=block, overlap=overlap, chunk=chunk, roi=roi)
  written = np.zeros(volume, int)
  covered = np.zeros(plan.extent, int)
  blocks = list(plan.blocks())
  assert [block.number for block in blocks] == list(range(len(plan)))
  whole = np.zeros([max(v, t) for v, t in zip(volume, tile, strict=True)], int)
  for origin in np.stack(np.meshgrid(*plan.layout.origins, indexing='ij'), axis=-1).reshape(-1, 3):
    whole[tuple(slice(o, o + t) for o, t in zip(origin, tile, strict=True))] += 1
  for block in blocks:
    place = tuple(slice(a, b) for a, b in zip(block.start, block.stop, strict=True))
    written[place] += 1
    assert all((a - first) % chunk == 0 for a, first in zip(block.start, plan.start, strict=True))
    covered[:] = 0
    for start in block.tiles:
      covered[tuple(slice(s, s + t) for s, t in zip(start, tile, strict=True))] += 1
    np.testing.assert_array_equal(covered[block.inside], whole[place])
  inside = np.zeros(volume, int)
  inside[tuple(roi)] = 1
  np.testing.assert_array_equal(written, inside)


def test_the_weights_of_a_block_are_the_sum_of_its_windows():
  plan = plan_of((5, 20, 23), (3, 8, 8), block=(4, 8, 12))
  for block in plan.blocks():
    total = np.zeros(plan.extent, np.float32)
    for start in block.tiles:
      place = tuple(slice(s, s + t) for s, t in zip(start, plan.tile, strict=True))
      total[place] += tiling.window(plan.tile, 'gaussian')
    z, y, x = plan.weights(block)
    product = z[:, None, None] * y[:, None] * x
    np.testing.assert_allclose(product[block.inside], total[block.inside], rtol=1e-5)


def test_a_block_is_grown_until_the_memory_is_full():
  effort = []
  for memory in (2**28, 2**31, 2**34):  # 8 bytes a voxel
    plan = plan_of((4096, 4096, 4096), (64, 128, 128), chunk=64, memory=memory)
    assert memory / 8 / 4 < np.prod(plan.extent, dtype=np.int64) <= memory / 8
    effort.append(plan.effort)
  assert effort[0] > effort[1] > effort[2]
  small = plan_of((10, 20, 20), (4, 8, 8), chunk=64)
  assert small.block == (10, 20, 20)
  assert small.effort == 1
  # A tile has to fit, whatever the memory.
  assert plan_of((10, 20, 20), (4, 8, 8), memory=1).block == (4, 8, 8)


def test_networks_for_sections_have_tiles_of_one_section():
  plan = plan_of((10, 40, 40), (16, 16), chunk=4)
  assert plan.tile == (1, 16, 16)
  assert plan.layout.origins[0] == tuple(range(10))


def test_the_effort_counts_tiles_that_two_blocks_compute():
  # Tiles of 8 at 0, 6, 12 over 20 voxels; blocks 0-8, 8-16, 16-20 touch 2, 2 and 1 of these three.
  plan = plan_of((1, 1, 20), (1, 1, 8), block=(1, 1, 8), chunk=8)
  assert plan.layout.origins[2] == (0, 6, 12)
  assert [len(block.tiles) for block in plan.blocks()] == [2, 2, 1]
  assert plan.effort == pytest.approx(5 / 3)


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('0:4,:,7:', (slice(0, 4), slice(None), slice(7, None))),
    (':,:5,:', (slice(None), slice(None, 5), slice(None))),
  ],
)
def test_boxes_are_written_like_slices(text, expected):
  assert block_plan.parse_roi(text) == expected


@pytest.mark.parametrize('text', ['', '1:2', '1:2,3:4', 'a:b,:,:', '1:2:3,:,:', '-1:2,:,:'])
def test_another_form_of_a_box_is_refused(text):
  with pytest.raises(ConfigError, match='z0:z1,y0:y1,x0:x1'):
    block_plan.parse_roi(text)


@pytest.mark.parametrize('part', [slice(3, 3), slice(4, 2), slice(0, 11), slice(10, None)])
def test_a_box_beyond_the_volume_is_refused(part):
  with pytest.raises(ConfigError, match=r'along y is not a part of the volume, 0:10'):
    plan_of((10, 10, 10), (4, 4, 4), roi=(slice(None), part, slice(None)))
