"""What the files of other libraries call the tensors of an encoder, and how they store them.

A layout is one library's way of naming one kind of encoder. Its rules turn the path of a module of
ours into the name of a module in the file; the table that follows from them for a given encoder is
read in one direction to load weights and in the other to write them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from emseg_jax.models.backbones.vgg import CONVOLUTIONS

__all__ = [
  'LAYOUTS',
  'Entry',
  'Kind',
  'Layout',
  'encoder_kind',
  'explanation',
  'recognise',
  'table',
]

# What becomes of a tensor of the file, and in which shape it is there.
#   conv: [F, C, y, x], here [y, x, C, F]
#   dense: [out, in], here [in, out]
#   class position, grid: the two parts of [1, 1 + gy·gx, C], here [1, 1, C] and [1, gy, gx, C]
Kind = Literal['conv', 'dense', 'same', 'class position', 'grid']


class Entry(NamedTuple):
  """One tensor: what the file calls it, its path below our encoder, how one becomes the other."""

  source: str
  path: str
  kind: Kind


class Layout(NamedTuple):
  """Attributes:
  encoder: the kind of encoder whose tensors it names, as `encoder_kind` calls it.
  marks: tensors that a file of this layout has; earlier layouts are tried first.
  first: path of the kernel that sees the image.
  rules: (pattern of our module's path, its name in the file).
  keras: kernels are stored as here, and the image's channels are blue, green and red.
  """

  encoder: str
  marks: tuple[str, ...]
  first: str
  rules: tuple[tuple[str, str], ...]
  keras: bool = False


_TORCH_LEAVES = {
  'kernel': '.weight',
  'scale': '.weight',
  'bias': '.bias',
  'mean': '.running_mean',
  'var': '.running_var',
}
_KERAS_LEAVES = {'kernel': '/kernel', 'bias': '/bias'}


def _resnet(encoder: str, stem: tuple[tuple[str, str], ...]) -> Layout:
  stages = (
    (r'layer(\d)_(\d)/conv(\d)/conv', r'layer\1.\2.conv\3'),
    (r'layer(\d)_(\d)/conv(\d)/norm', r'layer\1.\2.bn\3'),
    (r'layer(\d)_(\d)/shortcut/conv', r'layer\1.\2.downsample.0'),
    (r'layer(\d)_(\d)/shortcut/norm', r'layer\1.\2.downsample.1'),
  )
  rules = tuple(
    (f'stem{i}/{part}', name)
    for i, names in enumerate(stem, start=1)
    for part, name in zip(('conv', 'norm'), names, strict=True)
  )
  marks = (f'{stem[0][0]}.weight', 'layer1.0.conv1.weight')
  return Layout(encoder, marks, 'stem1/conv/kernel', (*rules, *stages))


def _torchvision_vgg(depth: Literal[16, 19], *, norm: bool) -> Layout:
  """The layers are numbered, activations and poolings included."""
  rules, number = [], 0
  for block, convolutions in enumerate(CONVOLUTIONS[depth], start=1):
    for i in range(1, convolutions + 1):
      rules.append((f'block{block}_conv{i}', f'features.{number}'))
      last = number
      if norm:
        rules.append((f'block{block}_norm{i}', f'features.{number + 1}'))
      number += 3 if norm else 2
    number += 1
  encoder = f'VGG-{depth} with batch norm' if norm else f'VGG-{depth}'
  marks = ('features.0.weight', f'features.{last}.weight')
  return Layout(encoder, marks, 'block1_conv1/kernel', tuple(rules))


def _keras_vgg(depth: Literal[16, 19]) -> Layout:
  marks = ('block1_conv1/kernel', f'block5_conv{CONVOLUTIONS[depth][-1]}/kernel')
  return Layout(f'VGG-{depth}', marks, 'block1_conv1/kernel', ((r'(block\d_conv\d)', r'\1'),), True)


_VIT = Layout(
  'ViT',
  ('patch_embed.proj.weight', 'blocks.0.attn.qkv.weight'),
  'patch_embed/kernel',
  (
    ('patch_embed', 'patch_embed.proj'),
    (r'block(\d+)/(norm1|norm2)', r'blocks.\1.\2'),
    (r'block(\d+)/(qkv|proj)', r'blocks.\1.attn.\2'),
    (r'block(\d+)/(fc1|fc2)', r'blocks.\1.mlp.\2'),
    ('norm', 'norm'),
  ),
)
# Arrays of the ViT that belong to no module.
_TOKENS: Mapping[str, tuple[str, Kind]] = {
  'cls_token': ('cls_token', 'same'),
  'cls_pos': ('pos_embed', 'class position'),
  'pos_embed': ('pos_embed', 'grid'),
}
_V1, _V1C = 'ResNet-50 with a 7x7 stem', 'ResNet-50 with a V1c stem'

# Files of the smaller VGG have all marks of those below, so the order matters.
LAYOUTS: Mapping[str, Layout] = {
  'torchvision resnet50': _resnet(_V1, (('conv1', 'bn1'),)),
  'timm resnet50c': _resnet(
    _V1C, (('conv1.0', 'conv1.1'), ('conv1.3', 'conv1.4'), ('conv1.6', 'bn1'))
  ),
  'mmcv resnet50_v1c': _resnet(
    _V1C, (('stem.0', 'stem.1'), ('stem.3', 'stem.4'), ('stem.6', 'stem.7'))
  ),
  'torchvision vgg19_bn': _torchvision_vgg(19, norm=True),
  'torchvision vgg16_bn': _torchvision_vgg(16, norm=True),
  'torchvision vgg19': _torchvision_vgg(19, norm=False),
  'torchvision vgg16': _torchvision_vgg(16, norm=False),
  'timm vit': _VIT,
  'keras vgg19': _keras_vgg(19),
  'keras vgg16': _keras_vgg(16),
}

# Wrappers under which training code keeps an encoder.
_PREFIX = re.compile(r'((?:state_dict|module|model|backbone|encoder)\.)*')
# Tensors of the file that no encoder of ours needs, and what they are.
_EXPLAINED = (
  (r'(.+\.)?num_batches_tracked', 'counts training steps'),
  (r'(fc|fc1|fc2|classifier|head|predictions|pre_logits)[./].+', 'classifier'),
  (r'cls_token', 'the network has no class token'),
  (r'(fc_)?norm\.(weight|bias)', 'the network has no final norm'),
)


def recognise(names: Iterable[str]) -> tuple[str, str] | None:
  """(key of LAYOUTS, prefix of the encoder's tensors), or None if no layout fits."""
  names = set(names)
  prefixes = sorted({_PREFIX.match(name).group() for name in names}, key=len)
  for prefix in prefixes:
    for key, layout in LAYOUTS.items():
      if all(prefix + mark in names for mark in layout.marks):
        return key, prefix
  return None


def explanation(name: str) -> str | None:
  """Why a tensor that is not in the table may be left over; None if it may not."""
  return next((why for pattern, why in _EXPLAINED if re.fullmatch(pattern, name)), None)


def encoder_kind(paths: Iterable[str]) -> str | None:
  """The kind of encoder that has the arrays params/... and batch_stats/...; None if unknown."""
  paths = set(paths)
  if 'params/layer4_2/conv3/conv/kernel' in paths:
    return _V1C if 'params/stem3/conv/kernel' in paths else _V1
  if 'params/patch_embed/kernel' in paths:
    return 'ViT'
  for depth, convolutions in sorted(CONVOLUTIONS.items(), reverse=True):
    if f'params/block5_conv{convolutions[-1]}/kernel' in paths:
      norm = 'params/block1_norm1/scale' in paths
      return f'VGG-{depth} with batch norm' if norm else f'VGG-{depth}'
  return None


def table(layout: Layout, ranks: Mapping[str, int]) -> list[Entry]:
  """One entry for every array of the encoder.

  Args:
    layout: one that fits the kind of the encoder.
    ranks: number of axes of each array, by path.
  """
  return [_entry(layout, path, rank) for path, rank in sorted(ranks.items(), key=_order)]


def _entry(layout: Layout, path: str, rank: int) -> Entry:
  _, _, below = path.partition('/')  # the collection aside
  if below in _TOKENS:
    source, kind = _TOKENS[below]
    return Entry(source, path, kind)
  module, _, leaf = below.rpartition('/')
  leaves = _KERAS_LEAVES if layout.keras else _TORCH_LEAVES
  for pattern, name in layout.rules:
    match = re.fullmatch(pattern, module)
    if match and leaf in leaves:
      kind = 'same'
      if leaf == 'kernel' and not layout.keras:
        kind = 'conv' if rank == 4 else 'dense'
      return Entry(match.expand(name) + leaves[leaf], path, kind)
  raise LookupError(f'{path}: no rule names this array of a {layout.encoder}')


def _order(item: tuple[str, int]) -> tuple:
  """As the image passes: stem before stages, block 2 before block 10, statistics with scales."""
  _, _, below = item[0].partition('/')
  late = bool(re.match('layer|block|norm', below))
  return late, [(int(s), '') if s.isdigit() else (-1, s) for s in re.split(r'(\d+)', below)]
