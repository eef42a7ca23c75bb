"""ViT: parameter counts, parity with timm, interpolation of positions."""

import jax
import jax.numpy as jnp
import model_support
import numpy as np
import parity_support
import pytest

from emseg_jax.models.backbones import vit
from emseg_jax.models.backbones.vit import Vit


def _count(model):
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 48, 3))))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))


@pytest.mark.parametrize(
  ('options', 'expected'),
  [
    # timm's vit_base_patch16_224 without its classifier (86,567,656 - 769,000).
    ({'grid': (14, 14), 'cls_token': True, 'final_norm': True}, 85_798_656),
    # 590,592 for the patches, 32·32·768 positions, 12 blocks of 7,087,872.
    ({}, 86_431_488),
    ({'cls_token': True}, 86_431_488 + 2 * 768),
    ({'final_norm': True}, 86_431_488 + 2 * 768),
  ],
  ids=str,
)
def test_the_number_of_parameters_is_that_of_vit_b_16(options, expected):
  assert _count(Vit(taps=(11,), **options)) == expected


def _timm_weights(state, grid):
  """Parameters of `Vit` from timm's, after replacing its initialisation by random values."""

  def value(name):
    return state[name].numpy()

  def dense(name):
    return {'kernel': value(f'{name}.weight').T, 'bias': value(f'{name}.bias')}

  def norm(name):
    return {'scale': value(f'{name}.weight'), 'bias': value(f'{name}.bias')}

  kernel = value('patch_embed.proj.weight').transpose(2, 3, 1, 0)
  positions = value('pos_embed')
  params = {'patch_embed': {'kernel': kernel, 'bias': value('patch_embed.proj.bias')}}
  if 'cls_token' in state:
    params |= {'cls_token': value('cls_token'), 'cls_pos': positions[:, :1]}
    positions = positions[:, 1:]
  params['pos_embed'] = positions.reshape(1, *grid, -1)
  for i in range(2):
    of = {'qkv': 'attn.qkv', 'proj': 'attn.proj', 'fc1': 'mlp.fc1', 'fc2': 'mlp.fc2'}
    params[f'block{i}'] = {ours: dense(f'blocks.{i}.{theirs}') for ours, theirs in of.items()}
    params[f'block{i}'] |= {name: norm(f'blocks.{i}.{name}') for name in ('norm1', 'norm2')}
  if 'norm.weight' in state:
    params['norm'] = norm('norm')
  return params


@pytest.mark.parity
@pytest.mark.parametrize(('cls_token', 'final_norm'), [(True, True), (False, False)])
def test_tokens_equal_those_of_timm_with_the_same_weights(cls_token, final_norm):
  torch, _, timm = parity_support.torch_libraries()
  grid = (3, 2)
  theirs = timm.models.vision_transformer.VisionTransformer(
    img_size=(48, 32),
    embed_dim=36,
    depth=2,
    num_heads=12,
    num_classes=0,
    global_pool='',
    class_token=cls_token,
    final_norm=final_norm,
  ).eval()
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, parameter in theirs.named_parameters():
      # A small scale of the patches makes the epsilon of the norms matter.
      spread = 1e-4 if name.startswith(('patch_embed', 'pos_embed', 'cls_token')) else 0.3
      parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
  image = model_support.normal(2, 48, 32, 3)
  with torch.no_grad():
    x = torch.from_numpy(image.transpose(0, 3, 1, 2))
    options = {'indices': [0, 1], 'output_fmt': 'NLC', 'intermediates_only': True}
    expected = [y.numpy() for y in theirs.forward_intermediates(x, norm=False, **options)]
    if final_norm:  # after the last block only
      expected[1] = theirs.forward_features(x)[:, int(cls_token) :].numpy()
  ours = Vit(
    taps=(1, 0),
    width=3 / 64,
    depth=2,
    grid=grid,
    cls_token=cls_token,
    final_norm=final_norm,
  )
  params = _timm_weights(theirs.state_dict(), grid)
  outputs = jax.jit(ours.apply)({'params': params}, image)
  for out, want in zip(outputs, expected[::-1], strict=True):
    np.testing.assert_allclose(out, want.reshape(2, *grid, 36), atol=2e-5)


@pytest.mark.parity
@pytest.mark.parametrize('size', [(5, 4), (8, 3), (1, 9), (10, 8)])
def test_positions_are_interpolated_as_in_torch(size):
  torch = pytest.importorskip('torch')
  positions = model_support.normal(1, 5, 4, 3)
  expected = torch.nn.functional.interpolate(
    torch.from_numpy(positions.transpose(0, 3, 1, 2)),
    size=size,
    mode='bicubic',
    align_corners=False,
  )
  ours = vit.resize_positions(jnp.asarray(positions), size)
  np.testing.assert_allclose(ours, expected.numpy().transpose(0, 2, 3, 1), atol=1e-6)


def test_the_cubic_kernel_is_the_one_computed_by_hand():
  # Output 3 of 8 lies at 3.5 / 2 - 0.5 = 1.25 among 4 values: at distances 1.25, 0.25, 0.75 and
  # 1.75, where Keys' kernel with a = -0.75 is
  row = [-0.10546875, 0.87890625, 0.26171875, -0.03515625]
  # Output 0 lies at -0.25, a quarter left of value 0, which stands in for what is left of it.
  edge = [-0.03515625 + 0.26171875 + 0.87890625, -0.10546875, 0, 0]
  resized = vit.resize_positions(jnp.eye(4).reshape(1, 4, 1, 4), (8, 1))
  np.testing.assert_allclose(resized[0, 3, 0], row, atol=1e-7)
  np.testing.assert_allclose(resized[0, 0, 0], edge, atol=1e-7)
  np.testing.assert_allclose(resized[0, ::-1, 0, ::-1], resized[0, :, 0], atol=1e-7)


def test_interpolated_positions_are_added_to_their_patches():
  model = Vit(taps=(0,), width=1 / 64, depth=1, grid=(2, 3))
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1))))
  # All weights 0: a block passes its input on, and so does a black image its positions.
  params = jax.tree.map(lambda p: np.zeros(p.shape, np.float32), params)
  params['params']['pos_embed'] = model_support.normal(1, 2, 3, 12)
  apply = jax.jit(model.apply)
  (same,) = apply(params, np.zeros((1, 32, 48, 1), np.float32))
  np.testing.assert_array_equal(same, params['params']['pos_embed'])
  (larger,) = apply(params, np.zeros((2, 64, 48, 1), np.float32))
  assert larger.shape == (2, 4, 3, 12)
  # By hand, at -0.25 of 2 values: 0.87890625 + 0.26171875 - 0.03515625 of the first.
  first, second = params['params']['pos_embed'][0]
  np.testing.assert_allclose(larger[0, 0], 1.10546875 * first - 0.10546875 * second, atol=1e-6)
