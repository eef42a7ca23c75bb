"""From predicted labels or probabilities to clean masks and instances, block by block.

Everything here gives what the same operation gives on the whole volume, whatever the blocks are.
"""

from emseg_jax.postprocess.output import Output
from emseg_jax.postprocess.run import Result, postprocess

__all__ = ['Output', 'Result', 'postprocess']
