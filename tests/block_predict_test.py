"""Blocks against the whole image: the same tiles, the same blending, whatever the blocks."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emseg_jax import block_plan, block_predict, tiling
from emseg_jax.errors import Interrupted

SHAPE = (7, 30, 33)
IMAGE = np.random.default_rng(0).normal(size=(*SHAPE, 1)).astype(np.float32)


def network(tiles):
  """Two probabilities that depend on where in its tile a voxel lies, as those of no real one do."""
  ramp = jnp.arange(tiles[0].size, dtype=jnp.float32).reshape(tiles.shape[1:]) / tiles[0].size
  p = 1 / (1 + jnp.exp(-(jnp.asarray(tiles) + ramp[None])))
  return jnp.concatenate([1 - p, p], axis=-1)


def read_of(image):
  def read(origin, size):
    shape = image.shape[:3]
    inside = tuple(slice(o, min(o + s, n)) for o, s, n in zip(origin, size, shape, strict=True))
    assert image[inside].shape[:3] == tuple(size)  # nothing beyond the volume is asked for
    return image[inside]

  return read


class Output:
  """What is written, and how often."""

  def __init__(self, shape):
    self.labels = np.zeros(shape, np.uint8)
    self.maps = np.zeros((*shape, 2), np.uint16)
    self.writes = np.zeros(shape, int)

  def write(self, start, labels, maps):
    place = tuple(slice(a, a + n) for a, n in zip(start, labels.shape, strict=True))
    self.labels[place] = labels
    self.writes[place] += 1
    if maps is not None:
      self.maps[place] = maps


def work_of(output, *, flat=False, image=IMAGE, apply=network, **options):
  usual = {
    'read': read_of(image),
    'apply': apply,
    'decide': lambda p: jnp.argmax(p, axis=-1).astype(jnp.uint8),
    'write': output.write,
    'mask': None,
    'flat': flat,
    'channels': 1,
    'num_maps': 2,
    'batch_size': 3,
    'scaled': 'uint16',
  }
  return block_predict.Work(**{**usual, **options})


def plan_of(tile, block, shape=SHAPE, overlap=0.3, **options):
  tile = (*(1,) * (3 - len(tile)), *tile)
  layout = tiling.lay_out(shape, tile, overlap=overlap, blend='gaussian')
  return block_plan.make_plan(layout, voxel_bytes=1, memory=1, chunk=4, block=block, **options)


def whole(tile, *, flat, image=IMAGE, overlap=0.3):
  """Probabilities of the whole image at once."""
  shape = image.shape[1 if flat else 0 : 3]
  layout = tiling.lay_out(shape, tile, overlap=overlap, blend='gaussian')
  options = {'batch_size': 4, 'num_classes': 2}
  if not flat:
    return tiling.predict_tiled(network, image, layout, **options)
  return np.stack([tiling.predict_tiled(network, z, layout, **options) for z in image])


def predict(plan, work, numbers=None, **options):
  done = []
  numbers = range(len(plan)) if numbers is None else numbers
  count = block_predict.predict_blocks(plan, work, numbers=numbers, on_block=done.append, **options)
  return count, done


def assert_equal(output, expected):
  """Maps to one step of rounding, labels wherever the two are not as good as even."""
  np.testing.assert_allclose(output.maps / 65535, expected, atol=1.5 / 65535)
  clear = np.abs(expected[..., 1] - 0.5) > 1e-4
  np.testing.assert_array_equal(output.labels[clear], np.argmax(expected, axis=-1)[clear])


@pytest.mark.parametrize(
  ('tile', 'block'),
  [
    ((4, 16, 16), (4, 8, 12)),
    ((4, 16, 16), (8, 32, 36)),
    ((16, 16, 16), (4, 4, 4)),  # a tile higher than the volume
    ((16, 16), (4, 8, 12)),
    ((64, 20), (1, 8, 33)),
  ],
)
def test_blocks_give_what_the_whole_image_gives(tile, block):
  flat = len(tile) == 2
  output, plan = Output(SHAPE), plan_of(tile, block)
  count, done = predict(plan, work_of(output, flat=flat))
  assert count == len(plan) == len(done)
  assert (output.writes == 1).all()
  assert_equal(output, whole(tile, flat=flat))


def _any_blocks(data):
  """Tiles, overlaps, blocks and boxes of any kind."""
  flat = data.draw(st.booleans())
  sides = st.integers(2, 40)
  tile = data.draw(st.tuples(*[sides] * (2 if flat else 3)))
  block = data.draw(st.tuples(st.integers(1, 8), st.integers(4, 36), st.integers(4, 40)))
  overlap = data.draw(st.sampled_from([0.0, 0.1, 0.25, 0.5]))
  roi = []
  for size in SHAPE:
    start = data.draw(st.integers(0, size - 1))
    roi.append(slice(start, data.draw(st.integers(start + 1, size))))
  roi = tuple(roi)
  plan = plan_of(tile, block, overlap=overlap, roi=roi)
  output = Output(plan.shape)
  predict(plan, work_of(output, flat=flat))
  assert (output.writes == 1).all()
  assert_equal(output, whole(tile, flat=flat, overlap=overlap)[roi])


@settings(max_examples=4, deadline=None)
@given(st.data())
def test_whatever_the_blocks_are_they_give_what_the_whole_image_gives(data):
  _any_blocks(data)


@pytest.mark.long
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_many_blocks_are_they_give_what_the_whole_image_gives(data):
  _any_blocks(data)


def test_a_box_gives_that_part_of_the_whole():
  roi = (slice(2, 6), slice(5, 30), slice(0, 17))
  plan = plan_of((4, 16, 16), (4, 8, 12), roi=roi)
  output = Output(plan.shape)
  predict(plan, work_of(output))
  assert_equal(output, whole((4, 16, 16), flat=False)[roi])


def test_nothing_is_computed_where_the_mask_has_nothing():
  plan = plan_of((4, 16, 16), (4, 8, 12))
  mask = np.zeros(SHAPE, bool)
  mask[1:3, 2:20, 3:9] = True
  touched = sum(
    mask[tuple(slice(a, b) for a, b in zip(block.start, block.stop, strict=True))].any()
    for block in plan.blocks()
  )

  def read_mask(start, size):
    return mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]

  output = Output(SHAPE)
  count, done = predict(plan, work_of(output, mask=read_mask))
  assert count == touched < len(plan) == len(done)
  expected = whole((4, 16, 16), flat=False)
  np.testing.assert_allclose(output.maps[mask] / 65535, expected[mask], atol=1.5 / 65535)
  assert not output.maps[~mask].any()
  assert not output.labels[~mask].any()


def test_what_was_interrupted_is_gone_on_with():
  plan, output = plan_of((4, 16, 16), (4, 8, 12)), Output(SHAPE)
  asked = 0

  def stop():
    nonlocal asked
    asked += 1
    return asked > 9

  done = []
  with pytest.raises(Interrupted, match='start the same command again'):
    block_predict.predict_blocks(
      plan, work_of(output), numbers=range(len(plan)), on_block=done.append, should_stop=stop
    )
  assert 0 < len(done) < len(plan)
  rest = set(range(len(plan))) - set(done)
  _, more = predict(plan, work_of(output), rest)
  assert set(more) == rest
  assert (output.writes == 1).all()
  assert_equal(output, whole((4, 16, 16), flat=False))


def test_a_block_counts_only_when_it_is_written():
  plan, done = plan_of((4, 16, 16), (4, 8, 12)), []

  def fail(start, labels, maps):
    if len(done) == 2:
      raise OSError('disk full')

  with pytest.raises(OSError, match='disk full'):
    block_predict.predict_blocks(
      plan, work_of(Output(SHAPE), write=fail), numbers=range(len(plan)), on_block=done.append
    )
  assert done == [0, 1]


def test_all_batches_of_tiles_have_one_shape():
  shapes = set()

  def spy(tiles):
    shapes.add(tiles.shape)
    return network(tiles)

  predict(plan_of((4, 16, 16), (4, 8, 12)), work_of(Output(SHAPE), apply=spy))
  assert shapes == {(3, 4, 16, 16, 1)}
