"""What statistics are taken from: everything, or of data too large for that a fair share.

The share are windows of sections, evenly spread along z and, by the additive recurrence of the
plastic number (Roberts 2018), over y and x. It is always the same one.
"""

from collections.abc import Iterator, Sequence

__all__ = ['MOST_PIXELS', 'windows']

Pair = tuple[int, int]

MOST_PIXELS = 2**30  # of images that are read as a whole
COUNT, SIDE = 256, 512  # of the windows otherwise
PLASTIC = 1.324717957244746  # the real root of x³ = x + 1


def windows(shapes: Sequence[Pair], *, most: int = MOST_PIXELS) -> Iterator[tuple[int, Pair, Pair]]:
  """Yields (section, (y, x), (height, width)).

  Args:
    shapes: (y, x) of all sections.
    most: with more pixels than that in all, windows are taken instead of whole sections.
  """
  if sum(y * x for y, x in shapes) <= most:
    for index, shape in enumerate(shapes):
      yield index, (0, 0), shape
    return
  for number in range(COUNT):
    index = number * len(shapes) // COUNT
    size = [min(n, SIDE) for n in shapes[index]]
    place = [(0.5 + (number + 1) / PLASTIC**k) % 1 for k in (1, 2)]
    start = [int(p * (n - s + 1)) for p, n, s in zip(place, shapes[index], size, strict=True)]
    yield index, (start[0], start[1]), (size[0], size[1])
