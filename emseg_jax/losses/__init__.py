"""Losses on the outputs of a network, voxel weights, and their weighted sum.

Every loss returns a scalar in float32. `common` says what weights and ignored voxels mean; `terms`
lists the losses and combines them as the configuration names them.
"""

from emseg_jax.losses.common import as_class_logits
from emseg_jax.losses.tasks import label_options
from emseg_jax.losses.terms import (
  LOSSES,
  host_targets,
  needs_class_counts,
  total_loss,
  validate_terms,
)
from emseg_jax.losses.weighting import WEIGHTINGS

__all__ = [
  'LOSSES',
  'WEIGHTINGS',
  'as_class_logits',
  'host_targets',
  'label_options',
  'needs_class_counts',
  'total_loss',
  'validate_terms',
]
