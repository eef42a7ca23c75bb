"""Reads a split for the data doctor: every section once, in threads, in bounded memory.

Of a split that is too large for that, sections at equal distances are read.
"""

import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from emseg_jax.check import measure
from emseg_jax.check.measure import Measured
from emseg_jax.check.survey import Finding, open_sections
from emseg_jax.config import Source
from emseg_jax.data import labels as labels_lib
from emseg_jax.data import pairs

__all__ = ['SplitRead', 'read_split', 'spread']

MOST_SECTIONS = 4096  # of a split that are read; copies are sought among all pairs of them
MOST_PIXELS = 1 << 34  # of a split that are read, but for the sections of FEWEST
FEWEST = 16
SAMPLES = 4_000_000  # pixels of a split from which percentiles are taken
MEMORY = 4 << 30  # bytes that all readers together may take, but for the first
COPIES = 6  # of a section that its reader holds at a time: itself, the label, what is made of them


@dataclasses.dataclass(frozen=True)
class SplitRead:
  """A split.

  Attributes:
    sections: all that could be opened.
    measured: the numbers of those that were read and have a readable image, in the same order.
    findings: (kind, message) of what training would refuse.
    left_out: sections that were not read, because there are too many.
  """

  sections: tuple[pairs.Section, ...]
  measured: tuple[Measured, ...]
  findings: tuple[Finding, ...]
  left_out: int


def read_split(sources: Sequence[Source], rules: labels_lib.Rules, *, threads: int) -> SplitRead:
  """Reads the sources of a split with a pool of threads."""
  opened = [open_sections(source) for source in sources]
  sections = [section for group, _ in opened for section in group]
  findings = [finding for _, group in opened for finding in group]
  chosen = [sections[i] for i in _choose([math.prod(s.shape) for s in sections])]
  measured: list[Measured] = []
  if chosen:
    work = functools.partial(measure.measure, rules=rules, samples=SAMPLES // len(chosen) + 1)
    with concurrent.futures.ThreadPoolExecutor(_count_readers(chosen, threads)) as pool:
      for numbers, refused in pool.map(work, chosen):
        findings += [('unreadable', message) for message in refused]
        measured += [numbers] if numbers else []
  return SplitRead(tuple(sections), tuple(measured), tuple(findings), len(sections) - len(chosen))


def _choose(pixels: Sequence[int]) -> list[int]:
  """Which sections are read, given their numbers of pixels."""
  if not pixels:
    return []
  affordable = max(FEWEST, MOST_PIXELS // max(1, round(sum(pixels) / len(pixels))))
  return spread(len(pixels), min(MOST_SECTIONS, affordable))


def spread(number: int, most: int) -> list[int]:
  """At most `most` of the indices 0 to number - 1, at equal distances, both ends among them."""
  return np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(int)).tolist()


def _count_readers(sections: Sequence[pairs.Section], threads: int) -> int:
  largest = max(
    math.prod(s.shape) * s.image_volume.dtype.itemsize * s.image_volume.channels for s in sections
  )
  return max(1, min(threads, MEMORY // max(1, COPIES * largest)))
