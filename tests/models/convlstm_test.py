"""Bidirectional convolutional LSTM against a loop over steps, voxels and classes, and Keras."""

import functools

import jax
import numpy as np
import pytest

from emseg_jax.models.convlstm import BiConvLstm

KEYS = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}


@functools.partial(jax.jit, static_argnums=(0, 3))
def _apply(model, params, x, train=False):
  return model.apply({'params': params}, x, train=train, rngs=KEYS)


def _normal(rng, *shape):
  return rng.normal(size=shape).astype(np.float32)


def _params(classes, seed=0):
  rng = np.random.default_rng(seed)
  return {
    direction: {
      'kernel': _normal(rng, 3, classes, 1, 4),
      'recurrent_kernel': 0.5 * _normal(rng, 3, classes, 1, 4),
      'bias': _normal(rng, 4),
    }
    for direction in ('forward', 'backward')
  }


def _hard_sigmoid(x):
  return np.clip(0.2 * x + 0.5, 0, 1)


def _convolve(image, kernel):
  """[N, K], [3, K] -> [N, K], zeros outside; K - 1 of them around the classes, fewer before."""
  voxels, classes = image.shape
  before = (classes - 1) // 2
  padded = np.pad(image, ((1, 1), (before, classes - 1 - before)))
  out = np.zeros_like(image)
  for n in range(voxels):
    for k in range(classes):
      out[n, k] = np.sum(padded[n : n + 3, k : k + classes] * kernel)
  return out


def _loop(x, params, masks=None):
  """One direction for one image: x [T, N, K] and masks [4, N, K] -> [T, N, K]."""
  h = c = np.zeros(x.shape[1:])
  masks = np.ones((4, *x.shape[1:])) if masks is None else masks
  outputs = []
  for step in x:
    i, f, g, o = (
      _convolve(step, params['kernel'][:, :, 0, gate])
      + _convolve(h * masks[gate], params['recurrent_kernel'][:, :, 0, gate])
      + params['bias'][gate]
      for gate in range(4)
    )
    c = _hard_sigmoid(f) * c + _hard_sigmoid(i) * np.tanh(g)
    h = _hard_sigmoid(o) * np.tanh(c)
    outputs.append(h)
  return np.stack(outputs)


def _both(x, params, masks=None):
  """[B, T, N, K] -> [B, T, N, K, 2]; masks [2, 4, K, B, N]."""
  images = []
  for b, image in enumerate(x):
    mask = [None, None] if masks is None else masks[:, :, :, b].transpose(0, 1, 3, 2)
    forward = _loop(image, params['forward'], mask[0])
    backward = _loop(image[::-1], params['backward'], mask[1])[::-1]
    images.append(np.stack([forward, backward], -1))
  return np.stack(images)


@pytest.mark.parametrize('classes', [1, 2, 3, 4])
def test_both_directions_are_a_loop_over_the_steps(classes):
  x, params = _normal(np.random.default_rng(1), 2, 6, 5, classes), _params(classes)
  out = _apply(BiConvLstm(), params, x)
  np.testing.assert_allclose(out, _both(x, params), atol=1e-5)


def test_recurrent_dropout_masks_the_state_of_each_gate_alike_in_all_steps():
  x, params = _normal(np.random.default_rng(1), 2, 6, 5, 3), _params(3)
  model = BiConvLstm(recurrent_dropout=0.5)
  # The first key that the module draws.
  key = model.apply({}, rngs=KEYS, method=lambda module: module.make_rng('dropout'))
  masks = np.asarray(jax.random.bernoulli(key, 0.5, (2, 4, 3, 2, 5))) / 0.5
  out = _apply(model, params, x, True)
  np.testing.assert_allclose(out, _both(x, params, masks), atol=1e-5)


def test_recurrent_dropout_leaves_the_input_and_evaluation_alone():
  x, params = _normal(np.random.default_rng(1), 2, 6, 5, 3), _params(3)
  model = BiConvLstm(recurrent_dropout=0.9)
  evaluated = _apply(model, params, x)
  trained = np.asarray(_apply(model, params, x, True))
  # The first step of each direction has no state yet.
  np.testing.assert_allclose(trained[:, 0, ..., 0], evaluated[:, 0, ..., 0], atol=1e-6)
  np.testing.assert_allclose(trained[:, -1, ..., 1], evaluated[:, -1, ..., 1], atol=1e-6)
  assert np.abs(trained - evaluated).max() > 1e-2
  np.testing.assert_allclose(evaluated, _both(x, params), atol=1e-5)


def test_unrolling_changes_nothing():
  x, params = _normal(np.random.default_rng(1), 1, 7, 4, 2), _params(2)
  plain, unrolled = (_apply(BiConvLstm(unroll=unroll), params, x) for unroll in (1, 3))
  np.testing.assert_allclose(unrolled, plain, atol=1e-6)


def test_the_initial_values_are_those_of_keras():
  x = np.zeros((1, 2, 2, 3), np.float32)
  params = jax.jit(lambda: BiConvLstm().init(KEYS, x, train=False))()['params']
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2 * (2 * 3 * 3 * 4 + 4)
  for direction in params.values():
    columns = np.asarray(direction['recurrent_kernel']).reshape(9, 4)
    np.testing.assert_allclose(columns.T @ columns, np.eye(4), atol=1e-5)
    np.testing.assert_array_equal(direction['bias'], [0, 1, 0, 0])  # unit forget bias
  kernels = [direction['kernel'] for direction in params.values()]
  assert np.abs(kernels[0] - kernels[1]).max() > 0.1


@pytest.mark.parity
@pytest.mark.parametrize('classes', [2, 3])
def test_the_layer_is_that_of_keras(classes, monkeypatch):
  monkeypatch.setenv('KERAS_BACKEND', 'jax')
  keras = pytest.importorskip('keras')
  x, params = _normal(np.random.default_rng(1), 2, 5, 4, classes), _params(classes)

  def run(direction, x):
    layer = keras.layers.ConvLSTM2D(
      1,
      (3, classes),
      padding='same',
      return_sequences=True,
      # The default of Keras 2, with which Res-CR-Net was made; that of Keras 3 has the slope 1/6.
      recurrent_activation=lambda x: keras.ops.clip(0.2 * x + 0.5, 0, 1),
    )
    layer.build((None, *x.shape[1:], 1))
    layer.set_weights([params[direction][n] for n in ('kernel', 'recurrent_kernel', 'bias')])
    return keras.ops.convert_to_numpy(layer(x[..., None]))

  with jax.numpy_rank_promotion('allow'):
    expected = run('forward', x), run('backward', x[:, ::-1])[:, ::-1]
  out = _apply(BiConvLstm(), params, x)
  np.testing.assert_allclose(out, np.concatenate(expected, -1), atol=1e-5)
