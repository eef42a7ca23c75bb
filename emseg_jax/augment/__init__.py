"""Random changes of training patches, made on the device as part of the jitted training step.

The host reads regions as large as `read_size`; here every example is cropped, warped and recoloured
with draws of its own, from fold_in(key, global example number). So an example looks the same, bit
for bit, whatever batch, device or process it lands on.

All geometry is one map of coordinates (`geometry.py`), sampled once (`sample.py`): linearly for the
image and targets, nearest for label and weight. What only permutes voxels copies them bit for bit;
nothing is interpolated along z unless the voxels are said to be isotropic. There is no low-pass
filter: zooming out by more than 2 aliases.
"""

from emseg_jax.augment.apply import TARGETS, augment, validate
from emseg_jax.augment.geometry import read_size

__all__ = ['TARGETS', 'augment', 'read_size', 'validate']
