"""Segmenter: parameter counts, mask transformer against numpy and torch, initialisation."""

import functools

import jax
import model_support
import numpy as np
import pytest

from emseg_jax.models.segmenter import MaskTransformer, Segmenter

CHANNELS = 24
CLASSES = 3


# 102.50 M is the published figure; the sum of the layers with 150 classes has its digits.
@pytest.mark.parametrize(('classes', 'expected'), [(150, 102_497_580), (2, 102_383_620)])
def test_the_number_of_parameters_is_that_of_the_layer_table(classes, expected):
  assert model_support.count(Segmenter(classes), (1, 32, 48, 3)) == expected


def _layer_norm(x, scale, bias):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias


def _masks(params, tokens, blocks=lambda x: x):
  """Logits [B, N, K] of tokens [B, N, C], one patch and one class at a time."""
  x = tokens @ params['proj']['kernel'] + params['proj']['bias']
  embedding = np.repeat(params['class_embed'], len(x), axis=0)
  x = blocks(np.concatenate([x, embedding], axis=1))
  x = _layer_norm(x, **params['norm'])
  cosines = np.zeros((*tokens.shape[:2], CLASSES))
  for b, n, k in np.ndindex(cosines.shape):
    patch = x[b, n] @ params['patch_proj']['kernel']
    label = x[b, tokens.shape[1] + k] @ params['class_proj']['kernel']
    cosines[b, n, k] = patch @ label / np.linalg.norm(patch) / np.linalg.norm(label)
  return _layer_norm(cosines, **params['mask_norm'])


def _decoder(depth):
  """(decoder, random parameters, tokens of a grid of 2 x 3)."""
  decoder = MaskTransformer(CLASSES, depth, 0.0, np.float32)
  tokens = model_support.normal(2, 2, 3, CHANNELS)
  shapes = model_support.shapes(decoder, tokens.shape)['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda p: rng.normal(0, 0.3, p.shape).astype(np.float32), shapes)
  return decoder, params, tokens


def test_logits_are_normalised_cosines_of_patches_and_classes():
  decoder, params, tokens = _decoder(0)
  expected = _masks(params, tokens.reshape(2, 6, CHANNELS)).reshape(2, 2, 3, CLASSES)
  logits = jax.jit(functools.partial(decoder.apply, train=False))({'params': params}, tokens)
  np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parity
def test_the_blocks_of_the_decoder_are_those_of_torch_with_epsilon_1e_5():
  torch = pytest.importorskip('torch')
  decoder, params, tokens = _decoder(1)
  tokens *= 1e-3  # the epsilon matters
  params['proj']['bias'] *= 1e-3
  params['class_embed'] *= 1e-3
  block = torch.nn.TransformerEncoderLayer(
    CHANNELS, 12, 4 * CHANNELS, activation='gelu', norm_first=True, batch_first=True
  ).eval()
  state = {}
  names = {
    'qkv': ('self_attn.in_proj_weight', 'self_attn.in_proj_bias'),
    'proj': ('self_attn.out_proj.weight', 'self_attn.out_proj.bias'),
    'fc1': ('linear1.weight', 'linear1.bias'),
    'fc2': ('linear2.weight', 'linear2.bias'),
    'norm1': ('norm1.weight', 'norm1.bias'),
    'norm2': ('norm2.weight', 'norm2.bias'),
  }
  for ours, (weight, bias) in names.items():
    p = params['block0'][ours]
    state[weight] = torch.from_numpy((p['scale'] if 'scale' in p else p['kernel'].T).copy())
    state[bias] = torch.from_numpy(p['bias'])
  block.load_state_dict(state)

  def blocks(x):
    with torch.no_grad():
      return block(torch.from_numpy(x)).numpy()

  expected = _masks(params, tokens.reshape(2, 6, CHANNELS), blocks).reshape(2, 2, 3, CLASSES)
  logits = jax.jit(functools.partial(decoder.apply, train=False))({'params': params}, tokens)
  np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_one_class_is_the_second_of_two_against_the_first():
  one, two = (Segmenter(n, width=1 / 64, depth=1, decoder_depth=1) for n in (1, 2))
  image = model_support.normal(1, 20, 33, 1)
  variables = model_support.variables(two, image.shape)
  logits = [model_support.apply(m, variables, image, False)[0]['logits'] for m in (one, two)]
  np.testing.assert_allclose(logits[0][..., 0], logits[1][..., 1] - logits[1][..., 0], atol=1e-6)


def test_weights_start_with_the_published_spread():
  model = Segmenter(2, width=1 / 8, depth=1, decoder_depth=1)
  image = np.zeros((1, 16, 16, 3), np.float32)
  params = jax.jit(lambda: model.init(model_support.KEYS, image, train=False))()['params']
  channels = 96
  decoder, backbone = params['decoder'], params['backbone']
  expected = {0.02: [], channels**-0.5: [], np.sqrt(2 / (16 * 16 * 3)): []}
  for block in (decoder['block0'], backbone['block0']):
    expected[0.02] += [block[name]['kernel'] for name in ('qkv', 'proj', 'fc1', 'fc2')]
  expected[0.02] += [decoder['proj']['kernel'], decoder['class_embed'], backbone['pos_embed']]
  expected[channels**-0.5] += [decoder[name]['kernel'] for name in ('patch_proj', 'class_proj')]
  expected[np.sqrt(2 / (16 * 16 * 3))] += [backbone['patch_embed']['kernel']]
  for spread, leaves in expected.items():
    for leaf in leaves:
      # Five standard errors of a standard deviation of that many values.
      np.testing.assert_allclose(np.std(leaf), spread, rtol=5 / np.sqrt(2 * leaf.size))
