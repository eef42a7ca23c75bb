"""The report of a run: one HTML file with scores, curves, pictures and the configuration.

`write_report` is the only entry point; `Case` is one scored image that it draws.
"""

from emseg_jax.report.figures import Case
from emseg_jax.report.html import write_report

__all__ = ['Case', 'write_report']
