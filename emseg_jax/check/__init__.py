"""The data doctor: says before training what would go wrong in the data."""

from emseg_jax.check.doctor import MOST_CLASSES, Problem, Report, check, format_report
from emseg_jax.check.output import write

__all__ = ['MOST_CLASSES', 'Problem', 'Report', 'check', 'format_report', 'write']
