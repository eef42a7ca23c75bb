"""Scores of segmentations, nearly all of them counts that add up over images, divided once.

`confusion` holds the scores that are always computed; `collect` feeds the others, which
eval.metrics chooses, and names them.
"""

from emseg_jax.metrics.bootstrap import intervals
from emseg_jax.metrics.collect import Collector, flat, known_scores, lower_is_better
from emseg_jax.metrics.confusion import (
  best_threshold,
  confusion_matrix,
  format_table,
  majority,
  scores,
)

__all__ = [
  'Collector',
  'best_threshold',
  'confusion_matrix',
  'flat',
  'format_table',
  'intervals',
  'known_scores',
  'lower_is_better',
  'majority',
  'scores',
]
