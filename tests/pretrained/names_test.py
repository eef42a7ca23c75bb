"""The tables of names: complete for our encoders, and those of the libraries themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import parity_support
import pytest

from emseg_jax.models.backbones.resnet import ResNet50D8
from emseg_jax.models.backbones.vgg import Vgg
from emseg_jax.models.backbones.vit import Vit
from emseg_jax.pretrained import names

VIT = Vit((11,), grid=(14, 14), cls_token=True, final_norm=True)
ENCODERS = {
  'torchvision resnet50': ResNet50D8(stem='v1'),
  'timm resnet50c': ResNet50D8(),
  'mmcv resnet50_v1c': ResNet50D8(),
  'torchvision vgg16': Vgg(16),
  'torchvision vgg16_bn': Vgg(16, norm=True),
  'torchvision vgg19': Vgg(19),
  'torchvision vgg19_bn': Vgg(19, norm=True),
  'keras vgg16': Vgg(16),
  'keras vgg19': Vgg(19),
  'timm vit': VIT,
}


@functools.cache
def _shapes(encoder):
  """Shapes of the encoder's arrays by path."""
  mode = {} if isinstance(encoder, Vit) else {'train': False}
  image = jnp.zeros((1, 32, 32, 3))
  tree = jax.eval_shape(lambda: encoder.init(jax.random.key(0), image, **mode))
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {'/'.join(key.key for key in path): leaf.shape for path, leaf in leaves}


def _table(key):
  ours = _shapes(ENCODERS[key])
  ranks = {path: len(shape) for path, shape in ours.items()}
  return ours, names.table(names.LAYOUTS[key], ranks)


def test_every_layout_is_tested_here():
  assert ENCODERS.keys() == names.LAYOUTS.keys()


@pytest.mark.parametrize('key', ENCODERS)
def test_the_table_has_every_array_of_the_encoder_once(key):
  ours, entries = _table(key)
  assert sorted(entry.path for entry in entries) == sorted(ours)
  sources = [e.source for e in entries if e.kind not in ('class position', 'grid')]
  assert len(set(sources)) == len(sources)
  assert names.encoder_kind(ours) == names.LAYOUTS[key].encoder
  assert names.recognise(e.source for e in entries) == (key, '')


# The last convolutions and norms as `print(torchvision.models.vgg16())` etc. numbers them.
@pytest.mark.parametrize(
  ('key', 'conv', 'norm'),
  [('vgg16', 28, None), ('vgg16_bn', 40, 41), ('vgg19', 34, None), ('vgg19_bn', 49, 50)],
)
def test_the_layers_of_vgg_are_numbered_with_activations_and_poolings(key, conv, norm):
  _, entries = _table(f'torchvision {key}')
  by_source = {e.source: e.path for e in entries}
  block = 'block5_conv3' if '16' in key else 'block5_conv4'
  assert by_source[f'features.{conv}.weight'] == f'params/{block}/kernel'
  if norm:
    path = f'batch_stats/{block.replace("conv", "norm")}/mean'
    assert by_source[f'features.{norm}.running_mean'] == path


def test_the_order_is_that_of_the_network():
  _, entries = _table('timm vit')
  blocks = list(dict.fromkeys(e.path.split('/')[1] for e in entries))
  tokens = ['cls_pos', 'cls_token', 'patch_embed', 'pos_embed']
  assert blocks == [*tokens, *(f'block{i}' for i in range(12)), 'norm']


@pytest.mark.parametrize(
  'prefix', ['', 'module.', 'model.', 'encoder.', 'state_dict.backbone.', 'module.model.backbone.']
)
def test_wrappers_around_the_encoder_are_seen_through(prefix):
  _, entries = _table('torchvision resnet50')
  found = names.recognise([*(prefix + e.source for e in entries), 'decode_head.conv.weight'])
  assert found == ('torchvision resnet50', prefix)


# AlexNet and VGG-13 have 'features.0.weight' too, DenseNet 'features.conv0.weight'.
@pytest.mark.parametrize(
  'tensors',
  [
    ['features.0.weight', 'features.10.weight'],
    ['features.0.weight', 'features.22.weight'],
    ['features.conv0.weight'],
    ['conv1.weight', 'conv2.weight'],
    ['teacher.conv1.weight', 'teacher.layer1.0.conv1.weight'],
    ['patch_embed.proj.weight', 'layers.0.blocks.0.attn.qkv.weight'],  # Swin
    ['conv1_conv/kernel'],
    [],
  ],
)
def test_other_networks_are_not_recognised(tensors):
  assert names.recognise(tensors) is None


@pytest.mark.parametrize(
  ('name', 'why'),
  [
    ('layer1.0.bn1.num_batches_tracked', 'counts training steps'),
    ('fc.weight', 'classifier'),
    ('fc1/kernel', 'classifier'),
    ('predictions/bias', 'classifier'),
    ('classifier.6.bias', 'classifier'),
    ('head.fc.weight', 'classifier'),
    ('pre_logits.fc1.weight', 'classifier'),
    ('cls_token', 'the network has no class token'),
    ('norm.bias', 'the network has no final norm'),
    ('fc_norm.weight', 'the network has no final norm'),
    ('layer3.6.conv1.weight', None),
    ('blocks.0.ls1.gamma', None),
    ('fcn.weight', None),
    ('norm_pre.weight', None),
    ('dist_token', None),
  ],
)
def test_only_what_changes_nothing_may_be_left_over(name, why):
  assert names.explanation(name) == why


def test_an_array_that_no_rule_names_is_reported():
  with pytest.raises(LookupError, match='params/extra/kernel'):
    names.table(names.LAYOUTS['timm vit'], {'params/extra/kernel': 2})


def test_other_modules_are_no_encoder():
  assert names.encoder_kind(['params/kernel', 'params/bias']) is None


def _library(key):
  """The library's network, without memory for its weights."""
  torch, torchvision, timm = parity_support.torch_libraries()
  library, name = key.split()
  with torch.device('meta'):
    if library == 'torchvision':
      return getattr(torchvision.models, name)()
    name = 'vit_base_patch16_224' if name == 'vit' else name
    return timm.create_model(name)


@pytest.mark.parity
@pytest.mark.parametrize('key', [k for k in ENCODERS if k.split()[0] in ('torchvision', 'timm')])
def test_the_table_has_every_tensor_of_the_library_in_its_shape(key):
  theirs = {name: tuple(tensor.shape) for name, tensor in _library(key).state_dict().items()}
  ours, entries = _table(key)
  left = set(theirs) - {entry.source for entry in entries}
  assert {names.explanation(name) for name in left} <= {'classifier', 'counts training steps'}
  axes = {'conv': (3, 2, 0, 1), 'dense': (1, 0)}
  for source, path, kind in entries:
    if kind == 'class position':
      assert ours[path] == (1, 1, 768)
    elif kind == 'grid':
      assert theirs[source] == (1, 1 + np.prod(ours[path][1:3]), 768)
    else:
      shape = ours[path]
      assert theirs[source] == tuple(shape[a] for a in axes.get(kind, range(len(shape)))), source
