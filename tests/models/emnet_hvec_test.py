"""EM-Net with hybrid convolutions: parameter counts, outputs, blocks of a volume."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_support import KEYS, apply, count, normal, shapes, variables

from emseg_jax.models import layers, resample
from emseg_jax.models.emnet_hvec import EmNetHvec

SHAPE = (1, 4, 8, 8, 1)
TINY = functools.partial(EmNetHvec, 2, features=8)


# Counted in the authors' code; the paper says 3.2 M.
@pytest.mark.parametrize(('centreline', 'expected'), [(True, 3_173_365), (False, 2_905_956)])
def test_the_number_of_parameters_is_that_of_the_authors(centreline, expected):
  model = EmNetHvec(2, centreline=centreline)
  assert count(model, SHAPE) == expected
  params = shapes(model, SHAPE)['params']
  assert params['negative_slope'].shape == params['stem']['negative_slope'].shape == ()


def test_running_statistics_are_a_mean_and_a_variance_per_normalised_channel():
  model = EmNetHvec(2, norm_statistics='volume')
  # A module of f channels normalises 4·f of them: those of the groups and of the sum, twice; the
  # stem 3·64. In the order of the layers, in units of 32 channels:
  modules = 32 * sum((4, 8, 16, 8, 4, 2, 4, 2, 1, 1))
  assert count(model, SHAPE, 'batch_stats') == 2 * (3 * 64 + 4 * modules)
  assert count(model, SHAPE) == 3_173_365


def test_the_width_is_rounded_to_a_multiple_of_eight_channels():
  # 64·0.3 = 19.2
  assert count(EmNetHvec(2, width=0.3), SHAPE) == count(EmNetHvec(2, features=16), SHAPE)


@pytest.mark.parametrize(('centreline', 'train'), [(True, False), (False, True)])
def test_the_authors_patch_gives_classes_and_centreline_of_its_size(centreline, train):
  # 136 / 8 = 17: the bridge pools an odd size.
  model, image = EmNetHvec(2, centreline=centreline), jnp.zeros((1, 40, 136, 136, 1))
  out = jax.eval_shape(lambda: model.init_with_output(KEYS, image, train=train)[0])
  expected = {'logits': (1, 40, 136, 136, 2)}
  if centreline:
    expected['centreline'] = (1, 40, 136, 136, 1)
  assert {name: leaf.shape for name, leaf in out.items()} == expected
  assert {leaf.dtype for leaf in out.values()} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize('upsample', ['half_pixel', 'align_corners'])
def test_projecting_before_resizing_is_resizing_before_projecting(upsample):
  model, x, size = TINY(upsample=upsample), jnp.asarray(normal(1, 2, 3, 4, 6)), (2, 6, 8)
  conv = layers.Conv(3, 1, kernel_init=jax.nn.initializers.normal())
  weights = conv.init(KEYS['params'], x)
  weights = {'params': weights['params'] | {'bias': normal(3)}}
  first = model._resize(conv.apply(weights, x), size)
  np.testing.assert_allclose(first, conv.apply(weights, model._resize(x, size)), atol=1e-5)
  shared = (
    resample.upsample_linear(x, (1, 2, 2))
    if upsample == 'half_pixel'
    else resample.resize_align_corners(x, size)
  )
  np.testing.assert_array_equal(model._resize(x, size), shared)


def test_only_running_statistics_and_half_pixels_make_the_receptive_field_finite():
  assert EmNetHvec(2).receptive_field is None
  assert EmNetHvec(2).divisor == (4, 8, 8)
  volume = functools.partial(EmNetHvec, 2, norm_statistics='volume')
  assert volume(upsample='align_corners').receptive_field is None
  assert volume().divisor == (4, 16, 16)


MODEL = TINY(norm_statistics='volume')


def _outputs(image, **replaced):
  """Outputs, with all values of the named modules replaced."""
  values = dict(variables(MODEL, image.shape))
  for name, value in replaced.items():
    module = jax.tree.map(functools.partial(np.full_like, fill_value=value), values['params'][name])
    values['params'] = values['params'] | {name: module}
  return jax.tree.map(np.asarray, apply(MODEL, values, image, False)[0])


def _with_planes_of_nan(size, axis, places):
  """Zeros [len(places), *size, 1]; every image has one plane of NaN, at its place in the middle.

  No pooling and no weight hides what depends on a NaN.
  """
  image = np.zeros((len(places), *size, 1), np.float32)
  middle = size[axis] // 2 // MODEL.divisor[axis] * MODEL.divisor[axis]
  for i, place in enumerate(places):
    image[(i, *(slice(None),) * axis, middle + place)] = np.nan
  return image


def _largest_span(output, axis, places):
  """Largest span of places along `axis` that one voxel depends on."""
  cell = MODEL.divisor[axis]
  others = tuple(a for a in range(1, 5) if a != axis + 1)
  reached = np.isnan(output).any(others)  # [place of NaN, place of output]
  assert not reached[:, [0, -1]].any()  # the image is large enough
  spans = []
  for phase in range(cell):
    i, output_cell = np.nonzero(reached[:, phase::cell])
    seen = np.asarray(places)[i] - cell * output_cell  # as if all these outputs were in one cell
    spans.append(seen.max() - seen.min() + 1)
  return max(spans)


# Without the centreline, the classes come from a decoder like that of the centreline.
BRANCHES = {'logits': MODEL, 'centreline': MODEL.clone(centreline=False)}


def test_the_receptive_field_in_z_is_the_largest_span_that_nan_comes_from():
  places = range(4)
  outputs = _outputs(_with_planes_of_nan((168, 16, 16), 0, places))
  for name, model in BRANCHES.items():
    assert _largest_span(outputs[name], 0, places) == model.receptive_field[0]


# Spans along y begin at 3 and end at 4, modulo the 8 voxels of a bridge voxel; their neighbours
# show that they go no further.
PLACES = (2, 3, 4, 5, 10, 11, 12, 13)


@functools.cache
def _outputs_along_y():
  """Of images with planes of NaN, and of three cuts of one, from rows 0, 16 and 8."""
  long = normal(4, 448, 16, 1)
  cuts = [long[:, begin : begin + 432] for begin in (0, 16, 8)]
  return _outputs(np.stack([*_with_planes_of_nan((4, 432, 16), 1, PLACES), *cuts]))


def test_the_receptive_field_in_y_is_the_largest_span_that_nan_comes_from():
  for name, model in BRANCHES.items():
    output = _outputs_along_y()[name][: len(PLACES)]
    assert _largest_span(output, 1, PLACES) == model.receptive_field[1]


def test_with_running_statistics_a_block_equals_the_volume_where_cells_align():
  whole, aligned, moved = _outputs_along_y()['logits'][len(PLACES) :]
  scale = np.abs(whole).max()
  # 197 voxels from the middle no end of an image is in reach.
  np.testing.assert_allclose(whole[:, 216:224] / scale, aligned[:, 200:208] / scale, atol=1e-5)
  # Half a cell is no multiple of `divisor`: the bridge pools other pairs of voxels.
  assert np.abs(whole[:, 216:224] - moved[:, 208:216]).max() > 1e-3 * scale


def test_the_classes_see_the_centreline_but_not_the_other_way_round():
  image = normal(4, 168, 16, 16, 1)  # as above, so that nothing is compiled
  outputs = _outputs(image, line1=np.nan)
  assert all(np.isnan(output).all() for output in outputs.values())
  outputs = _outputs(image, seg3=np.nan, seg2=np.nan, seg1=np.nan, fuse=np.nan)
  assert np.isnan(outputs['logits']).all()
  assert np.isfinite(outputs['centreline']).all()
