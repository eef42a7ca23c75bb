"""From predicted labels or probabilities to clean masks and instances, block by block.

Everything here gives what the same operation gives on the whole volume, whatever the blocks are.
"""

from emseg_jax.postprocess.run import Result, check_output, postprocess

__all__ = ['Result', 'check_output', 'postprocess']
