"""Exchanges between devices, in programs where they are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from emseg_jax.collectives import traffic


def _program(function, *specs, result=None):
  """Text of a function of 8 x 16 float32 arrays on four devices."""
  mesh = jax.make_mesh((4,), ('x',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
  shardings = [NamedSharding(mesh, PartitionSpec(*spec)) for spec in specs]
  out = NamedSharding(mesh, PartitionSpec(*(result or ())))
  jitted = jax.jit(function, in_shardings=shardings, out_shardings=out)
  return jitted.lower(*[jnp.zeros((8, 16))] * len(specs)).compile().as_text()


def test_gathering_counts_what_each_device_ends_up_with():
  found = traffic(_program(lambda x: x, ('x',)))
  assert found == {'all-gather': (1, 8 * 16 * 4 / 1e6)}


def test_a_sum_over_devices_is_reduced():
  found = traffic(_program(lambda x: jnp.sum(x, 0), ('x',)))
  assert found == {'all-reduce': (1, 16 * 4 / 1e6)}


def test_a_program_without_exchange_has_no_traffic():
  assert traffic(_program(lambda x: 2 * x, ('x',), result=('x',))) == {}


@pytest.mark.parametrize(
  ('line', 'expected'),
  [
    (
      '%a = (f32[2,3]{1,0}, bf16[4]{0}) all-reduce(%b, %c), to_apply=%add',
      {'all-reduce': (1, 32 / 1e6)},
    ),
    (
      'ROOT %p.1 = u8[1,5]{1,0} collective-permute-start(%x), channel_id=1',
      {'collective-permute': (1, 5 / 1e6)},
    ),
    ('%d = f32[8]{0} all-gather-done(%s)', {}),
    ('%f = f32[8]{0} fusion(%all-gather.3), kind=kLoop', {}),
    ('%g = pred[] all-reduce(%x)', {'all-reduce': (1, 1 / 1e6)}),
  ],
)
def test_instructions_are_read_from_their_text(line, expected):
  assert traffic(f'HloModule m\n  {line}\n') == expected
