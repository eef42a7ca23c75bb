"""What a compiled program sends between devices, read from its text."""

import math
import re
from typing import NamedTuple

__all__ = ['KINDS', 'Traffic', 'traffic']

KINDS = ('all-gather', 'all-to-all', 'reduce-scatter', 'all-reduce', 'collective-permute')

# An instruction: 'name = f32[2,8]{1,0} all-gather(...)', or a tuple of results in parentheses; of
# an asynchronous pair only the start.
_INSTRUCTION = re.compile(rf'= (.*?) ({"|".join(KINDS)})(?:-start)?\(')
_ARRAY = re.compile(r'\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]')
_BITS = re.compile(r'\d+')


class Traffic(NamedTuple):
  """Attributes:
  count: instructions.
  megabytes: of all their results on one device, in 10^6 bytes.
  """

  count: int
  megabytes: float


def traffic(program: str) -> dict[str, Traffic]:
  """Sums up each kind of exchange, those that do not occur left out.

  Args:
    program: `compiled.as_text()`. An exchange in a loop counts once.
  """
  sizes: dict[str, list[int]] = {}
  for result, kind in _INSTRUCTION.findall(program):
    sizes.setdefault(kind, []).append(sum(_bytes(*array) for array in _ARRAY.findall(result)))
  return {
    kind: Traffic(len(sizes[kind]), sum(sizes[kind]) / 1e6) for kind in KINDS if kind in sizes
  }


def _bytes(dtype: str, shape: str) -> int:
  bits = 8 if dtype == 'pred' else int(_BITS.search(dtype).group())
  return math.prod(int(n) for n in shape.split(',') if n) * bits // 8
