"""`model.stablehlo`: a network as one file that JAX runs without this package.

The file holds the function of `inference` with all parameters, in float32, for CPUs, NVIDIA GPUs
and TPUs. The number of images is free, and so are their sizes wherever the network allows it. JAX
promises to read such files for six months: the parameters and model.json are the archive, this is
for use.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from emseg_jax.bundle import Bundle
from emseg_jax.export import inference

__all__ = ['FILE', 'PLATFORMS', 'export_function', 'write']

LOGGER = logging.getLogger(__name__)

FILE = 'model.stablehlo'
PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(folder: Path, bundle: Bundle) -> dict[str, Any]:
  """Writes the form 'stablehlo' into the folder of a bundle; see `bundle.Form`."""
  infer, variables = inference.of_bundle(bundle), bundle.variables
  exported, sizes = export_function(
    lambda image: infer(variables, image),
    divisor=bundle.record.network.divisor,
    channels=bundle.record.input.channels,
    fixed=bundle.sample[0].shape[1:-1],
  )
  (folder / FILE).write_bytes(exported.serialize())
  return {
    'file': FILE,
    'input': [str(size) for size in exported.in_avals[0].shape],
    'output': [str(size) for size in exported.out_avals[0].shape],
    'sizes': sizes,
    'platforms': list(exported.platforms),
    'calling_convention': exported.calling_convention_version,
    'jax': jax.__version__,
  }


def export_function(
  infer: Callable[[jax.Array], jax.Array],
  *,
  divisor: Sequence[int],
  channels: int,
  fixed: Sequence[int],
) -> tuple[jax.export.Exported, str]:
  """Exports with sizes as free as can be.

  Args:
    infer: image float32 [B, *spatial, channels] -> probabilities.
    divisor: of the network, per spatial axis.
    channels: of the image.
    fixed: spatial size to export for where no free size is possible.

  Returns:
    The function, and a sentence on the sizes it takes.
  """
  *ladder, last = _shapes(divisor, channels, fixed)
  for spec, sentence in ladder:
    try:
      return _export(infer, spec), sentence
    except Exception as error:  # whatever tracing runs into; the last rung raises it
      reason = ' '.join(str(error).split())[:200]
      LOGGER.info('No StableHLO of shape [%s]: %s', spec, reason)
  return _export(infer, last[0]), last[1]


def _shapes(
  divisor: Sequence[int], channels: int, fixed: Sequence[int]
) -> Iterator[tuple[str, str]]:
  """(symbolic shape, what that means), the freest first."""
  names = 'zyx'[-len(divisor) :]
  yield f'b, {", ".join(names)}, {channels}', 'Any number of images of any size.'
  for factor in (1, 2):  # networks that pool once more than their divisor says need even cells
    steps = [d * factor for d in divisor]
    spatial = ', '.join(f'{step}*{name}' for step, name in zip(steps, names, strict=True))
    multiples = ', '.join(f'{n} a multiple of {s}' for s, n in zip(steps, names, strict=True))
    yield f'b, {spatial}, {channels}', f'Any number of images; {multiples}.'
  size = ' x '.join(map(str, fixed))
  sentence = f'Any number of images of {size} ({", ".join(names)}) voxels.'
  yield f'b, {", ".join(map(str, fixed))}, {channels}', sentence


def _export(infer: Callable[[jax.Array], jax.Array], spec: str) -> jax.export.Exported:
  image = jax.ShapeDtypeStruct(jax.export.symbolic_shape(spec), jnp.float32)
  return jax.export.export(jax.jit(infer), platforms=PLATFORMS)(image)
