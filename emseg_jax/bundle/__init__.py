"""The portable model folder: a trained network with all that is needed to use it.

    model.json           what the network is, and how it came about: `schema.Record`
    params.safetensors   its parameters and running statistics
    README.md            the model card
    sample_input.npy     what `export.inference` takes, float32 [1, *spatial, C] ...
    sample_output.npy    ... and what it gives for that, float32 [1, *spatial, K]

    params_KIND.safetensors  parameters in fewer bits, if wanted: `reduced`

Forms that run without this package lie beside these. Nothing in the folder is ever unpickled or
run by reading it.
"""

from emseg_jax.bundle.read import Bundle, is_bundle, read_bundle, read_config
from emseg_jax.bundle.schema import SCHEMA_VERSION, Record
from emseg_jax.bundle.write import Form, write_bundle

__all__ = [
  'SCHEMA_VERSION',
  'Bundle',
  'Form',
  'Record',
  'is_bundle',
  'read_bundle',
  'read_config',
  'write_bundle',
]
