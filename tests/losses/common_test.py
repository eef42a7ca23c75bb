"""What losses share, against numbers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emseg_jax.losses import common

LABELS = jnp.array([[1, 0, 7]])
WEIGHTS = jnp.array([[2.0, 0.5, 0.0]])


def test_one_output_is_made_two_classes_whose_softmax_is_the_sigmoid():
  z = jnp.linspace(-20, 20, 9)[:, None]
  p = jax.nn.softmax(common.as_class_logits(z), axis=-1)
  np.testing.assert_allclose(p[..., 1], 1 / (1 + np.exp(-z[..., 0])), rtol=1e-5)
  three = jnp.zeros((4, 3))
  assert common.as_class_logits(three) is three


def test_prepare_gives_float32_zeros_under_weight_zero_and_one_hot_labels():
  logits = jnp.array([[[1.0], [3.0], [jnp.nan]]], jnp.bfloat16)
  z, g, w = common.prepare(logits, LABELS, WEIGHTS)
  assert z.dtype == g.dtype == w.dtype == jnp.float32
  np.testing.assert_array_equal(z, [[[0, 1], [0, 3], [0, 0]]])
  np.testing.assert_array_equal(g, [[[0, 1], [1, 0], [0, 0]]])
  np.testing.assert_array_equal(w, [[[2], [0.5], [0]]])


def test_prepare_keeps_a_voxel_of_which_any_class_has_a_weight():
  weights = jnp.array([[[0.0, 1.0], [0.0, 0.0], [-1.0, jnp.nan]]])
  z, _, w = common.prepare(jnp.ones((1, 3, 2)), LABELS, weights)
  np.testing.assert_array_equal(z, [[[1, 1], [0, 0], [0, 0]]])
  np.testing.assert_array_equal(w, [[[0, 1], [0, 0], [0, 0]]])  # no weight but a positive one


@pytest.mark.parametrize(
  ('labels', 'weights'), [((1, 2), (1, 3)), ((1, 3), (1, 2)), ((1, 3), (1, 3, 3))]
)
def test_prepare_refuses_shapes_that_do_not_belong_together(labels, weights):
  with pytest.raises(ValueError, match='must have one shape'):
    common.prepare(jnp.ones((1, 3, 2)), jnp.ones(labels, int), jnp.ones(weights))


def test_label_weights_are_those_of_the_own_class():
  g = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
  np.testing.assert_array_equal(
    common.label_weights(g, jnp.array([[2.0], [3.0], [4.0]])), [2, 3, 0]
  )
  two = jnp.array([[2.0, 5.0], [3.0, 6.0], [4.0, 7.0]])
  np.testing.assert_array_equal(common.label_weights(g, two), [5, 3, 0])


@pytest.mark.parametrize(
  ('exponent', 'value', 'slope'), [(0.5, 2, 0.25), (1, 4, 1), (2, 16, 8), (0, 1, 0)]
)
def test_power_has_no_gradient_at_zero(exponent, value, slope):
  function = jax.value_and_grad(lambda x: common.power(x, exponent))
  assert function(4.0) == (value, slope)  # of x^exponent at 4, by hand
  assert function(0.0) == (0, 0)
  assert function(-1e-9) == (0, 0)  # rounding below 0


def test_sums_run_over_an_image_or_the_batch():
  w = jnp.ones((2, 3, 4, 1))
  np.testing.assert_array_equal(jnp.sum(w, axis=common.sum_axes(w, over='image')), [[12], [12]])
  np.testing.assert_array_equal(jnp.sum(w, axis=common.sum_axes(w, over='batch')), [24])
  with pytest.raises(ValueError, match="over is 'voxel', must be image or batch"):
    common.sum_axes(w, over='voxel')


def test_the_mean_over_images_leaves_out_those_without_weight():
  weights = jnp.array([[1.0, 0.0], [0.0, 0.0], [2.0, 2.0]])
  values = jnp.array([1.0, jnp.nan, 4.0])
  np.testing.assert_array_equal(common.mean_over_images(values, weights), 2.5)
  assert common.mean_over_images(values, 0 * weights) == 0
  assert common.mean_over_images(jnp.array(3.0), weights) == 3
  assert common.mean_over_images(jnp.array(3.0), 0 * weights) == 0
