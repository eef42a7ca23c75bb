"""Pretrained encoders: round trips, adaptation to the network, the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_support import apply, normal
from pretrained_support import NARROW, random, saved, saved_by_keras, shapes
from safetensors.numpy import load_file, save_file

from emseg_jax import models, pretrained
from emseg_jax.models.backbones.vit import resize_positions


def _assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
  ('name', 'options', 'layout'),
  [
    ('deeplabv3plus', {}, 'timm resnet50c'),
    ('deeplabv3plus', {}, 'mmcv resnet50_v1c'),
    ('pmcanet', {'stem': 'v1'}, 'torchvision resnet50'),
    ('vgg_unet', {}, 'torchvision vgg16'),
    ('vgg_unet', {'depth': 19}, 'torchvision vgg19'),
    ('fcn8s', {'norm': 'batch'}, 'torchvision vgg16_bn'),
    ('segnet', {}, 'torchvision vgg16_bn'),
    ('segmenter', {}, 'timm vit'),
    ('segvit', {}, 'timm vit'),
  ],
)
def test_an_encoder_written_under_foreign_names_is_read_back_bit_by_bit(
  tmp_path, name, options, layout
):
  variables, empty = random(name, **options), shapes(name, **options)
  path = saved(variables, layout, tmp_path / 'w.safetensors')
  loaded, rows = pretrained.load_pretrained(empty, path)
  assert loaded.keys() == empty.keys()
  for collection, tree in loaded.items():
    if 'backbone' in tree:
      _assert_equal(tree['backbone'], variables[collection]['backbone'])
      assert all(type(x) is np.ndarray for x in jax.tree.leaves(tree['backbone']))
    # What is outside is handed through.
    assert all(tree[k] is empty[collection][k] for k in tree if k != 'backbone')
  assert {row.status for row in rows} == {'loaded', 'fresh'}


@pytest.mark.parametrize('layout', ['keras vgg16', 'keras vgg19'])
def test_a_file_of_keras_is_read_back_bit_by_bit_and_says_that_colours_were_turned(
  tmp_path, layout
):
  variables = random('vgg_unet', depth=int(layout[-2:]))
  top = {'fc1/kernel': normal(5, 4), 'fc1/bias': normal(4), 'predictions/kernel': normal(4, 2)}
  path = saved_by_keras(variables, layout, tmp_path / 'w.h5', add=top)
  loaded, rows = pretrained.load_pretrained(variables, path)
  _assert_equal(loaded, variables)
  assert [row.note for row in rows if row.status == 'adapted'] == ['BGR turned to RGB']
  unused = {(row.source, row.note) for row in rows if row.status == 'unused'}
  assert unused == {(name, 'classifier') for name in top}
  # Keras' kernel begins with blue, ours with red; the others are stored alike.
  theirs = pretrained.to_source(variables, layout)
  ours = variables['params']['backbone']
  blue = ours['block1_conv1']['kernel'][:, :, 2]
  np.testing.assert_array_equal(theirs['block1_conv1/kernel'][:, :, 0], blue)
  np.testing.assert_array_equal(theirs['block1_conv2/kernel'], ours['block1_conv2']['kernel'])


def test_the_variables_that_are_given_stay_as_they_are(tmp_path):
  variables, other = random('segnet'), random('segnet', seed=1)
  before = jax.tree.map(np.copy, variables)
  path = saved(other, 'torchvision vgg16_bn', tmp_path / 'w.safetensors')
  loaded, _ = pretrained.load_pretrained(variables, path)
  _assert_equal(variables, before)
  _assert_equal(loaded['batch_stats']['backbone'], other['batch_stats']['backbone'])


def test_a_grey_image_gives_what_three_equal_channels_gave(tmp_path):
  colour = random('vgg_unet', 3)
  # What is outside the encoder is to be the same, what is inside has one channel.
  outside = {k: v for k, v in colour['params'].items() if k != 'backbone'}
  inside = shapes('vgg_unet', 1)['params']['backbone']
  variables = colour | {'params': outside | {'backbone': inside}}
  path = saved(colour, 'torchvision vgg16', tmp_path / 'w.safetensors')
  grey, rows = pretrained.load_pretrained(variables, path)
  assert [row.note for row in rows if row.status == 'adapted'] == ['RGB summed to grey']
  model = models.create_model('vgg_unet', 2, **NARROW)
  image = normal(1, 16, 16, 1)
  expected = apply(model, colour, jnp.repeat(image, 3, -1), False)[0]['logits']
  assert np.std(expected) > 0.1
  found = apply(model, grey, image, False)[0]['logits']
  np.testing.assert_allclose(found, expected, atol=1e-4)
  path = saved_by_keras(colour, 'keras vgg16', tmp_path / 'w.h5')
  keras, _ = pretrained.load_pretrained(variables, path)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), keras, grey)


def test_positions_are_fitted_to_the_grid_of_the_network(tmp_path):
  variables = random('segmenter', grid=(3, 3))
  path = saved(variables, 'timm vit', tmp_path / 'w.safetensors')
  loaded, rows = pretrained.load_pretrained(shapes('segmenter', grid=(5, 4)), path)
  ours, theirs = loaded['params']['backbone'], variables['params']['backbone']
  expected = resize_positions(theirs['pos_embed'], (5, 4))
  np.testing.assert_array_equal(ours['pos_embed'], expected)
  np.testing.assert_array_equal(ours['cls_pos'], theirs['cls_pos'])
  assert [row.note for row in rows if row.status == 'adapted'] == ['position grid 3x3 -> 5x4']


def test_a_network_without_class_token_and_final_norm_leaves_them_out(tmp_path):
  variables = random('segmenter')
  path = saved(variables, 'timm vit', tmp_path / 'w.safetensors')
  loaded, rows = pretrained.load_pretrained(shapes('segvit'), path)
  theirs = variables['params']['backbone']
  for name, value in loaded['params']['backbone'].items():
    _assert_equal(value, theirs[name])
  assert [row.note for row in rows if row.status == 'adapted'] == ['class position left out']
  assert {(row.source, row.note) for row in rows if row.status == 'unused'} == {
    ('cls_token', 'the network has no class token'),
    ('norm.weight', 'the network has no final norm'),
    ('norm.bias', 'the network has no final norm'),
  }


def test_the_rows_account_for_every_tensor_of_the_file_and_every_array_of_the_network(tmp_path):
  variables = random('pmcanet', 3, stem='v1')
  extra = {'fc.weight': normal(10, 128), 'fc.bias': normal(10)}
  extra['bn1.num_batches_tracked'] = np.array(7)
  path = saved(
    variables, 'torchvision resnet50', tmp_path / 'w', prefix='module.backbone.', add=extra
  )
  save_file(load_file(path) | {'module.decode_head.weight': normal(2, 3)}, path)
  empty = shapes('pmcanet', 1, stem='v1')
  _, rows = pretrained.load_pretrained(empty, path)
  sources = {row.source for row in rows if row.source}
  assert sources == set(load_file(path))
  assert sum(row.values for row in rows if row.status != 'unused') == sum(
    leaf.size for leaf in jax.tree.leaves(empty)
  )
  notes = {row.source: row.note for row in rows if row.status == 'unused'}
  assert notes == {
    'module.backbone.fc.weight': 'classifier',
    'module.backbone.fc.bias': 'classifier',
    'module.backbone.bn1.num_batches_tracked': 'counts training steps',
    'module.decode_head.weight': 'outside module.backbone',
  }
  kernel = next(row for row in rows if row.source == 'module.backbone.conv1.weight')
  target = 'params/backbone/stem1/conv/kernel'
  assert kernel[1:5] == (target, (7, 7, 1, 4), 'adapted', 'RGB summed to grey')
  fresh = {row.target: row.tensors for row in rows if row.status == 'fresh'}
  assert fresh['params/head'] == 2  # kernel and bias
  assert fresh['params/upnorm1'] == 4  # scale, bias, mean and variance


def test_the_printed_table_has_a_line_per_module_and_the_totals(tmp_path):
  variables = random('fcn8s', 3)
  extra = {'classifier.0.weight': normal(5, 4), 'classifier.0.bias': normal(5)}
  path = saved(variables, 'torchvision vgg16', tmp_path / 'w', add=extra)
  _, rows = pretrained.load_pretrained(shapes('fcn8s', 1), path)
  lines = pretrained.format_table(rows).splitlines()
  assert lines[0].split() == ['from', 'to', 'shape', 'status']
  start = lines[0].index('status')
  assert {line[start:] for line in lines[1:-4]} == {
    'adapted: RGB summed to grey',
    'loaded',
    'fresh',
    'unused: classifier',
  }
  words = [line.split() for line in lines]
  assert ['features.2.*', 'backbone/block1_conv2', '2', 'tensors', 'loaded'] in words
  assert words[2][:3] == ['features.0.weight', 'backbone/block1_conv1/kernel', '3x3x1x4']
  assert ['classifier.0.*', '2', 'tensors', 'unused:', 'classifier'] in words
  assert len([line for line in lines if 'backbone/' in line]) == 14  # 13 layers, one in two lines
  # 4 biases, then kernels and biases of 4 -> 4, 4 -> 8, 8 -> 8, ...: 148 + 296 + 584 + 1168 +
  # 2·2320 + 4640 + 2·9248 + 3·9248. The first kernel is 3·3·1·4.
  assert lines[-4:-2] == [
    'loaded   25 tensors of 57,720 values',
    'adapted  1 tensor of 36 values',
  ]
  assert lines[-1] == 'unused   2 tensors of 25 values'
