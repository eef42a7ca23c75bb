"""VGG: parameter counts, names, sizes, agreement with torchvision's layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_support import apply, count, normal, shapes, variables

from emseg_jax.models.backbones.vgg import Vgg


# torchvision's totals less their classifiers, 123,642,856 parameters in all four cases: 138,357,544
# (vgg16), 143,667,240 (vgg19), 138,365,992 (vgg16_bn), 143,678,248 (vgg19_bn).
@pytest.mark.parametrize(
  ('depth', 'norm', 'expected'),
  [
    (16, False, 14_714_688),
    (19, False, 20_024_384),
    (16, True, 14_723_136),
    (19, True, 20_035_392),
  ],
)
def test_the_number_of_parameters_is_that_of_torchvision_without_its_classifier(
  depth, norm, expected
):
  model = Vgg(depth, norm)
  assert count(model, (1, 32, 32, 3)) == expected
  # 4224 or 5504 channels with a mean and a variance each.
  channels = {16: 4224, 19: 5504}[depth]
  assert count(model, (1, 32, 32, 3), 'batch_stats') == (2 * channels if norm else 0)


def test_the_layers_have_the_names_of_keras():
  # The names of keras.applications.VGG19, without those of the poolings.
  names = [
    f'block{b}_conv{i}' for b, n in enumerate((2, 2, 4, 4, 4), start=1) for i in range(1, n + 1)
  ]
  params = shapes(Vgg(19), (1, 32, 32, 3))['params']
  assert sorted(params) == sorted(names)
  assert params['block3_conv1']['kernel'].shape == (3, 3, 128, 256)
  with_norm = shapes(Vgg(19, norm=True), (1, 32, 32, 3))['params']
  assert sorted(with_norm) == sorted(names + [n.replace('conv', 'norm') for n in names])


def test_each_block_has_half_the_size_of_the_one_before_rounded_down():
  model = Vgg()
  image = jax.ShapeDtypeStruct((2, 51, 35, 3), jnp.float32)
  outputs = jax.eval_shape(
    lambda v, x: model.apply(v, x, train=False), shapes(model, image.shape), image
  )
  assert [x.shape for x in outputs] == [
    (2, 51, 35, 64),
    (2, 25, 17, 128),
    (2, 12, 8, 256),
    (2, 6, 4, 512),
    (2, 3, 2, 512),
  ]


def _torch_features(depth, norm):
  """torchvision's `vgg.features` in its order, at 1/16 of the width."""
  from torch import nn

  modules, channels = [], 3
  for block, features in zip(
    {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}[depth], (4, 8, 16, 32, 32), strict=True
  ):
    for _ in range(block):
      modules.append(nn.Conv2d(channels, features, 3, padding=1))
      if norm:
        modules.append(nn.BatchNorm2d(features))
      modules.append(nn.ReLU())
      channels = features
    modules.append(nn.MaxPool2d(2))
  return nn.Sequential(*modules).eval()


@pytest.mark.parity
@pytest.mark.parametrize(('depth', 'norm'), [(16, False), (19, False), (16, True)])
def test_the_blocks_are_those_of_torchvision_with_the_same_weights(depth, norm):
  torch = pytest.importorskip('torch')
  model = Vgg(depth, norm, width=1 / 16)
  image = normal(2, 32, 48, 3)
  rng = np.random.default_rng(1)
  values = jax.tree.map(  # no bias and no statistic keeps its start
    lambda x: x + rng.uniform(0.1, 0.3, x.shape).astype(np.float32) if x.ndim == 1 else x,
    variables(model, image.shape),
  )
  params, stats = values['params'], values.get('batch_stats', {})
  names = [
    f'block{b}_conv{i}'
    for b, n in enumerate({16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}[depth], start=1)
    for i in range(1, n + 1)
  ]
  features = _torch_features(depth, norm)
  convolutions = [m for m in features if isinstance(m, torch.nn.Conv2d)]
  norms = [m for m in features if isinstance(m, torch.nn.BatchNorm2d)]
  for name, module in zip(names, convolutions, strict=True):
    kernel = params[name]['kernel'].transpose(3, 2, 0, 1)
    module.weight.data, module.bias.data = map(torch.tensor, (kernel, params[name]['bias']))
  for name, module in zip(names, norms, strict=False):
    name = name.replace('conv', 'norm')
    module.weight.data = torch.tensor(params[name]['scale'])
    module.bias.data = torch.tensor(params[name]['bias'])
    module.running_mean = torch.tensor(stats[name]['mean'])
    module.running_var = torch.tensor(stats[name]['var'])
  expected, x = [], torch.tensor(image).permute(0, 3, 1, 2)
  with torch.no_grad():
    for module in features:
      if isinstance(module, torch.nn.MaxPool2d):
        expected.append(x.permute(0, 2, 3, 1).numpy())
      x = module(x)
  outputs, _ = apply(model, values, image, False)
  assert len(outputs) == 5
  for ours, theirs in zip(outputs, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
