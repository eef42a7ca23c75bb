"""`bioimageio.zip`: a network as a package of the BioImage Model Zoo, version 0.5 of its format.

Software that reads such packages (ilastik, deepImageJ, bioimageio.core) runs `model.onnx` in it,
one tile at a time. The description, rdf.yaml, is written as JSON, which is YAML as well.

    rdf.yaml             the description
    model.onnx           the network, see `export.onnx`
    test_input.npy       float32 [1, C, *spatial] ...
    test_output.npy      ... and what the network gives for it, float32 [1, K, *spatial]
    cover.png            both beside each other
    README.md            the model card
"""

import hashlib
import json
import re
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emseg_jax import predict, zoo
from emseg_jax.bundle import Bundle, Record, card
from emseg_jax.export import onnx
from emseg_jax.report import figures

__all__ = ['FILE', 'FORMAT', 'cite', 'write', 'write_folder']

FILE = 'bioimageio.zip'
FORMAT = '0.5.4'  # readers of later 0.5 take it too
EPSILON = 1e-6  # that the format's own normalisations add to what they divide by

# Where a network was published; the others have no address that we are sure of.
_PAPERS = {
  'pmcanet': {'doi': '10.3233/JIFS-235138'},
  'seget': {'url': 'https://arxiv.org/abs/1811.11729'},
  'emnet_hvec': {'url': 'https://arxiv.org/abs/1912.00201'},
  'rescrnet': {'doi': '10.1088/2632-2153/aba8e8'},
  'deeplabv3plus': {'doi': '10.1007/978-3-030-01234-2_49'},
  'deeplabv3plus_vgg': {'doi': '10.1007/978-3-030-01234-2_49'},
  'segmenter': {'url': 'https://arxiv.org/abs/2105.05633'},
  'segvit': {'url': 'https://arxiv.org/abs/2210.05844'},
  'pidnet': {'url': 'https://arxiv.org/abs/2206.02066'},
  'fcn8s': {'doi': '10.1109/CVPR.2015.7298965'},
  'segnet': {'doi': '10.1109/TPAMI.2016.2644615'},
  'unet': {'doi': '10.1007/978-3-319-24574-4_28'},
  'unet3d': {'doi': '10.1007/978-3-319-46723-8_49'},
  'xiao3d': {'doi': '10.3389/fnana.2018.00092'},
  'casser_unet': {'url': 'https://arxiv.org/abs/1812.06024'},
  'resunet': {'doi': '10.1109/LGRS.2018.2802944'},
}
_NOTES = (
  '## This package\n\n`model.onnx` takes and gives axes in the order b c (z) y x, see `rdf.yaml`. '
  'What is said above of other files and orders is about the folder that it was exported with.\n\n'
  '## Validation\n\nCompare predictions with annotations of images that were not trained on, of '
  'the same kind and voxel size, class by class, with the intersection over union for example. '
  '`test_output.npy` is what the network gives for `test_input.npy`.\n'
)


def write(folder: Path, bundle: Bundle, *, authors: Sequence[str] = ()) -> dict[str, Any]:
  """Writes the form 'bioimageio' into the folder of a bundle; see `bundle.Form`.

  Args:
    folder, bundle: of the form.
    authors: names of the people who trained the network.

  Raises:
    ConfigError, OutputError: as `onnx.write`.
  """
  with tempfile.TemporaryDirectory(dir=folder) as temporary:
    form = write_folder(Path(temporary), bundle, authors=authors)
    with zipfile.ZipFile(folder / FILE, 'w', zipfile.ZIP_DEFLATED) as package:
      for path in sorted(Path(temporary).iterdir()):
        package.write(path, path.name)
  return {'file': FILE, 'format': FORMAT, 'sizes': form['sizes']}


def write_folder(folder: Path, bundle: Bundle, *, authors: Sequence[str] = ()) -> dict[str, Any]:
  """Writes the package into an empty folder; returns what `onnx.write` does. As `write`."""
  record = bundle.record
  form = onnx.write(folder, bundle)
  given = np.ascontiguousarray(bundle.sample[0])
  normalised = np.float32(_normalised(given, record.input.normalisation.kind))
  result = onnx.run((folder / onnx.FILE).read_bytes(), normalised)
  for name, array in (('test_input', given), ('test_output', result)):
    array = np.ascontiguousarray(np.moveaxis(array, -1, 1))
    np.save(folder / f'{name}.npy', array, allow_pickle=False)
  _write_cover(folder / 'cover.png', given, result, bundle)
  (folder / 'README.md').write_text(f'{card.model_card(record)}\n{_NOTES}', encoding='utf-8')
  if record.licence and not _is_identifier(record.licence):
    (folder / 'LICENSE.txt').write_text(record.licence + '\n', encoding='utf-8')
  text = json.dumps(_description(folder, bundle, authors), indent=2, ensure_ascii=False) + '\n'
  (folder / 'rdf.yaml').write_text(text, encoding='utf-8')
  return form


def cite(network: str) -> list[dict[str, str]]:
  """The paper of a network as the format wants it; empty where it has no known address."""
  source = next(entry.source for entry in zoo.ENTRIES if entry.name == network)
  return [{'text': source} | _PAPERS[network]] if network in _PAPERS else []


def _description(folder: Path, bundle: Bundle, authors: Sequence[str]) -> dict[str, Any]:
  record = bundle.record
  description = {
    'format_version': FORMAT,
    'type': 'model',
    'name': _name(record),
    'description': f'{record.network.name} network that segments electron-microscopy '
    f'{"images" if len(record.input.axes) == 4 else "volumes"} into {", ".join(record.classes)}.',
    'authors': [{'name': author} for author in authors],
    'cite': cite(record.network.name),
    'documentation': 'README.md',
    'covers': ['cover.png'],
    'tags': ['electron-microscopy', 'segmentation', 'semantic-segmentation', record.network.name],
    'timestamp': record.created,
    'inputs': [_input(folder, record, bundle.sample[0].shape)],
    'outputs': [_output(folder, record, bundle.sample[1].shape)],
    'weights': {
      'onnx': {**_file(folder / onnx.FILE), 'opset_version': onnx.OPSET},
    },
    'config': {'bioimageio': {'model_parameter_count': record.network.parameters}},
  }
  if record.licence:
    known = _is_identifier(record.licence)
    description['license'] = record.licence if known else _file(folder / 'LICENSE.txt')
  return description


def _input(folder: Path, record: Record, shape: tuple[int, ...]) -> dict[str, Any]:
  data = {'type': 'float32'}
  axes = [
    {'type': 'batch'},
    {'type': 'channel', 'channel_names': _channel_names(record)},
    *({**axis, 'size': size} for axis, size in zip(_spatial(record), shape[1:-1], strict=True)),
  ]
  names = ['channel', *record.input.axes[1:-1]]
  steps = {
    'per_volume': {
      'id': 'zero_mean_unit_variance',
      'kwargs': {'axes': names, 'eps': EPSILON},
    },
    'percentile': {
      'id': 'scale_range',
      'kwargs': {'axes': names, 'min_percentile': 1, 'max_percentile': 99, 'eps': EPSILON},
    },
  }
  kind = record.input.normalisation.kind
  return {
    'id': onnx.INPUT,
    'description': 'Pixels as they are stored.',
    'axes': axes,
    'test_tensor': _file(folder / 'test_input.npy'),
    'data': data,
    'preprocessing': [steps[kind]] if kind in steps else [],
  }


def _output(folder: Path, record: Record, shape: tuple[int, ...]) -> dict[str, Any]:
  field = record.network.receptive_field
  axes: list[dict[str, Any]] = [
    {'type': 'batch'},
    {'type': 'channel', 'channel_names': list(record.classes)},
  ]
  for place, axis in enumerate(_spatial(record)):
    size = shape[1 + place]
    # What is nearer to the border of a tile than half the receptive field may change with what lies
    # beyond it; a quarter of the tile at most, or nothing would be left.
    halo = size // 4 if field is None else min(size // 4, field[place] // 2)
    reference = {'tensor_id': onnx.INPUT, 'axis_id': axis['id']}
    axes.append({**axis, 'size': reference} | ({'halo': halo} if halo else {}))
  return {
    'id': onnx.OUTPUT,
    'description': 'Probability of each class.',
    'axes': axes,
    'test_tensor': _file(folder / 'test_output.npy'),
    'data': {'type': 'float32', 'range': [0.0, 1.0]},
  }


def _spatial(record: Record) -> list[dict[str, Any]]:
  sizes = dict(zip('zyx', record.input.voxel_size_zyx or (None,) * 3, strict=True))
  return [
    {'type': 'space', 'id': name}
    | ({'unit': 'nanometer', 'scale': sizes[name]} if sizes[name] else {})
    for name in record.input.axes[1:-1]
  ]


def _channel_names(record: Record) -> list[str]:
  planes = record.input.planes
  colours = ['grey'] if record.input.channels == planes else ['red', 'green', 'blue']
  if planes == 1:
    return colours
  return [f'{c} of section {p - planes // 2:+d}' for p in range(planes) for c in colours]


def _normalised(image: np.ndarray, kind: str) -> np.ndarray:
  """What the preprocessing of `_input` makes of [1, *spatial, C]."""
  if kind == 'per_volume':
    return (image - image.mean()) / (image.std() + EPSILON)
  if kind == 'percentile':
    low, high = np.percentile(image, (1, 99))
    return (image - low) / (high - low + EPSILON)
  return image


def _write_cover(path: Path, given: np.ndarray, result: np.ndarray, bundle: Bundle) -> None:
  """Image and labels beside each other; of a volume the middle plane."""
  from PIL import Image, ImageColor

  record, image, probabilities = bundle.record, given[0], result[0]
  if image.ndim == 4:
    image, probabilities = image[len(image) // 2], probabilities[len(image) // 2]
  planes, channels = record.input.planes, record.input.channels // record.input.planes
  image = image[..., planes // 2 * channels :][..., :channels]
  drawn = figures.draw_image(image)
  if drawn.ndim == 2:
    drawn = np.repeat(drawn[..., None], 3, axis=-1)
  colours = [label.colour for label in record.labels] or ['#000000', '#ffffff']  # of affinities
  table = np.array([ImageColor.getrgb(colour) for colour in colours], np.uint8)
  labels = table[predict.label_values(probabilities, bundle.config.task)]
  Image.fromarray(np.concatenate([drawn, labels], axis=1)).save(path)


def _name(record: Record) -> str:
  """The title in the characters that the format allows, 5 to 64 of them."""
  name = re.sub(r'[^A-Za-z0-9_+\-()]+', ' ', record.title).strip()[:64].strip()
  return name if len(name) >= 5 else f'{record.network.name} network'


def _is_identifier(licence: str) -> bool:
  """Whether it can be an identifier of SPDX, as 'CC-BY-4.0'."""
  return re.fullmatch(r'[A-Za-z0-9.+-]+', licence) is not None


def _file(path: Path) -> dict[str, str]:
  return {'source': path.name, 'sha256': hashlib.sha256(path.read_bytes()).hexdigest()}
