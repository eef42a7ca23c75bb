"""The square norm of parameters by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emseg_jax.losses import decay

PARAMS = {
  'encoder': {'conv': {'kernel': jnp.array([1.0, 2.0]), 'bias': jnp.array([10.0])}},
  'head': {'kernel': jnp.array([[3.0], [4.0]], jnp.bfloat16)},
}


@pytest.mark.parametrize(
  ('pattern', 'expected'),
  [
    ('kernel$', 1 + 4 + 9 + 16),
    ('^head/', 9 + 16),
    ('encoder/.*kernel', 1 + 4),
    ('bias', 100),
  ],
)
def test_l2_is_the_sum_of_squares_of_the_parameters_that_match(pattern, expected):
  value = jax.jit(lambda p: decay.l2(p, pattern=pattern))(PARAMS)
  assert value.dtype == jnp.float32
  assert value == expected


def test_the_gradient_is_twice_the_parameter_and_0_elsewhere():
  gradient = jax.grad(decay.l2)(PARAMS)
  np.testing.assert_array_equal(gradient['encoder']['conv']['kernel'], [2, 4])
  np.testing.assert_array_equal(gradient['encoder']['conv']['bias'], [0])
  np.testing.assert_array_equal(gradient['head']['kernel'], [[6], [8]])


def test_a_pattern_without_any_parameter_is_refused():
  with pytest.raises(ValueError, match=r"pattern is 'scale', .* such as 'encoder/conv/bias'"):
    decay.l2(PARAMS, pattern='scale')
  assert decay.l2({}, pattern='scale') == 0


@pytest.mark.parametrize('pattern', ['(', 3])
def test_a_pattern_that_is_no_regular_expression_is_refused(pattern):
  with pytest.raises(ValueError, match='must be a regular expression'):
    decay.l2(PARAMS, pattern=pattern)
