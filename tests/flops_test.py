"""Operations counted against products whose cost is known."""

import jax
import jax.numpy as jnp
import pytest

from emseg_jax import flops

A, B = jnp.zeros((8, 16)), jnp.zeros((16, 16))
PRODUCT = 2 * 8 * 16 * 16  # a multiplication and an addition for each of 8 x 16 x 16


def _repeated(a, b, *, length, unroll=1):
  return jax.lax.scan(lambda c, _: (c @ b, None), a, None, length=length, unroll=unroll)[0]


def _near(expected):
  return pytest.approx(expected, rel=0.01)  # XLA counts a few for the loop itself


def test_a_product_takes_two_operations_per_multiplication():
  assert flops.count(lambda a, b: a @ b, A, B) == PRODUCT


@pytest.mark.parametrize(('length', 'unroll'), [(10, 1), (10, 5), (10, 4), (3, 8), (1, 1)])
def test_a_scan_takes_its_length_times_its_body(length, unroll):
  count = flops.count(lambda a, b: _repeated(a, b, length=length, unroll=unroll), A, B)
  assert count == _near(length * PRODUCT)


def test_scans_within_scans_and_jitted_functions_are_multiplied():
  @jax.jit
  def nested(a, b):
    def body(c, _):
      return _repeated(c, b, length=10, unroll=3), None

    return jax.lax.scan(body, a, None, length=7, unroll=2)[0] @ b

  assert flops.count(nested, A, B) == _near(71 * PRODUCT)


def test_shapes_are_enough():
  struct = jax.ShapeDtypeStruct
  count = flops.count(jnp.matmul, struct((8, 16), jnp.float32), struct((16, 16), jnp.float32))
  assert count == PRODUCT
