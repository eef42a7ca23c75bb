"""SegViT: parameter count, ATM decoder against numpy and torch, scores, taps."""

import functools

import jax
import model_support
import numpy as np
import pytest

from emseg_jax.models.segvit import AtmDecoder, DecoderLayer, SegVit, semantic_logits

HEADS = 12
CHANNELS = 24
CLASSES = 3


def test_the_number_of_parameters_is_the_published_one_without_the_class_token():
  # The authors' configuration counts a class token and its position but doesn't use them.
  assert model_support.count(SegVit(2), (1, 32, 48, 3)) == 108_622_467 - 2 * 768


def test_fewer_taps_and_layers_have_fewer_parameters():
  # A layer of width 384: 2 attentions of 591,360, a perceptron of 1,181,568, 3 norms of 768; a tap
  # has a projection of 295,296 and a norm beside its layers.
  layer, tap = 2 * 591_360 + 1_181_568 + 3 * 768, 295_296 + 768
  model = SegVit(2, taps=(5, 11), decoder_layers=2)
  expected = 108_622_467 - 2 * 768 - 5 * layer - tap
  assert model_support.count(model, (1, 32, 48, 3)) == expected


def _random(module, *inputs):
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, train=False))['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda p: rng.normal(0, 0.4, p.shape).astype(np.float32), shapes)


def _run(module, params, *inputs):
  return jax.jit(functools.partial(module.apply, train=False))({'params': params}, *inputs)


def _dense(x, p):
  return x @ p['kernel'] + p['bias']


def _norm(x, p):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p['scale'] + p['bias']


def _attend(x, memory, p):
  """x [K, C] looking at memory [N, C], head by head: (result, mean of the heads' scores)."""
  q, kv = _dense(x, p['q']), _dense(memory, p['kv'])
  k, v = kv[:, :CHANNELS], kv[:, CHANNELS:]
  size = CHANNELS // HEADS
  results, scores = [], []
  for head in range(HEADS):
    part = slice(head * size, (head + 1) * size)
    score = q[:, part] @ k[:, part].T / np.sqrt(size)
    weights = np.exp(score) / np.exp(score).sum(1, keepdims=True)
    results.append(weights @ v[:, part])
    scores.append(score)
  return _dense(np.concatenate(results, axis=1), p['proj']), sum(scores) / HEADS


def _layer(x, memory, p):
  x = _norm(x + _attend(x, x, p['self_attention'])[0], p['norm1'])
  y, scores = _attend(x, memory, p['cross_attention'])
  x = _norm(x + y, p['norm2'])
  y = _dense(np.maximum(_dense(x, p['fc1']), 0), p['fc2'])
  return _norm(x + y, p['norm3']), scores


def test_masks_add_up_the_scores_of_the_last_layer_of_each_tap():
  decoder = AtmDecoder(CLASSES, CHANNELS, layers=2, dropout=0.1, dtype=np.float32)
  taps = tuple(model_support.normal(2, 2, 3, 18, seed=s) for s in range(2))
  params = _random(decoder, taps)
  classes, masks = _run(decoder, params, taps)
  assert (classes.shape, masks.shape) == ((2, 2, CLASSES, CLASSES + 1), (2, 2, 2, 3, CLASSES))
  for b in range(2):
    x, total = params['queries'][0], 0
    for t, tap in enumerate(taps):
      memory = _norm(_dense(tap[b].reshape(6, 18), params[f'proj{t}']), params[f'norm{t}'])
      for i in range(2):
        x, scores = _layer(x, memory, params[f'tap{t}_layer{i}'])
      total = total + scores.T.reshape(2, 3, CLASSES)
      np.testing.assert_allclose(masks[b, t], total, atol=1e-4)
      np.testing.assert_allclose(classes[b, t], _dense(x, params['classes']), atol=1e-4)


@pytest.mark.parity
def test_a_decoder_layer_is_that_of_torch():
  torch = pytest.importorskip('torch')
  layer = DecoderLayer(dropout=0.1, dtype=np.float32)
  x, memory = model_support.normal(2, 3, CHANNELS), model_support.normal(2, 5, CHANNELS, seed=1)
  params = _random(layer, x, memory)
  theirs = torch.nn.TransformerDecoderLayer(CHANNELS, HEADS, 4 * CHANNELS, batch_first=True).eval()
  state = {}
  of = {'self_attention': 'self_attn', 'cross_attention': 'multihead_attn'}
  for ours, name in of.items():
    p = params[ours]
    state[f'{name}.in_proj_weight'] = np.concatenate([p['q']['kernel'].T, p['kv']['kernel'].T])
    state[f'{name}.in_proj_bias'] = np.concatenate([p['q']['bias'], p['kv']['bias']])
    state[f'{name}.out_proj.weight'] = p['proj']['kernel'].T
    state[f'{name}.out_proj.bias'] = p['proj']['bias']
  for i in (1, 2):
    state |= {f'linear{i}.weight': params[f'fc{i}']['kernel'].T}
    state |= {f'linear{i}.bias': params[f'fc{i}']['bias']}
  for i in (1, 2, 3):
    state |= {f'norm{i}.weight': params[f'norm{i}']['scale']}
    state |= {f'norm{i}.bias': params[f'norm{i}']['bias']}
  theirs.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in state.items()})
  with torch.no_grad():
    expected = theirs(torch.from_numpy(x), torch.from_numpy(memory)).numpy()
  np.testing.assert_allclose(_run(layer, params, x, memory)[0], expected, atol=1e-4)


def test_logits_are_logarithms_of_the_scores():
  # Two queries at one pixel. Classes by softmax: (1/2, 1/4, 1/4) and (1/8, 3/4, 1/8), the last of
  # each 'no object'; masks by sigmoid: 4/5 and 1/2.
  classes = np.log(np.array([[[2, 1, 1], [1, 6, 1]]], np.float32))
  masks = np.log(np.array([[[[4, 1]]]], np.float32))
  scores = [0.5 * 0.8 + 0.125 * 0.5, 0.25 * 0.8 + 0.75 * 0.5]
  logits = semantic_logits(classes, masks)[0, 0, 0]
  np.testing.assert_allclose(np.exp(logits), scores, rtol=1e-5)
  np.testing.assert_allclose(jax.nn.softmax(logits), np.array(scores) / sum(scores), rtol=1e-5)


def test_the_logit_of_one_class_has_the_score_as_its_sigmoid():
  classes = np.log(np.array([[[3, 1]]], np.float32))
  masks = np.log(np.array([[[[4], [1], [1 / 9]]]], np.float32))
  logits = semantic_logits(classes, masks)[0, 0, :, 0]
  np.testing.assert_allclose(jax.nn.sigmoid(logits), [0.6, 0.375, 0.075], rtol=1e-5)


@pytest.mark.parametrize('classes', [1, 2])
def test_scores_of_0_and_1_have_finite_logits_and_gradients(classes):
  sure = np.full((1, classes, classes + 1), -200, np.float32)
  sure[0, :, 0] = 200
  masks = np.full((1, 1, 2, classes), 200, np.float32)
  masks[:, :, 1] = -200

  def first_class(sure, masks):
    logits = semantic_logits(sure, masks)[0, 0, :, 0]
    return logits.sum(), logits

  gradient = jax.jit(jax.grad(first_class, (0, 1), has_aux=True))
  gradients, logits = gradient(sure, masks)
  assert all(np.isfinite(x).all() for x in (logits, *gradients))
  assert logits[0] > logits[1] + 10


TINY = SegVit(2, width=1 / 32, depth=2, taps=(0, 1), decoder_layers=1, dropout=0.0, grid=(2, 3))
IMAGE = model_support.normal(1, 30, 40, 1)


def test_the_last_mask_gives_the_logits():
  variables = model_support.variables(TINY, IMAGE.shape)
  out, _ = model_support.apply(TINY, variables, IMAGE, True)
  assert out['atm/class'].shape == (1, 2, 2, 3)
  assert out['atm/mask'].shape == (1, 2, 30, 40, 2)
  expected = semantic_logits(out['atm/class'][:, -1], out['atm/mask'][:, -1])
  np.testing.assert_allclose(out['logits'], expected, atol=1e-5)
  evaluated, _ = model_support.apply(TINY, variables, IMAGE, False)
  assert set(evaluated) == {'logits'}
  np.testing.assert_allclose(evaluated['logits'], out['logits'], atol=1e-5)


def test_the_deepest_tap_comes_first():
  variables = model_support.variables(TINY, IMAGE.shape)
  moved = jax.tree.map(np.copy, variables)
  moved['params']['backbone']['block1']['fc2']['bias'][::2] += 1  # the second and last block
  before, after = (
    model_support.apply(TINY, v, IMAGE, True)[0]['atm/mask'] for v in (variables, moved)
  )
  assert np.abs(after[:, 0] - before[:, 0]).max() > 1e-3


def test_masks_are_interpolated_between_the_centres_of_the_patches():
  variables = model_support.variables(TINY, IMAGE.shape)
  mask = np.asarray(model_support.apply(TINY, variables, IMAGE, True)[0]['atm/mask'])[0, 0]
  # Between the centres of the first two patches, at 7.5 and 23.5, the mask is linear.
  steps = np.diff(mask[8, 8:24], axis=0)
  assert np.abs(steps).min() > 1e-5
  np.testing.assert_allclose(steps, np.broadcast_to(steps[:1], steps.shape), atol=1e-6)
  np.testing.assert_allclose(mask[:8], np.broadcast_to(mask[:1], (8, 40, 2)), atol=1e-6)


@pytest.mark.parametrize('taps', [(), (5, 7), (7, 5, 11), (5, 5, 11), (5, 7, 12), (-1, 11)])
def test_taps_that_do_not_ascend_to_the_last_block_are_refused(taps):
  with pytest.raises(ValueError, match='ascend to the last block, 11'):
    SegVit(2, taps=taps)
