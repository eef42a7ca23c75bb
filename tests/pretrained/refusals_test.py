"""Files and networks that do not fit each other: one sentence says why, and what to do."""

import inspect
import sys

import numpy as np
import pytest
from model_support import normal
from pretrained_support import random, saved, shapes
from safetensors.numpy import save_file

from emseg_jax import models, pretrained
from emseg_jax.errors import ConfigError, DataError


def _refused(error, message, variables, path, **kwargs):
  with pytest.raises(error, match=message) as caught:
    pretrained.load_pretrained(variables, path, **kwargs)
  assert '\n' not in str(caught.value)
  assert caught.value.exit_code == 2
  return str(caught.value)


def test_a_missing_file_is_named(tmp_path):
  message = _refused(DataError, 'there is no such file', shapes('segnet'), tmp_path / 'no.h5')
  assert str(tmp_path / 'no.h5') in message
  # Also where the network could not start from such a file.
  _refused(DataError, 'the folder of an exported model', shapes('unet'), tmp_path / 'model')


def test_a_run_in_place_of_an_exported_model_hears_how_to_make_one(tmp_path):
  _refused(
    DataError, 'is a folder without params.safetensors.*--mode=export', shapes('unet'), tmp_path
  )


def test_a_network_without_encoder_hears_which_networks_have_one(tmp_path):
  (tmp_path / 'w').write_bytes(b'')
  message = _refused(ConfigError, "no encoder 'backbone'", shapes('unet'), tmp_path / 'w')
  assert all(name in message for name in pretrained.NETWORKS)


def test_the_networks_that_are_named_are_those_with_a_backbone():
  with_backbone = {
    name
    for name, cls in models.MODELS.items()
    if "name='backbone'" in inspect.getsource(sys.modules[cls.__module__])
  }
  assert set(pretrained.NETWORKS) == with_backbone


def test_a_module_that_is_no_encoder_is_refused(tmp_path):
  (tmp_path / 'w').write_bytes(b'')
  message = "'head' of the network is no encoder known here: ResNet-50"
  _refused(ConfigError, message, shapes('pmcanet'), tmp_path / 'w', prefix='head')


def test_a_file_of_an_unknown_network_is_refused_with_its_first_tensors(tmp_path):
  save_file({'b.w': normal(2, 3), 'a.w': normal(4)}, tmp_path / 'w')
  message = _refused(DataError, 'no network that is known', shapes('segnet'), tmp_path / 'w')
  assert r'a.w [4], b.w [2, 3]' in message
  assert 'torchvision resnet50, timm resnet50c' in message
  save_file({}, tmp_path / 'w')
  _refused(DataError, 'first tensors: none', shapes('segnet'), tmp_path / 'w')


@pytest.mark.parametrize(
  ('source', 'layout', 'name', 'options', 'message'),
  [
    (
      ('segmenter', {}),
      'timm vit',
      'pmcanet',
      {},
      "is of a ViT, but the network's encoder is a ResNet-50 with a V1c stem; take a file of a "
      'ResNet-50 with a V1c stem$',
    ),
    (
      ('pmcanet', {'stem': 'v1'}),
      'torchvision resnet50',
      'pmcanet',
      {},
      'is of a ResNet-50 with a 7x7 stem, .* set model.options.stem=v1, or take',
    ),
    (
      ('pmcanet', {}),
      'mmcv resnet50_v1c',
      'pmcanet',
      {'stem': 'v1'},
      'is of a ResNet-50 with a V1c stem, .* set model.options.stem=v1c, or take',
    ),
    (
      ('vgg_unet', {'depth': 19}),
      'torchvision vgg19',
      'vgg_unet',
      {},
      r'is of a VGG-19, .* set model.options.depth=19 \(vgg_unet\), or take a file of a VGG-16$',
    ),
    (
      ('vgg_unet', {}),
      'torchvision vgg16',
      'segnet',
      {},
      'is of a VGG-16, .* is a VGG-16 with batch norm; .* take a file of a VGG-16 with batch norm$',
    ),
    (
      ('segnet', {}),
      'torchvision vgg16_bn',
      'fcn8s',
      {},
      r'set model.options.norm=batch \(fcn8s\), or take a file of a VGG-16$',
    ),
  ],
)
def test_a_file_of_another_kind_of_network_is_refused(
  tmp_path, source, layout, name, options, message
):
  path = saved(random(source[0], **source[1]), layout, tmp_path / 'w')
  _refused(ConfigError, message, shapes(name, **options), path)


def test_averaging_shortcuts_are_refused(tmp_path):
  variables = random('pmcanet')
  extra = {'layer1.0.downsample.2.weight': normal(16)}
  path = saved(variables, 'timm resnet50c', tmp_path / 'w', add=extra)
  _refused(ConfigError, 'is a ResNet V1d', variables, path)


def test_a_vit_with_another_number_of_heads_is_refused(tmp_path):
  # 12 heads of 16 channels have the shapes of ViT-Ti, which has 3 heads of 64.
  variables = random('segmenter', width=0.25)
  path = saved(variables, 'timm vit', tmp_path / 'w')
  _refused(ConfigError, 'is a ViT of 192 channels, .* 12 heads of 64', variables, path)


def test_a_tensor_that_is_missing_is_named_with_our_array(tmp_path):
  variables = random('segnet')
  name = 'features.4.running_var'
  path = saved(variables, 'torchvision vgg16_bn', tmp_path / 'w', drop=[name])
  message = rf'lacks the tensor {name} for batch_stats/block1_norm2/var \[4\]'
  _refused(DataError, message, variables, path)


def test_a_tensor_that_has_no_place_is_named(tmp_path):
  variables = random('segmenter')
  extra = {'blocks.1.norm1.weight': np.ones(768, np.float32)}
  path = saved(variables, 'timm vit', tmp_path / 'w', add=extra)
  message = r'has the tensor blocks.1.norm1.weight \[768\], for which the encoder has no place'
  assert 'model.options.depth' in _refused(DataError, message, variables, path)


def test_a_narrower_network_hears_of_its_width(tmp_path):
  path = saved(random('segnet'), 'torchvision vgg16_bn', tmp_path / 'w')
  message = (
    r'features.0.bias \[4\] does not fit params/backbone/block1_conv1/bias \[2\]; .* '
    r'model.options.width=1'
  )
  _refused(ConfigError, message, shapes('segnet', width=1 / 32), path)


def test_a_tensor_of_another_rank_is_refused(tmp_path):
  variables = random('segnet')
  extra = {'features.0.weight': np.ones((4, 27), np.float32)}
  path = saved(variables, 'torchvision vgg16_bn', tmp_path / 'w', add=extra)
  _refused(ConfigError, r'\[4, 27\] does not fit', variables, path)


def test_a_grey_file_does_not_fit_a_network_that_sees_colours(tmp_path):
  path = saved(random('segnet', 1), 'torchvision vgg16_bn', tmp_path / 'w')
  _refused(ConfigError, 'set data.channels=1', shapes('segnet', 3), path)


@pytest.mark.parametrize('positions', [np.ones((1, 7, 768)), np.ones((1, 4, 768)), np.ones(768)])
def test_positions_that_are_no_square_grid_with_a_class_token_are_refused(tmp_path, positions):
  variables = random('segmenter')
  extra = {'pos_embed': positions.astype(np.float32)}
  path = saved(variables, 'timm vit', tmp_path / 'w', add=extra)
  _refused(ConfigError, 'pos_embed .* have to be a square grid', variables, path)


def test_values_that_are_not_finite_are_refused(tmp_path):
  variables = random('segnet')
  variables['params']['backbone']['block1_conv1']['bias'][2] = np.nan
  path = saved(variables, 'torchvision vgg16_bn', tmp_path / 'w')
  _refused(DataError, 'features.0.bias has values that are not finite', variables, path)


def test_a_layout_of_another_encoder_is_refused():
  message = "'timm vit' does not fit .* VGG-16 with batch norm; allowed: torchvision vgg16_bn$"
  with pytest.raises(ConfigError, match=message):
    pretrained.to_source(shapes('segnet'), 'timm vit')
