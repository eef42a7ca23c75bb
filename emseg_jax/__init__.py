"""Segmentation of electron-microscopy images with JAX.

`load` gives a trained network as an object; `emseg_jax.api` has what the command line does,
`emseg_jax.main`, as functions. Importing the package loads none of its parts, so that it is quick
and starts no device.
"""

import importlib
from typing import Any

__all__ = ['Segmenter', 'evaluate', 'load', 'predict_volume', 'train']

# Name -> module and name there.
_WHERE = {
  'Segmenter': ('segmenter', 'Segmenter'),
  'evaluate': ('api', 'evaluate'),
  'load': ('segmenter', 'load'),
  'predict_volume': ('api', 'predict'),
  'train': ('api', 'train'),
}


def __getattr__(name: str) -> Any:
  """Imports what is asked for, when it is asked for (PEP 562)."""
  if name not in _WHERE:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module, inner = _WHERE[name]
  return getattr(importlib.import_module(f'{__name__}.{module}'), inner)
