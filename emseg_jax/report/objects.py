"""Objects in colours of which neighbours have different ones.

Ids are [Y, X] integer, 0 in the background; they may be any numbers.
"""

import numpy as np

from emseg_jax.colours import PALETTE

__all__ = ['colour_numbers']

NEAR = 4  # pixels; objects that a thin line of background divides are neighbours, too


def colour_numbers(ids: np.ndarray) -> np.ndarray:
  """A number of a colour for each pixel, uint8 [Y, X]: 0 in the background, else 1 to 9.

  Objects with many neighbours choose first, each the colour that is rarest so far among those that
  no neighbour has (Welsh and Powell 1967), or the rarest of all where neighbours have all nine.
  """
  values, dense = np.unique(ids, return_inverse=True)
  dense = dense.reshape(ids.shape)
  neighbours = _neighbours(dense, values)
  chosen = np.zeros(len(values), np.uint8)
  used = np.zeros(len(PALETTE) + 1, np.int64)
  for number in sorted(np.flatnonzero(values), key=lambda n: -len(neighbours[n])):
    taken = {chosen[other] for other in neighbours[number]}
    free = [c for c in range(1, len(used)) if c not in taken] or range(1, len(used))
    chosen[number] = min(free, key=lambda c: used[c])
    used[chosen[number]] += 1
  return chosen[dense]


def _neighbours(dense: np.ndarray, values: np.ndarray) -> list[set[int]]:
  """Of each object, in order of `values`, those at most NEAR pixels away along an axis."""
  pairs = []
  for distance in range(1, NEAR + 1):
    for a, b in (
      (dense[distance:], dense[:-distance]),
      (dense[:, distance:], dense[:, :-distance]),
    ):
      different = (a != b) & (values[a] != 0) & (values[b] != 0)
      pairs.append(np.unique(np.stack([a[different], b[different]], axis=1), axis=0))
  found: list[set[int]] = [set() for _ in values]
  for a, b in np.concatenate(pairs).tolist():
    found[a].add(b)
    found[b].add(a)
  return found
