"""The networks, by name.

A network is a `flax.linen` module with the fields `num_classes` and `dtype` and options of its own.
`module.apply(variables, image, train=...)` takes [B, Y, X, C] or, for volumes, [B, Z, Y, X, C] of
any size and returns a dict of float32 arrays of that size: 'logits' [B, *spatial, num_classes], in
training 'aux/<name>' for each auxiliary head, and what else a network's docstring names. Its random
streams are 'params' and 'dropout'. `divisor` holds, for each axis, the multiple to which it pads
inside; `receptive_field` the span of voxels that one output voxel depends on, None where that is
the whole image.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import pydantic

from emseg_jax.models.casser_unet import CasserUNet
from emseg_jax.models.cheng import Cheng2D, Cheng3D
from emseg_jax.models.deeplabv3plus import DeepLabV3Plus
from emseg_jax.models.deeplabv3plus_vgg import DeepLabV3PlusVgg
from emseg_jax.models.emnet_hvec import EmNetHvec
from emseg_jax.models.emnet_khadangi import EmNetKhadangi
from emseg_jax.models.fcn8s import Fcn8s
from emseg_jax.models.pidnet import PidNet
from emseg_jax.models.pmcanet import PmcaNet
from emseg_jax.models.rescrnet import ResCRNet
from emseg_jax.models.resunet import ResUNet
from emseg_jax.models.seget import SegET
from emseg_jax.models.segmenter import Segmenter
from emseg_jax.models.segnet import SegNet
from emseg_jax.models.segvit import SegVit
from emseg_jax.models.unet import UNet
from emseg_jax.models.unet3d import UNet3D
from emseg_jax.models.vgg_unet import VggUNet
from emseg_jax.models.xiao3d import Xiao3D

__all__ = ['MODELS', 'create_model']

# The five papers' networks, then those that they compare against.
MODELS: dict[str, type[nn.Module]] = {
  'pmcanet': PmcaNet,
  'vgg_unet': VggUNet,
  'seget': SegET,
  'emnet_hvec': EmNetHvec,
  'rescrnet': ResCRNet,
  'deeplabv3plus': DeepLabV3Plus,
  'deeplabv3plus_vgg': DeepLabV3PlusVgg,
  'emnet_khadangi': EmNetKhadangi,
  'segmenter': Segmenter,
  'segvit': SegVit,
  'pidnet': PidNet,
  'fcn8s': Fcn8s,
  'segnet': SegNet,
  'unet': UNet,
  'unet3d': UNet3D,
  'cheng2d': Cheng2D,
  'cheng3d': Cheng3D,
  'xiao3d': Xiao3D,
  'casser_unet': CasserUNet,
  'resunet': ResUNet,
}

# Fields of every network that are not options of it; name and parent are flax's.
_NOT_OPTIONS = {'num_classes', 'dtype', 'name', 'parent'}
_STRICT = pydantic.ConfigDict(strict=True, allow_inf_nan=False)


def create_model(name: str, /, num_classes: int, *, dtype: Any = None, **options: Any) -> nn.Module:
  """Builds a network after checking its options.

  Args:
    name: a key of MODELS.
    num_classes: channels of the logits.
    dtype: what the network computes in; None: its default, float32. Parameters are always float32.
    **options: the network's own fields; a list stands for a tuple.

  Raises:
    ValueError: the network or an option is unknown, or a value is of a wrong type or out of range.
  """
  if name not in MODELS:
    raise ValueError(_unknown('name', name, MODELS))
  cls = MODELS[name]
  fields = {f.name: f.type for f in dataclasses.fields(cls) if f.name not in _NOT_OPTIONS}
  for option in options:
    if option not in fields:
      raise ValueError(_unknown(f'option of {name}', option, fields))
  checked = {
    option: _checked(f'options.{option}', value, fields[option])
    for option, value in options.items()
  }
  checked['num_classes'] = _checked('num_classes', num_classes, pydantic.PositiveInt)
  if dtype is not None:
    checked['dtype'] = dtype
  return cls(**checked)


def _unknown(kind: str, given: str, known: Iterable[str]) -> str:
  near = difflib.get_close_matches(given, known, n=3)
  hint = f'did you mean {" or ".join(map(repr, near))}? ' if near else ''
  return f'{kind} {given!r} is not known; {hint}(known: {", ".join(sorted(known))})'


def _checked(field: str, value: Any, annotation: Any) -> Any:
  if isinstance(value, list):  # JSON has no tuples
    value = tuple(value)
  try:
    return pydantic.TypeAdapter(annotation, config=_STRICT).validate_python(value)
  except pydantic.ValidationError as error:
    first = error.errors()[0]
    at = ''.join(f'[{i}]' for i in first['loc'])
    raise ValueError(f'{field}{at}={first["input"]!r}: {first["msg"].lower()}') from error
