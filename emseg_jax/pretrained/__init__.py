"""Starts the encoder of a network from weights that another library trained, or all of it from a
bundle.

Of other libraries, read are safetensors files with the names of torchvision or timm (ResNet-50,
VGG-16 and -19, ViT-B) or mmcv (ResNet-50 V1c), and the HDF5 files of Keras (VGG-16 and -19). Every
tensor of the file and every array of the network ends up in a table that says what became of it;
nothing is left out silently. Nothing is downloaded.

The weights expect the intensities they were trained on: those of torchvision and mmcv the
normalisation 'imagenet', Keras' VGG 'caffe'; most of timm's ViT-B have 0.5 as mean and standard
deviation, which 'imagenet' is near to.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emseg_jax.errors import ConfigError, DataError
from emseg_jax.pretrained import files, matching, names, own
from emseg_jax.pretrained.matching import Row, format_table

__all__ = ['Row', 'format_table', 'load_pretrained', 'to_source', 'trained_with']

Variables = Mapping[str, Any]

# The networks with an encoder for which there are pretrained weights.
NETWORKS = ('deeplabv3plus', 'fcn8s', 'pmcanet', 'segmenter', 'segnet', 'segvit', 'vgg_unet')


def load_pretrained(
  variables: Variables, path: str | Path, *, prefix: str = 'backbone'
) -> tuple[dict[str, Any], list[Row]]:
  """Replaces the encoder's arrays by those of a file; with a bundle, all arrays: see `own.match`.

  Args:
    variables: 'params' and, where there are any, 'batch_stats' of the network: arrays, or
      `jax.ShapeDtypeStruct`s, of which only shapes are looked at.
    path: of the file, or the folder of a bundle.
    prefix: name of the encoder in both collections.

  Returns:
    New variables, the encoder's in float32 of numpy and the others as they were, and the table's
    rows: those of the encoder, then the unused tensors of the file, then the modules that stay as
    they were.

  Raises:
    ConfigError: the network has no such encoder, or not of the kind or size that the file is of.
    DataError: the file cannot be read, is of an unknown kind, or has too few or too many tensors.
  """
  if bundled := own.find(path):
    return own.match(variables, bundled)
  _check_place(Path(path))  # before the network is found unfit for a file that is none
  encoder = _encoder(variables, prefix)
  shapes = {name: tuple(leaf.shape) for name, leaf in encoder.items()}
  arrays, rows = matching.match(files.read(path), shapes, file=str(path), prefix=prefix)
  filled = {
    collection: {**tree, prefix: _nested(arrays, collection)} if prefix in tree else tree
    for collection, tree in variables.items()
  }
  return filled, rows + _fresh(variables, prefix)


def _check_place(path: Path) -> None:
  if path.is_dir():
    raise DataError(
      f'{path}: is a folder without {own.PARAMS}; name that of an exported model, which '
      '--mode=export makes of a run, or one .safetensors or .h5 file'
    )
  if not path.exists():
    raise DataError(
      f'{path}: there is no such file; weights are the folder of an exported model, or one '
      '.safetensors or .h5 file on disk'
    )


def trained_with(path: str | Path) -> str:
  """The normalisation, as in data.normalisation, that the weights of a file or bundle expect.

  Raises:
    DataError: a bundle cannot be read.
  """
  if bundled := own.find(path):
    return own.about(bundled).normalisation
  return 'caffe' if str(path).endswith('.h5') else 'imagenet'


def to_source(
  variables: Variables, layout: str, *, prefix: str = 'backbone'
) -> dict[str, np.ndarray]:
  """The encoder's arrays under the names and in the shapes of another library.

  Args:
    variables: as in `load_pretrained`, arrays.
    layout: a key of `names.LAYOUTS`, as 'torchvision resnet50'.
    prefix: name of the encoder.

  Raises:
    ConfigError: the network has no such encoder, or the layout is of another kind.
  """
  encoder = _encoder(variables, prefix)
  kind = names.encoder_kind(encoder)
  fitting = [key for key, value in names.LAYOUTS.items() if value.encoder == kind]
  if layout not in fitting:
    raise ConfigError(
      f'layout {layout!r} does not fit an encoder that is a {kind}; allowed: {", ".join(fitting)}'
    )
  return matching.export(encoder, names.LAYOUTS[layout])


def _encoder(variables: Variables, prefix: str) -> dict[str, Any]:
  """The encoder's leaves by path: 'params/stem1/conv/kernel'."""
  if prefix not in variables['params']:
    raise ConfigError(
      f'the network has no encoder {prefix!r} that could start from pretrained weights (its '
      f'modules: {", ".join(variables["params"])}); networks that have one: {", ".join(NETWORKS)}'
    )
  encoder = {
    f'{collection}/{path}': leaf
    for collection, tree in variables.items()
    for path, leaf in _leaves(tree.get(prefix, {})).items()
  }
  if names.encoder_kind(encoder) is None:
    known = ', '.join(dict.fromkeys(layout.encoder for layout in names.LAYOUTS.values()))
    raise ConfigError(f'the module {prefix!r} of the network is no encoder known here: {known}')
  return encoder


def _leaves(tree: Any, path: str = '') -> dict[str, Any]:
  if not isinstance(tree, Mapping):
    return {path: tree}
  found = {}
  for name, branch in tree.items():
    found |= _leaves(branch, f'{path}/{name}' if path else name)
  return found


def _nested(arrays: Mapping[str, np.ndarray], collection: str) -> dict[str, Any]:
  """{'params/stem1/conv/kernel': x} -> {'stem1': {'conv': {'kernel': x}}}."""
  nested: dict[str, Any] = {}
  for path, array in arrays.items():
    first, *modules, leaf = path.split('/')
    if first == collection:
      branch = nested
      for module in modules:
        branch = branch.setdefault(module, {})
      branch[leaf] = array
  return nested


def _fresh(variables: Variables, prefix: str) -> list[Row]:
  """One row for each module outside the encoder, statistics included."""
  sizes: dict[str, list[int]] = {}
  for tree in variables.values():
    for module, branch in tree.items():
      if module != prefix:
        leaves = _leaves(branch).values()
        sizes.setdefault(module, []).extend(int(np.prod(leaf.shape)) for leaf in leaves)
  return [
    Row('', f'params/{module}', (), 'fresh', '', len(found), sum(found))
    for module, found in sorted(sizes.items())
  ]
