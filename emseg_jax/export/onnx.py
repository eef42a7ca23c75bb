"""`model.onnx`: a network for ilastik, deepImageJ and whatever else runs ONNX.

It computes the function of `inference`, in float32, on images of one size; their number is free.
Axes are b c (z) y x on the way in and out. The file is run once with onnxruntime on the bundle's
sample before it counts as written.
"""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emseg_jax.bundle import Bundle
from emseg_jax.errors import ConfigError, OutputError
from emseg_jax.export import inference, onnx_trace
from emseg_jax.export.onnx_graph import OPSET, Graph, channels_first

__all__ = ['FILE', 'INPUT', 'OPSET', 'OUTPUT', 'TOLERANCE', 'convert', 'run', 'write']

FILE = 'model.onnx'
INPUT, OUTPUT = 'image', 'probabilities'
TOLERANCE = 1e-3  # of probabilities; rounding alone stays below 1e-4 unless logits are in the 100s


def write(folder: Path, bundle: Bundle) -> dict[str, Any]:
  """Writes the form 'onnx' into the folder of a bundle; see `bundle.Form`.

  Raises:
    ConfigError: the extra is not installed.
    OutputError: an operation of the network has no ONNX counterpart, or onnxruntime computes
      something else than JAX does.
  """
  infer, (image, expected) = inference.of_bundle(bundle), bundle.sample
  record = bundle.record
  try:
    model = convert(
      lambda x: infer(bundle.variables, x),
      image.shape[1:],
      metadata={
        'title': record.title,
        'classes': json.dumps(record.classes),
        'normalisation': record.input.normalisation.model_dump_json(),
      },
    )
  except NotImplementedError as error:
    raise OutputError(
      f'model.name {record.network.name} cannot be written as ONNX: it needs {error}'
    ) from error
  content = model.SerializeToString()
  difference = float(np.abs(run(content, image) - expected).max())
  if not difference <= TOLERANCE:
    raise OutputError(
      f'{FILE}: onnxruntime gives probabilities that are {difference:.2g} from those of JAX, '
      f'allowed are {TOLERANCE:g}'
    )
  (folder / FILE).write_bytes(content)
  size = ' x '.join(map(str, image.shape[1:-1]))
  axes = _first(record.input.axes)
  return {
    'file': FILE,
    'axes': axes,
    'input': ['b', *map(str, _first(image.shape)[1:])],
    'output': ['b', *map(str, _first(expected.shape)[1:])],
    'sizes': f'Any number of images of {size} ({", ".join(axes[2:])}) voxels.',
    'opset': OPSET,
    'largest_difference': difference,
  }


def convert(
  function: Callable[[jax.Array], jax.Array],
  shape: tuple[int, ...],
  *,
  metadata: dict[str, str] | None = None,
) -> Any:
  """Makes an ONNX model of a function of images.

  Args:
    function: float32 [B, *spatial, C] -> [B, *spatial, K].
    shape: (*spatial, C).
    metadata: free text by name, kept in the model.

  Returns:
    An `onnx.ModelProto`, checked: [b, C, *spatial] -> [b, K, *spatial].

  Raises:
    ConfigError: the extra is not installed.
    NotImplementedError: an operation has no ONNX counterpart.
  """
  _library('onnx')
  from onnx import TensorProto, checker, helper

  graph, (batch,) = Graph(), jax.export.symbolic_shape('b')
  image = graph.input(INPUT, (batch, *shape), channels_first(len(shape) + 1))
  (result,) = onnx_trace.convert(graph, function, [image])
  stored = graph.stored(result, channels_first(len(result.shape)))
  last = helper.make_node('Identity', [stored], [OUTPUT], name=OUTPUT)
  graph.nodes.append(last)
  infos = [
    helper.make_tensor_value_info(name, TensorProto.FLOAT, ['b', *_first(value.shape)[1:]])
    for name, value in ((INPUT, image), (OUTPUT, result))
  ]
  model = graph.model(graph.graph_proto('emseg_jax', infos[:1], infos[1:]), metadata or {})
  checker.check_model(model, full_check=True)
  return model


def run(model: bytes, image: np.ndarray) -> np.ndarray:
  """What onnxruntime computes on the CPU: [B, *spatial, C] -> [B, *spatial, K].

  Raises:
    ConfigError: the extra is not installed.
  """
  runtime = _library('onnxruntime')
  session = runtime.InferenceSession(model, providers=['CPUExecutionProvider'])
  (result,) = session.run(None, {INPUT: np.ascontiguousarray(np.moveaxis(image, -1, 1))})
  return np.moveaxis(result, 1, -1)


def _first(axes: Any) -> Any:
  """Channels last -> channels first, of a shape or of the axes' names."""
  moved = [axes[axis] for axis in channels_first(len(axes))]
  return ''.join(moved) if isinstance(axes, str) else moved


def _library(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise ConfigError(
      f'ONNX export needs {name}, which is not installed: pip install ".[onnx]"'
    ) from error
