"""Features of loaded encoders against those of the libraries, at full width.

The weights are random: what is tested is that each of them gets into its place.
"""

import functools
import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import parity_support
import pytest
from model_support import normal

from emseg_jax import pretrained
from emseg_jax.models.backbones.resnet import ResNet50D8
from emseg_jax.models.backbones.vgg import Vgg
from emseg_jax.models.backbones.vit import Vit

pytestmark = pytest.mark.parity


def _randomised(torch, network):
  """The network in evaluation mode; its features keep their size, no scale is 1 and no bias 0."""
  torch.manual_seed(0)
  for module in network.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      for tensor in (module.weight, module.running_var):
        torch.nn.init.uniform_(tensor, 0.5, 1.5)
      for tensor in (module.bias, module.running_mean):
        torch.nn.init.normal_(tensor, 0, 0.2)
    elif isinstance(module, torch.nn.Conv2d):
      torch.nn.init.kaiming_normal_(module.weight)
      if module.bias is not None:
        torch.nn.init.normal_(module.bias, 0, 0.2)
  return network.eval()


def _saved(network, path):
  from safetensors.torch import save_file

  save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
  return path


def _features(encoder, path, image):
  """What the encoder puts out with the weights of a file, channels last."""
  mode = {} if isinstance(encoder, Vit) else {'train': False}
  apply = functools.partial(encoder.apply, **mode)
  empty = jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.asarray(image), **mode))
  network = {collection: {'backbone': tree} for collection, tree in empty.items()}
  loaded, _ = pretrained.load_pretrained(network, path)
  return jax.jit(apply)({c: tree['backbone'] for c, tree in loaded.items()}, image)


def _assert_close(ours, theirs):
  assert len(ours) == len(theirs)
  for a, b in zip(ours, theirs, strict=True):
    assert a.shape == b.shape
    assert np.std(b, axis=(1, 2)).mean() > 0.1  # over the image
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


def _torch(torch, image):
  return torch.from_numpy(image).permute(0, 3, 1, 2)


def _numpy(outputs):
  return [x.permute(0, 2, 3, 1).numpy() for x in outputs]


def test_resnet_50_of_torchvision_with_dilations_for_strides(tmp_path):
  torch, torchvision, _ = parity_support.torch_libraries()
  dilate = [False, True, True]
  theirs = torchvision.models.resnet50(replace_stride_with_dilation=dilate)
  path = _saved(_randomised(torch, theirs), tmp_path / 'w.safetensors')
  image, outputs = normal(1, 64, 64, 3), []
  with torch.no_grad():
    x = _torch(torch, image)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
      x = stage(x)
      outputs.append(x)
  _assert_close(_features(ResNet50D8(stem='v1'), path, image), _numpy(outputs))


def test_resnet_50_v1c_of_timm_on_a_grey_image(tmp_path):
  torch, _, timm = parity_support.torch_libraries()
  theirs = timm.create_model('resnet50c', features_only=True, output_stride=8)
  path = _saved(_randomised(torch, theirs), tmp_path / 'w.safetensors')
  image = normal(1, 33, 47, 1)
  with torch.no_grad():
    _, *outputs = theirs(_torch(torch, np.repeat(image, 3, -1)))  # the first is the stem's
  _assert_close(_features(ResNet50D8(), path, image), _numpy(outputs))


# torchvision's 'D' has 16 layers, 'E' 19.
@pytest.mark.parametrize(
  ('plan', 'encoder'), [('D', Vgg(16)), ('E', Vgg(19)), ('D', Vgg(16, norm=True))]
)
def test_vgg_of_torchvision(tmp_path, plan, encoder):
  torch, torchvision, _ = parity_support.torch_libraries()
  vgg = torchvision.models.vgg
  # Without the classifier, whose 124 million values nobody needs.
  theirs = torch.nn.Module()
  theirs.features = vgg.make_layers(vgg.cfgs[plan], batch_norm=encoder.norm)
  path = _saved(_randomised(torch, theirs), tmp_path / 'w.safetensors')
  image, outputs = normal(1, 32, 48, 3), []
  with torch.no_grad():
    x = _torch(torch, image)
    for layer in theirs.features:
      if isinstance(layer, torch.nn.MaxPool2d):
        outputs.append(x)
      x = layer(x)
  _assert_close(_features(encoder, path, image), _numpy(outputs))


@pytest.mark.parametrize('complete', [True, False])
def test_vit_of_timm_with_and_without_class_token_and_final_norm(tmp_path, complete):
  torch, _, timm = parity_support.torch_libraries()
  theirs = timm.models.vision_transformer.VisionTransformer(
    img_size=64, depth=2, num_classes=3, class_token=complete, global_pool='avg' * (not complete)
  )
  torch.manual_seed(0)
  for parameter in theirs.parameters():
    torch.nn.init.normal_(parameter, 0, 0.05)
  for module in theirs.modules():
    if isinstance(module, torch.nn.LayerNorm):
      torch.nn.init.uniform_(module.weight, 0.5, 1.5)
  path = _saved(theirs.eval(), tmp_path / 'w.safetensors')
  image = normal(1, 64, 64, 3)
  with torch.no_grad():
    outputs = theirs.forward_intermediates(
      _torch(torch, image), indices=[1], norm=complete, intermediates_only=True
    )
  ours = Vit((1,), depth=2, grid=(4, 4), cls_token=complete, final_norm=complete)
  _assert_close(_features(ours, path, image), _numpy(outputs))


def test_positions_are_interpolated_as_pytorch_does(tmp_path):
  torch, _, timm = parity_support.torch_libraries()
  theirs = timm.models.vision_transformer.VisionTransformer(depth=1, num_classes=0)
  path = _saved(theirs, tmp_path / 'w.safetensors')
  ours = Vit((0,), depth=1, grid=(32, 20))
  empty = jax.eval_shape(lambda: ours.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
  loaded, _ = pretrained.load_pretrained({'params': {'backbone': empty['params']}}, path)
  grid = theirs.pos_embed[:, 1:].detach().reshape(1, 14, 14, 768).permute(0, 3, 1, 2)
  expected = torch.nn.functional.interpolate(grid, (32, 20), mode='bicubic', align_corners=False)
  found = loaded['params']['backbone']['pos_embed']
  np.testing.assert_allclose(found, *_numpy([expected]), atol=1e-6)


# Keras takes its backend from the environment and changes settings of JAX.
KERAS = """
import keras, numpy as np
network = keras.applications.VGG16(weights=None, include_top=False, input_shape=(32, 32, 3))
rng = np.random.default_rng(0)
for layer in network.layers:
  for weight in layer.weights:
    spread = 0.2 if len(weight.shape) == 1 else np.sqrt(2 / np.prod(weight.shape[:3]))
    weight.assign(spread * rng.standard_normal(weight.shape))
network.save('model.h5')
network.save_weights('model.weights.h5')
outputs = [network.get_layer(f'block{b}_conv{n}').output for b, n in enumerate((2, 2, 3, 3, 3), 1)]
bgr = np.load('image.npy')[..., ::-1]
np.savez('features.npz', *keras.Model(network.inputs, outputs).predict(bgr, verbose=0))
"""


def test_vgg_16_of_keras(tmp_path):
  if importlib.util.find_spec('keras') is None:  # importing it needs a backend
    pytest.skip('keras is not installed')
  image = normal(1, 32, 32, 3)
  np.save(tmp_path / 'image.npy', image)
  environment = os.environ | {'KERAS_BACKEND': 'jax', 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-c', KERAS]
  subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
  theirs = list(np.load(tmp_path / 'features.npz').values())
  features = _features(Vgg(16), tmp_path / 'model.h5', image)
  _assert_close(features, theirs)
  again = _features(Vgg(16), tmp_path / 'model.weights.h5', image)
  jax.tree.map(np.testing.assert_array_equal, features, again)
